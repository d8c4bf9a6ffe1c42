"""A disk that takes no more is said to be that, by every library that writes, and nothing of another kind is.

A limit on the size of files (``ulimit -f``) refuses any user's writes as a full disk does.
"""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from commands import ROOT, as_nobody, build_arguments, environment
from onnx import TensorProto, helper
from requirements import LINUX, SMALL_DISK
from torch import nn

from edgekd.compress.graph import save
from edgekd.errors import CacheError, ScratchError
from edgekd.files import DiskFullError, atomic_path, disk_errors, scratch_folder, write_text
from edgekd.runtime.session import write_arrays
from edgekd.stages.cache import Cache
from edgekd.stages.disk import remove_tree
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner, StageSpec
from edgekd.training.distillation.cached_teacher import _allocate
from edgekd.training.loop.weights import save_weights

pytestmark = LINUX.mark

LIMIT, LARGE = 1 << 16, 1 << 18  # bytes


@contextmanager
def small_files():
    """Let this process make no file larger than LIMIT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def network():
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [LARGE // 4], np.ones(LARGE // 4, np.float32).tobytes(), raw=True
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [LARGE // 4]) for name in ("x", "logits")]
    node = helper.make_node("Add", ["x", "w"], ["logits"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _checkpoint(path):
    with atomic_path(path, LARGE) as temporary:
        torch.save({"w": torch.ones(LARGE // 4)}, temporary)


def _old_checkpoint(path):
    with atomic_path(path) as temporary:
        torch.save({"w": torch.ones(LARGE // 4)}, temporary, _use_new_zipfile_serialization=False)


def _optimized(path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    with disk_errors(path.parent):
        onnxruntime.InferenceSession(network().SerializeToString(), options, providers=["CPUExecutionProvider"])


def _raw_times(path):
    with disk_errors(path.parent):
        np.save(path, np.ones(LARGE // 8))


WRITERS = {
    "text": lambda path: write_text(path, "x" * LARGE),
    "torch.save": _checkpoint,
    "torch.save before 1.6": _old_checkpoint,
    "safetensors": lambda path: save_weights(nn.Linear(LARGE // 4, 1), path),
    "onnx": lambda path: save(network(), path),
    "onnxruntime": _optimized,
    "np.savez": lambda path: write_arrays(path, {"x": np.ones(LARGE // 8)}),
    "np.save": _raw_times,
    "memory map": lambda path: _allocate(path, np.dtype(np.float64), (LARGE // 8,)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_writer_says_that_the_disk_refused(write, tmp_path):
    with small_files(), pytest.raises(DiskFullError) as caught:
        write(tmp_path / "file")
    assert caught.value.errno == errno.EFBIG
    assert Path(caught.value.filename).is_relative_to(tmp_path)
    assert not list(tmp_path.glob(".*")), "no temporary file is left"
    write(tmp_path / "file")  # the same goes on where there is room


@dataclass(frozen=True)
class Nothing:
    pass


SPEC = StageSpec("teacher", 1, Nothing)


def test_a_stage_whose_disk_refuses_names_the_cache_the_limit_and_what_was_wanted(tmp_path):
    runner = Runner(Cache(tmp_path / "cache"), Silent())

    def work(folder, report):
        _checkpoint(folder / "checkpoint.pt")
        return Nothing()

    said = r"checkpoint\.pt: File too large \(a file may have 0\.1 MB here: ulimit -f, 0\.3 MB wanted\); .* --cache"
    with small_files(), pytest.raises(CacheError, match=said):
        runner(SPEC, run=work)
    assert runner(SPEC, run=work).result == Nothing()


def test_the_folder_for_temporary_files_is_named_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    runner = Runner(Cache(tmp_path / "cache"), Silent())

    def work(folder, report):
        with scratch_folder() as scratch:
            _optimized(scratch / "model.onnx")
        return Nothing()

    with small_files(), pytest.raises(ScratchError, match=r"tmp/.*: File too large .*TMPDIR"):
        runner(SPEC, run=work)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_for_temporary_files_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(ScratchError, match="TMPDIR"), scratch_folder():
        pass


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), disk_errors(tmp_path):
        raise RuntimeError("mine")
    with pytest.raises(OSError, match="elsewhere") as caught, disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file")
    assert not isinstance(caught.value, DiskFullError)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_may_not_be_written_any_more_is_named(tmp_path):
    cache = Cache(tmp_path / "cache")
    tmp_path.chmod(0o755)
    (tmp_path / "cache").chmod(0o555)
    with as_nobody(), pytest.raises(CacheError, match=r"Permission denied; choose another folder with --cache"):
        Runner(cache, Silent())(SPEC, run=lambda folder, report: Nothing())


def test_a_long_name_is_written_and_one_that_is_too_long_is_refused(tmp_path):
    write_text(tmp_path / ("x" * 250), "text")
    with pytest.raises(OSError, match="too long"):
        write_text(tmp_path / ("x" * 300), "text")


SMALL = """
import pathlib, sys
from test_disk import WRITERS
from edgekd.stages.disk import describe_refusal
disk = pathlib.Path(sys.argv[1])
for name, write in WRITERS.items():
    try:
        write(disk / "file")
    except OSError as error:
        print(name, describe_refusal(error, disk, "--cache"), sep=": ")
    for left in disk.iterdir():
        left.unlink()
"""


@SMALL_DISK.mark
def test_every_writer_says_that_a_real_disk_is_full(tmp_path):
    mounted = f'mount -t tmpfs -o size={LIMIT} tmpfs "$0" && exec "$@"'
    command = ["unshare", "-m", "--propagation", "private", "bash", "-c", mounted, str(tmp_path)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    command += [sys.executable, "-c", SMALL, str(tmp_path)]
    ended = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
    assert list(said) == list(WRITERS)
    for line in said.values():
        assert line.startswith(f"{tmp_path}: No space left on device (")
        assert f"MB free in {tmp_path}" in line


def test_a_build_whose_disk_is_full_is_one_line(tmp_path):
    command = [sys.executable, "-m", "edgekd", *map(str, build_arguments("out", "cache"))]
    limited = ["bash", "-c", 'ulimit -f 500; exec "$@"', "bash", *command]
    ended = subprocess.run(limited, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == CacheError.exit_code
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: cache/rehearsal-")
    assert "File too large (a file may have 0.5 MB here: ulimit -f" in line
    assert line.endswith("); make room there, or choose another folder with --cache")


def test_a_folder_is_not_removed_over_another_file_system(tmp_path, monkeypatch):
    (tmp_path / "a" / "mounted").mkdir(parents=True)
    (tmp_path / "a" / "mounted" / "mine").touch()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    with pytest.raises(OSError, match="another file system is mounted there"):
        remove_tree(tmp_path / "a")
    assert (tmp_path / "a" / "mounted" / "mine").exists()
    monkeypatch.undo()
    remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
