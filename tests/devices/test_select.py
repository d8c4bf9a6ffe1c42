"""From what a user says to the machine that engines run on."""

import pytest
from msgspec.structs import replace
from requirements import NO_OPENVINO_GPU, X86

from edgekd.config.target import Hosts
from edgekd.devices.base import Absent
from edgekd.devices.browser.device import BrowserDevice
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.devices.local import LocalDevice
from edgekd.devices.refusals import Refusals
from edgekd.devices.select import assign_devices, install, known_devices, select_device
from edgekd.devices.targets import load_target
from edgekd.errors import DeviceError, TargetError

pytestmark = X86.mark

CPU, PI, JETSON = load_target("cpu"), load_target("raspberry-pi-5"), load_target("jetson-orin")


def test_this_host_runs_what_is_for_it():
    assert isinstance(select_device(CPU, None), LocalDevice)
    assert isinstance(select_device(CPU, "local"), LocalDevice)
    assert isinstance(select_device(load_target("openvino-cpu"), None), LocalDevice)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (PI, "target 'raspberry-pi-5' is for aarch64, and this machine is x86_64"),
        (JETSON, "target 'jetson-orin' is for aarch64, and this machine is x86_64"),
        (replace(CPU, hosts=Hosts(model="Toaster 3000")), "target 'cpu' is for 'Toaster 3000', and this machine is '"),
    ],
)
def test_what_is_not_for_this_host_has_no_device(target, reason):
    found = select_device(target, None)
    assert isinstance(found, Absent)
    assert found.reason.startswith(reason)
    with pytest.raises(DeviceError, match="--device local: target"):
        select_device(target, "local")


@NO_OPENVINO_GPU.mark
def test_openvino_without_a_gpu_has_no_device():
    found = select_device(load_target("openvino-gpu"), None)
    assert isinstance(found, Absent)
    assert "GPU" in found.reason
    with pytest.raises(DeviceError, match="GPU"):
        select_device(load_target("openvino-gpu"), "local")


def test_none_is_none():
    assert select_device(CPU, "none") == Absent("no device was asked for")


@pytest.mark.parametrize(
    ("target", "request_", "said"),
    [
        (CPU, "locale", r"--device locale: there is no such device; did you mean 'local'\?"),
        (CPU, "browser", "target 'cpu' is for onnxruntime, not for a browser"),
        (load_target("browser"), "local", "--device browser"),
        (CPU, "emulated:cortex-a77", "no processor 'cortex-a77' can be emulated; did you mean"),
        (PI, "emulated:haswell", "target 'raspberry-pi-5' is for aarch64, and emulated:haswell is x86_64"),
    ],
)
def test_what_cannot_be_had(target, request_, said):
    with pytest.raises(DeviceError, match=said):
        select_device(target, request_)


def refusals(count):
    return Refusals(count, lambda *_: None)


def test_a_target_whose_device_cannot_be_had_ends_alone():
    taken = refusals(2)
    assert list(assign_devices([CPU, PI], ["local", "raspberry-pi-5=emulated:none"], taken)) == ["cpu"]
    assert "raspberry-pi-5" in taken.reasons
    with pytest.raises(DeviceError, match="emulated"):
        assign_devices([PI], ["emulated:none"], refusals(1))


def test_a_request_is_for_all_targets_or_for_one():
    found = assign_devices([CPU, PI], ["none", "cpu=local"], refusals(2))
    assert isinstance(found["cpu"], LocalDevice)
    assert found["raspberry-pi-5"] == Absent("no device was asked for")


def test_a_request_for_a_target_that_is_not_built():
    said = r"--device gpu=local: 'gpu' is not among the targets of this build; did you mean 'cpu'\?"
    with pytest.raises(TargetError, match=said):
        assign_devices([CPU], ["gpu=local"], refusals(1))


def test_every_known_device_can_be_named():
    names = [device.name for device in known_devices()]
    assert names[:2] == ["local", "browser"]
    assert "emulated:cortex-a76" in names
    kinds = {type(device) for device in known_devices()}
    assert kinds == {LocalDevice, BrowserDevice, EmulatedDevice}


def test_installing():
    assert install("local", lambda *_: None) is None
    with pytest.raises(DeviceError, match=r"no device 'browse' to install; did you mean 'browser'\?"):
        install("browse", lambda *_: None)


def test_an_emulated_arm_processor_does_not_run_openvino():
    target = replace(load_target("openvino-cpu"), hosts=Hosts())
    with pytest.raises(DeviceError, match="does not run engines of openvino"):
        select_device(target, "emulated:cortex-a76")
