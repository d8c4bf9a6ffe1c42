import pytest
from trees import INTEL, ORIN, plant

from edgekd.runtime.measure.sensors import SensorReading, read_sensors, throttled


def test_a_jetson(tmp_path):
    assert read_sensors(plant(tmp_path, ORIN), gpu=True) == SensorReading(51.437, 1300.5, 3, throttled_now=False)
    assert read_sensors(tmp_path).clock_mhz == 1728


def test_an_intel_processor(tmp_path):
    assert read_sensors(plant(tmp_path, INTEL)) == SensorReading(63, 4200, 12, throttled_now=None)


def test_a_machine_that_tells_nothing(tmp_path):
    assert read_sensors(tmp_path) == read_sensors(tmp_path, gpu=True) == SensorReading(None, None, None, None)


def test_an_alert_stands_while_its_state_is_not_0(tmp_path):
    plant(tmp_path, {**ORIN, "sys/class/thermal/cooling_device0/cur_state": "1"})
    assert read_sensors(tmp_path).throttled_now is True


@pytest.mark.parametrize("text", ["", "unknown", "0x10"])
def test_what_is_no_number_is_no_reading(tmp_path, text):
    assert read_sensors(plant(tmp_path, {"sys/class/thermal/thermal_zone0/temp": text})).temperature_c is None


@pytest.mark.parametrize(
    ("events", "now", "expected"),
    [
        ((3, 3), None, False),
        ((3, 4), None, True),
        ((3, 3), True, True),
        ((None, None), False, False),
        ((None, None), None, None),
    ],
)
def test_throttling_is_a_count_that_grew_or_an_alert_that_stands(events, now, expected):
    before, after = (SensorReading(50, 1000, count, throttled_now=now) for count in events)
    assert throttled(before, after) is expected
