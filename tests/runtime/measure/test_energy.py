"""On recorded trees of files: no sensor was at hand."""

import time

import pytest
from commands import as_nobody
from trees import INTEL, ORIN, plant

from edgekd.errors import DeviceError
from edgekd.runtime.measure.energy import find_rails, measure_energy

RAPL = "sys/class/powercap/intel-rapl:0"
TRIO = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


def test_the_package_is_the_default_of_rapl(tmp_path):
    (rail,) = find_rails(root=plant(tmp_path, INTEL))
    assert rail.name == "RAPL package-0"
    assert rail.read() == 1_000_000


def test_a_part_of_a_package_is_named_by_its_path(tmp_path):
    (rail,) = find_rails(["package-0/core"], plant(tmp_path, INTEL))
    assert (rail.name, rail.read()) == ("RAPL package-0/core", 400_000)


def test_rapl_counts_uj_and_begins_anew(tmp_path):
    (rail,) = find_rails(root=plant(tmp_path, {**INTEL, f"{RAPL}/max_energy_range_uj": "10000000"}))
    assert rail.watts([0.0, 1.0, 3.0], [1_000_000, 4_000_000, 7_000_000]) == 2.0
    assert rail.watts([0.0, 1.0, 2.0], [9_000_000, 1_000_000, 3_000_000]) == 2.0  # 2 J over the end, then 2 J


def test_the_rails_of_a_jetson_are_volts_times_amperes(tmp_path):
    rails = find_rails(TRIO, plant(tmp_path, ORIN))
    assert [rail.name for rail in rails] == [f"INA3221 {name}" for name in TRIO]
    watts = [rail.watts([0, 1], [rail.read()] * 2) for rail in rails]
    assert watts == pytest.approx([3.8, 1.9, 3.5])


def test_power_between_readings_is_a_trapezoid(tmp_path):
    rail = find_rails(TRIO, plant(tmp_path, ORIN))[0]
    assert rail.watts([0, 1, 3], [1_000_000, 3_000_000, 3_000_000]) == pytest.approx((2 + 6) / 3)


def test_the_module_is_the_default_of_a_jetson(tmp_path):
    (rail,) = find_rails(root=plant(tmp_path, {**ORIN, "sys/class/hwmon/hwmon4/in1_label": "VDD_IN"}))
    assert rail.name == "INA3221 VDD_IN"


@pytest.mark.parametrize(
    ("files", "wanted", "message"),
    [
        ({}, [], "no power sensor: no RAPL in /sys/class/powercap and no INA3221 in /sys/class/hwmon"),
        (INTEL, ["VDD_IN"], "no power sensor called VDD_IN; this machine has package-0, package-0/core"),
        (ORIN, [], "no power sensor called VDD_IN; this machine has VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"),
        ({**INTEL, f"{RAPL}/energy_uj": "much"}, [], "energy_uj: cannot be read: invalid literal"),
    ],
)
def test_what_is_lacking_is_named(tmp_path, files, wanted, message):
    with pytest.raises(DeviceError, match=message):
        find_rails(wanted, plant(tmp_path, files))


def test_a_counter_that_cannot_be_opened_is_named(tmp_path):
    plant(tmp_path, INTEL)
    (tmp_path / RAPL / "energy_uj").unlink()
    with pytest.raises(DeviceError, match="energy_uj: cannot be read"):
        find_rails(root=tmp_path)


def test_a_counter_that_is_for_root_alone_says_so(tmp_path):
    (rail,) = find_rails(root=plant(tmp_path, INTEL))
    (tmp_path / RAPL / "energy_uj").chmod(0o000)
    said = "this user may not read it; RAPL is for root alone on most systems"
    with as_nobody(), pytest.raises(DeviceError, match=said):
        rail.read()


def test_idle_power_is_subtracted(tmp_path):
    """A counter that a run drives: 1 J each, on top of what idling uses, which is nothing."""
    (rail,) = find_rails(root=plant(tmp_path, INTEL))
    runs = 0

    def run():
        nonlocal runs
        runs += 1
        time.sleep(0.01)
        (tmp_path / RAPL / "energy_uj").write_text(str(1_000_000 * (1 + runs)))

    found = measure_energy([rail], run, 0.3)
    assert found.rail == "RAPL package-0"
    assert found.idle_w == 0
    assert found.seconds >= 0.3
    assert found.millijoules == pytest.approx(1000)
    assert found.busy_w == pytest.approx(runs / found.seconds)


def test_constant_power_costs_an_inference_nothing(tmp_path):
    found = measure_energy(find_rails(TRIO, plant(tmp_path, ORIN)), lambda: time.sleep(0.01), 0.3)
    assert (found.idle_w, found.busy_w) == pytest.approx((9.2, 9.2))
    assert found.millijoules == pytest.approx(0, abs=1e-6)
    assert found.rail == "INA3221 VDD_GPU_SOC + INA3221 VDD_CPU_CV + INA3221 VIN_SYS_5V0"
