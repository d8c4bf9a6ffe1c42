import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from requirements import LINUX
from trees import INTEL, ORIN, plant

from edgekd.runtime.measure.machine import cpu_model, identity, jetson_facts, machine_facts


def test_facts_are_known_or_said_to_be_unreadable():
    facts = machine_facts(("onnxruntime", "no-such-package"))
    expected = {"cpu", "logical_cores", "governor", "clock_limits", "turbo", "int8_instructions", "memory", "os"}
    expected |= {"arch", "python"}
    assert facts.keys() == expected | {"numpy", "onnxruntime"}
    assert all(isinstance(value, str) and value for value in facts.values())
    assert facts["onnxruntime"] == metadata.version("onnxruntime")
    assert facts["cpu"] == cpu_model()


@LINUX.mark
def test_int8_instructions_are_the_processors():
    words = Path("/proc/cpuinfo").read_text().split()
    listed = machine_facts()["int8_instructions"]
    for flag in ("avx2", "avx_vnni", "avx512_vnni", "asimddp"):
        assert (flag in words) == (flag in listed.split(", "))


def test_peak_memory_is_what_was_touched_even_after_it_is_freed():
    code = (
        "import numpy as np; from edgekd.runtime.measure.machine import peak_rss_bytes; before = peak_rss_bytes();"
        "block = np.ones(100_000_000, np.uint8); del block; print(peak_rss_bytes() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 90e6 < grown < 120e6


def test_a_child_does_not_inherit_its_parents_peak():
    block = np.ones(250_000_000, np.uint8)
    code = "from edgekd.runtime.measure.machine import peak_rss_bytes; print(peak_rss_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 5e6 < child < 200e6 < len(block)


# --- recorded trees of other machines


def test_a_jetson_tells_its_release_power_mode_and_clocks(tmp_path):
    facts = machine_facts(root=plant(tmp_path, ORIN))
    assert facts["cpu"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts["l4t"] == "36.4.3"
    assert facts["jetpack"] == "6.2+b77"
    assert facts["power_mode"] == "MAXN"
    assert facts["gpu_clock_limits"] == "1300 MHz, fixed"
    assert facts["clock_limits"] == "730-2202 MHz"
    assert facts["governor"] == "schedutil"
    assert facts["int8_instructions"] == "asimddp"


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path):
    without = {name: text for name, text in ORIN.items() if name != "etc/nvpmodel.conf"}
    assert jetson_facts(plant(tmp_path, without))["power_mode"] == "mode 0"


def test_two_boards_of_one_disk_image_have_identities_of_their_own(tmp_path):
    image = {"etc/machine-id": "f3a1\n"}
    a, b, pc = tmp_path / "a", tmp_path / "b", tmp_path / "pc"
    plant(a, {**image, "proc/device-tree/serial-number": "1420921055512\0"})
    plant(b, {**image, "proc/device-tree/serial-number": "1420921055513\0"})
    plant(pc, image)
    assert len({identity(a), identity(b), identity(pc)}) == 3
    assert identity(a) == identity(a)
    assert "1420921055512" not in identity(a)


def test_another_machine_has_no_facts_of_a_jetson(tmp_path):
    assert jetson_facts(plant(tmp_path, INTEL)) == {}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("intel_pstate/no_turbo", "1", "off"),
        ("intel_pstate/no_turbo", "0", "on"),
        ("cpufreq/boost", "1", "on"),
        ("cpufreq/boost", "0", "off"),
    ],
)
def test_turbo_is_told_by_either_driver(tmp_path, file, text, expected):
    root = plant(tmp_path, {f"sys/devices/system/cpu/{file}": text})
    assert machine_facts(root=root)["turbo"] == expected


def test_an_empty_machine_says_not_readable(tmp_path):
    facts = machine_facts(root=tmp_path)
    assert {facts[name] for name in ("governor", "clock_limits", "turbo", "memory")} == {"not readable"}
