"""Run the command line in processes that are forked of one that has imported what takes long to import.

A third of a run's time went into importing PyTorch and the exporter a hundred times over. Each command still is a
process of its own with its own folder, environment and output, which imports edgekd itself; what a command imports,
and how it begins, is tested on real starts (``commands.python``).

Run as a script, this is that first process: it answers one JSON line for each that it reads.
"""

import atexit
import gc
import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from importlib import import_module
from pathlib import Path

#: None of them starts a thread when it is imported, which a fork would lose.
_HEAVY = ("torch", "torch._dynamo", "torch.onnx._internal.exporter._core", "onnx", "onnxscript", "torch_pruning")
_ROOT = Path(__file__).parents[1]


class Forks:
    """The first process, started when it is needed first."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process = None
        #: CPU seconds of all commands.
        self.cpu_s = 0.0

    def run(self, arguments, cwd, environment, timeout):
        """Run ``python -m edgekd`` to its end, like :func:`subprocess.run`."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            outputs = [str(Path(folder) / name) for name in ("stdout", "stderr")]
            asked = [list(map(str, arguments)), str(cwd), environment, *outputs, timeout]
            answer = self._ask(asked)
            self.cpu_s += answer["cpu_s"]
            if answer["code"] is None:
                raise subprocess.TimeoutExpired(asked[0], timeout)
            texts = [Path(output).read_text(encoding="utf-8") for output in outputs]
        return subprocess.CompletedProcess(["edgekd", *asked[0]], answer["code"], *texts)

    def _ask(self, asked):
        if self._process is None:
            self._process = self._start()
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    @staticmethod
    def _start():
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.wait()  # it went on as no child of the tests, some of which count theirs
        return process


def main():
    """Answer until nobody asks any more."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for name in _HEAVY:
        import_module(name)
    _prepare_exporter()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost"  # noqa: PTH208
    gc.freeze()  # or each process would copy all of it as it collects garbage
    for line in sys.stdin:
        *command, timeout = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(*command)
        print(json.dumps(_end(pid, timeout)), flush=True)


def _prepare_exporter():
    from exporter import OPSETS, keep_operators
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    keep_operators()
    logging.disable(logging.WARNING)  # which says what is not installed
    for opset in OPSETS:
        ONNXRegistry.from_torchlib(opset)
    logging.disable(logging.NOTSET)


def _end(pid, timeout):
    """Wait for a process; return its exit code, None where it had to be killed, and what it used."""
    stop = threading.Timer(timeout, os.kill, (pid, 9))
    stop.start()
    _, status, used = os.wait4(pid, 0)
    late = not stop.is_alive()
    stop.cancel()
    stop.join()
    code = None if late else os.waitstatus_to_exitcode(status)
    return {"code": code, "cpu_s": used.ru_utime + used.ru_stime}


def _become(arguments, cwd, environment, stdout, stderr):
    """Be a process that was started with these, to its end."""
    os.setpgid(0, 0)
    for descriptor, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    sys.path[0] = cwd
    code = 1
    try:
        runpy.run_module("edgekd", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        # As at any end of Python, but for taking PyTorch's modules apart, which takes a second.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
