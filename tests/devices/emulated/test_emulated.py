"""Real emulators. What needs the ARM user space is skipped where that is not installed: nothing is fetched here."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node, make_tensor_value_info
from requirements import APT, ARM, HASWELL, QEMU, X86

from edgekd.config.recipe import ProfileConfig
from edgekd.devices.emulated import user_space
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.devices.emulated.install import install_processor
from edgekd.devices.emulated.processors import find_processor, processors
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError, ModelError
from edgekd.runtime.backends.registry import ORT, Runtime
from edgekd.runtime.measure.machine import package_versions

ARM_PROCESSORS = ("cortex-a72", "cortex-a76")
ROWS, CHANNELS, WIDTH, CLASSES = 20, 16, 4, 8
#: Largest weights: of 8 bits, whose products with two activations of 8 bits overflow 16 bits together, and of 7.
LARGEST = {"full": 127, "reduced": 64}


def emulated(name, **options):
    """Return a device, or skip the test where its emulator is not there."""
    (HASWELL if name == "haswell" else ARM).demand()
    return EmulatedDevice(name, **options)


# --- what processors compute


def weights(kind):
    random = np.random.default_rng(1)
    largest = LARGEST[kind]
    signs = random.choice([-1, 1, 1], (CHANNELS, CLASSES))
    return (signs * random.integers(largest // 2, largest + 1, signs.shape)).astype(np.int8)


def activations():
    return np.random.default_rng(2).integers(128, 256, (ROWS, CHANNELS, WIDTH, WIDTH), np.uint8)


def save_engine(path):
    """Write QDQ with all scales powers of two, so that exact results can be told: for each kind a Gemm and a Conv."""
    nodes = [
        make_node("QuantizeLinear", ["x", "one", "zero"], ["x.q"]),
        make_node("DequantizeLinear", ["x.q", "one", "zero"], ["x.dq"]),
        make_node("GlobalMaxPool", ["x.dq"], ["pooled"]),
        make_node("Flatten", ["pooled"], ["flat"]),
        make_node("QuantizeLinear", ["flat", "one", "zero"], ["flat.q"]),
        make_node("DequantizeLinear", ["flat.q", "one", "zero"], ["flat.dq"]),
    ]
    constants = {"one": np.float32(1), "zero": np.uint8(0), "coarse": np.float32(1024), "middle": np.uint8(128)}
    constants["weight.zero"] = np.int8(0)
    for kind in LARGEST:
        matrix, kernel = f"{kind}.matrix", f"{kind}.kernel"
        constants[matrix] = weights(kind)
        constants[kernel] = np.ascontiguousarray(weights(kind).T)[:, :, None, None]
        nodes += [
            make_node("DequantizeLinear", [name, "one", "weight.zero"], [f"{name}.dq"]) for name in (matrix, kernel)
        ]
        nodes += [
            make_node("MatMul", ["flat.dq", f"{matrix}.dq"], [f"{kind}.matmul"]),
            make_node("Conv", ["x.dq", f"{kernel}.dq"], [f"{kind}.float"]),
            make_node("QuantizeLinear", [f"{kind}.float", "coarse", "middle"], [f"{kind}.conv.q"]),
            make_node("DequantizeLinear", [f"{kind}.conv.q", "coarse", "middle"], [f"{kind}.conv"]),
        ]
    outputs = [make_tensor_value_info(f"{kind}.matmul", TensorProto.FLOAT, ["batch", CLASSES]) for kind in LARGEST]
    shape = ["batch", CLASSES, WIDTH, WIDTH]
    outputs += [make_tensor_value_info(f"{kind}.conv", TensorProto.FLOAT, shape) for kind in LARGEST]
    graph = helper.make_graph(
        nodes,
        "int8",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, WIDTH, WIDTH])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def exact(kind):
    """Return what integer arithmetic without overflow gives."""
    x, w = activations().astype(np.int64), weights(kind).astype(np.int64)
    conv = np.einsum("bcij,cn->bnij", x, w)
    rounded = np.clip(np.rint(conv / 1024) + 128, 0, 255) - 128
    return {f"{kind}.matmul": x.max((2, 3)) @ w, f"{kind}.conv": rounded * 1024}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    save_engine(folder / "engine.onnx")
    (folder / "broken.onnx").write_text("broken")
    np.savez(folder / "x.npz", **{"input.x": activations().astype(np.float32)})
    return folder


def evaluate(device, files, outputs, engine="engine.onnx", runtime=ORT):
    device.evaluate(files / engine, runtime, files / "x.npz", outputs, 1)
    with np.load(outputs) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def outputs(files, tmp_path_factory):
    """Return what a processor computes; each processor runs once."""
    known = {}

    def outputs(processor):
        if processor not in known:
            device = LocalDevice() if processor == "local" else emulated(processor)
            known[processor] = evaluate(device, files, tmp_path_factory.mktemp("outputs") / "y.npz")
        return known[processor]

    return outputs


@pytest.mark.parametrize("processor", ARM_PROCESSORS)
@pytest.mark.parametrize("kind", LARGEST)
def test_int8_is_exact_on_arm(outputs, processor, kind):
    for name, expected in exact(kind).items():
        np.testing.assert_array_equal(outputs(processor)[name], expected)


@pytest.mark.parametrize("processor", ["local", "haswell"])
def test_int8_with_weights_of_7_bits_is_exact_everywhere(outputs, processor):
    for name, expected in exact("reduced").items():
        np.testing.assert_array_equal(outputs(processor)[name], expected)


def test_int8_with_weights_of_8_bits_saturates_without_vnni(outputs):
    for name, expected in exact("full").items():
        assert np.abs(outputs("haswell")[name]).sum() < 0.95 * np.abs(expected).sum()


# --- the device


@pytest.mark.parametrize("processor", processors())
def test_the_versions_are_this_hosts(processor):
    facts = emulated(processor).describe(ORT)
    assert facts["onnxruntime"] == package_versions(["onnxruntime"])["onnxruntime"]
    assert facts["cpu"] == f"{processor}, emulated"
    assert re.fullmatch(r"QEMU \d+\.\d+[.\d]*", facts["emulator"])
    assert facts["arch"] == ("x86_64" if processor == "haswell" else "aarch64")


def test_arm_has_this_hosts_numpy_and_a_python_of_its_own():
    facts = emulated("cortex-a76").describe(ORT)
    assert facts["numpy"] == np.__version__
    assert re.match(r"3\.\d+\.\d+", facts["python"])


#: From bit 0 of AT_HWCAP (Linux, arch/arm64/include/uapi/asm/hwcap.h).
HWCAPS = (
    "fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid",
    "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp",
)  # fmt: skip


@pytest.mark.parametrize("processor", ARM_PROCESSORS)
def test_cpuinfo_says_what_the_emulator_has(processor):
    emulated(processor)
    found, root = find_processor(processor), user_space.installed_root(processor)
    code = (
        "import ctypes\nauxval = ctypes.CDLL(None).getauxval\nauxval.restype = ctypes.c_ulong\nprint(auxval(16))\n"
        "print(next(line for line in open('/proc/cpuinfo') if line.startswith('Features')))"
    )
    command = [*user_space.python_command(found, root), "-c", code]
    environment = user_space.guest_environment(root)
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert int(printed[0]) < 1 << len(HWCAPS)
    assert printed[1].split()[2:] == [name for bit, name in enumerate(HWCAPS) if int(printed[0]) >> bit & 1]


def test_a_broken_engine_is_a_model_error(files, tmp_path):
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot open it"):
        evaluate(emulated("haswell"), files, tmp_path / "y.npz", engine="broken.onnx")


@X86.mark
def test_a_crash_of_the_engine_library_is_quoted(files, tmp_path, monkeypatch):
    """ONNX Runtime crashes where an ARM processor shows it the host's /proc/cpuinfo."""
    emulated("cortex-a76")
    root = user_space.installed_root("cortex-a76")
    for name in (user_space.WHEELS, "usr", "lib"):
        (tmp_path / name).symlink_to(root.parent / name)
    view = tmp_path / "cortex-a76"
    view.mkdir()
    for name in ("usr", "lib"):
        (view / name).symlink_to(tmp_path / name)
    monkeypatch.setattr(user_space, "installed_root", lambda _: view)
    with pytest.raises(DeviceError, match=r"ended \(SIGSEGV\) instead of answering 'open'.*uncaught target signal 11"):
        evaluate(EmulatedDevice("cortex-a76"), files, tmp_path / "y.npz")


def test_a_kill_midway_is_a_device_error(files, tmp_path):
    device = emulated("haswell")
    killer = threading.Thread(target=kill_first_child)
    killer.start()
    with pytest.raises(DeviceError, match=r"ended \(SIGKILL\) instead of answering 'open'"):
        evaluate(device, files, tmp_path / "y.npz")
    killer.join()
    assert not (tmp_path / "y.npz").exists()


def kill_first_child():
    """Kill the first child of this process that QEMU runs in, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and "qemu" in (path / "cmdline").read_text():
                    os.kill(int(path.name), signal.SIGKILL)
                    return
        time.sleep(0.01)


def test_a_slow_answer_is_a_device_error(files, tmp_path):
    with pytest.raises(DeviceError, match=r"did not answer 'open' in 0\.05 s"):
        evaluate(emulated("haswell", timeout_seconds=0.05), files, tmp_path / "y.npz")


def test_there_is_no_latency(files, tmp_path):
    device = EmulatedDevice("cortex-a76")
    with pytest.raises(DeviceError, match="emulated:cortex-a76: not measured: emulated time"):
        device.profile({}, ORT, files / "x.npz", tmp_path, ProfileConfig(), lambda *_: None)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime-web", "my_engine.py:open_engine"])
def test_other_runtimes_are_refused(files, tmp_path, runtime):
    with pytest.raises(DeviceError, match=f"emulated:haswell does not run engines of {re.escape(runtime)}, only of"):
        evaluate(emulated("haswell"), files, tmp_path / "y.npz", runtime=Runtime(runtime))


def test_openvino_is_refused_on_arm_with_the_reason(files, tmp_path):
    with pytest.raises(DeviceError, match="only of onnxruntime: OpenVINO's INT8 is wrong on an emulated ARM processor"):
        evaluate(emulated("cortex-a76"), files, tmp_path / "y.npz", runtime=Runtime("openvino"))


def test_openvino_runs_on_x86(files, tmp_path):
    found = evaluate(emulated("haswell"), files, tmp_path / "y.npz", runtime=Runtime("openvino"))
    for name, expected in exact("reduced").items():
        np.testing.assert_array_equal(found[name], expected)


# --- processors and installing


def test_processors_have_a_short_name():
    assert [EmulatedDevice(name).name for name in ("a72", "cortex-a72", "a76", "haswell")] == [
        "emulated:cortex-a72",
        "emulated:cortex-a72",
        "emulated:cortex-a76",
        "emulated:haswell",
    ]


def test_an_unknown_processor_is_answered_with_the_nearest():
    with pytest.raises(DeviceError, match="no processor 'cortex-a67' can be emulated; did you mean 'cortex-a76'"):
        EmulatedDevice("cortex-a67")


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    """An empty cache folder, and a network without an answer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "apt.conf").write_text('Acquire::Retries "0";')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return tmp_path / "edgekd" / "emulators"


@pytest.mark.usefixtures("nothing_installed")
def test_what_is_not_installed_names_the_command(files, tmp_path):
    device = EmulatedDevice("cortex-a76")
    message = "emulated:cortex-a76 is not installed on this host: edgekd device install emulated:cortex-a76"
    assert device.missing() == message
    with pytest.raises(DeviceError, match=message):
        device.describe(ORT)
    with pytest.raises(DeviceError, match=message):
        evaluate(device, files, tmp_path / "y.npz")


@pytest.mark.parametrize("processor", processors())
def test_without_qemu_the_package_is_named(processor, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert user_space.installed_root(processor) is None
    with pytest.raises(DeviceError, match=r"needs qemu-\w+-static.*apt-get install qemu-user-static"):
        install_processor(processor, lambda *_: None)


def test_an_old_qemu_is_refused(tmp_path, monkeypatch):
    old = tmp_path / "qemu-aarch64-static"
    old.write_text("#!/bin/sh\necho 'qemu-aarch64 version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6)'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"emulating cortex-a76 needs QEMU 7\.2 or newer"):
        install_processor("cortex-a76", lambda *_: None)


@QEMU.mark
def test_without_apt_it_is_said(tmp_path, monkeypatch, nothing_installed):
    (tmp_path / "qemu-aarch64-static").symlink_to(shutil.which("qemu-aarch64-static"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="which needs apt-get and dpkg-deb: install it on Debian or Ubuntu"):
        install_processor("cortex-a76", lambda *_: None)


@APT.mark
def test_without_a_network_nothing_is_left(nothing_installed):
    steps = []
    with pytest.raises(DeviceError, match=r"Debian's packages cannot be had from http\S+; check the network"):
        install_processor("cortex-a76", lambda *step: steps.append(step))
    assert steps == [(0, 5, "Debian's package lists")]
    assert [path.suffix for path in nothing_installed.iterdir()] == [".lock"]


@APT.mark
def test_a_killed_installation_is_not_taken_for_whole_and_swept(nothing_installed, monkeypatch):
    code = (
        "from edgekd.devices.emulated.install import install_processor\n"
        "install_processor('cortex-a76', lambda *step: print(step, flush=True))"
    )
    with socket.create_server(("127.0.0.1", 0)) as mirror:  # takes connections and never answers
        environment = {**os.environ, "http_proxy": f"http://127.0.0.1:{mirror.getsockname()[1]}"}
        with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            connection, _ = mirror.accept()
            process.kill()
        connection.close()
    assert user_space.installed_root("cortex-a76") is None
    assert len([path for path in nothing_installed.iterdir() if path.is_dir()]) == 1
    with pytest.raises(DeviceError, match="cannot be had"):
        install_processor("cortex-a76", lambda *_: None)
    assert not [path for path in nothing_installed.iterdir() if path.is_dir()]


@APT.mark
def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"file/edgekd/emulators: cannot be made a folder.*with XDG_CACHE_HOME"):
        install_processor("cortex-a76", lambda *_: None)
