from dataclasses import replace

import numpy as np
import pytest
from builds import build, latency, profile, target
from profiles import MEASURED, REASONS, WINDOWS, all_of, engine

from edgekd.report.build.latency_tables import (
    branch_table,
    cold_start_line,
    engine_latency_table,
    latency_table,
    measurement_lines,
    method_notes,
)
from edgekd.report.build.markdown import report_markdown
from edgekd.report.table import markdown
from edgekd.runtime.measure.results import LayerTime, Sustained


def test_an_engines_latencies_stand_side_by_side():
    rows = {row[0]: row[1:] for row in engine_latency_table(engine(**MEASURED)).rows}
    table = engine_latency_table(engine(**MEASURED))
    assert [column.name for column in table.columns] == ["ms", "end to end", "compute", "at 30 Hz"]
    assert rows["n"] == ("2000", "2000", "300")
    assert rows["p99"][2] == "withheld"
    assert "withheld" not in rows["p90 bound"]


def test_what_was_not_measured_has_no_column():
    assert [column.name for column in engine_latency_table(engine()).columns] == ["ms", "end to end"]
    assert "import" not in cold_start_line(engine())


def test_a_bound_of_few_inferences_is_withheld():
    few = engine(latency=latency(0.1, 63))
    assert {row[0]: row[1] for row in engine_latency_table(few).rows}["p90 bound"] == "withheld"


def test_models_stand_side_by_side_with_computing_and_starts():
    both = replace(profile(), engines=(*profile().engines[:2], engine(**MEASURED)))
    rows = [row for row in latency_table(both).rows if row[0] in ("compute p50", "import", "load")]
    assert rows[0][1:3] == ("not measured", "not measured")
    assert rows[0][3].startswith("0.0797")
    assert rows[1] == ("import", "not measured", "not measured", "24.9–26.2")


def test_branches_are_shares_with_fusion_and_the_rest_last():
    table = branch_table(all_of(**MEASURED))
    assert table.rows == (
        ("audio", "0.100 (20%)"),
        ("image", "0.300 (60%)"),
        ("fusion", "0.0500 (10%)"),
        ("other", "0.0500 (10%)"),
    )
    assert "compare shares" in table.notes[0]


def test_an_engine_without_layers_says_why_beside_those_that_have_some():
    pair = replace(profile(), engines=(engine(**MEASURED), engine(name="other engine", not_measured=REASONS)))
    table = branch_table(pair)
    assert [column.name for column in table.columns] == ["branch", "shipped ms"]
    assert table.notes[1:] == ("Layers of other engine: not measured: no layers here.",)
    assert branch_table(all_of(not_measured=REASONS)).rows == ()
    assert branch_table(all_of(not_measured=REASONS)).notes == ("Layers of shipped: not measured: no layers here.",)


def test_what_was_measured_is_said_with_its_circumstances():
    energy, paced, sustained = measurement_lines(engine(**MEASURED))
    assert energy == (
        "Energy: 1.23 mJ for one inference, idle subtracted: 12.8 W busy, 9.5 W idle, of RAPL package-0, over 3.0 s."
    )
    assert paced.startswith("Paced: at 30 Hz p50 0.399 ms, max 0.468 ms from arrival to result; ")
    assert paced.endswith("7 of 300 samples arrived before the result of the one before.")
    assert sustained == (
        "Sustained: over 3.0 s the p50 of a second went from 0.200 to 0.220 ms, slowdown 1.10×; 50 to at most 52 °C, "
        "1980 to 2000 MHz, throttled."
    )


def test_a_run_without_sensors_says_so():
    bare = tuple(replace(window, temperature_c=None, clock_mhz=None) for window in WINDOWS)
    run = Sustained(3.0, bare, 1.0, throttled=None, raw_file="x.npy")
    said = measurement_lines(engine(sustained=run))[2]
    assert said.endswith("temperature not measured, clock not measured, throttling not measured.")


def test_what_was_not_measured_has_its_reason():
    lines = measurement_lines(engine(not_measured=REASONS))
    assert [line.partition(": ")[0] for line in lines] == ["Energy", "Paced", "Sustained", "Compute alone"]
    assert all("not measured: no " in line for line in lines)


def test_a_start_is_the_lowest_and_highest_of_its_processes():
    said = cold_start_line(engine(**MEASURED))
    assert "Cold start, 3 fresh processes: import 24.9–26.2 ms, load 30.1–33.9 ms, first run 1.88–2.40 ms." in said


@pytest.mark.parametrize(("processes", "told"), [(1, "one fresh process"), (8, "Student's t over the processes")])
def test_how_depends_on_the_processes(processes, told):
    assert told in " ".join(method_notes(replace(profile(), processes=processes)))


def test_the_page_has_it_all():
    result = target(profile=replace(profile(), engines=(*profile().engines[:2], engine(**MEASURED))))
    page = report_markdown(build(result))
    assert "### Time by branch" in page
    assert "- Energy: 1.23 mJ for one inference" in page
    assert "Layers of student: not measured." in page
    assert "of computing alone beside each, .compute.npy." in page
    for table in (latency_table(result.profile), branch_table(result.profile)):
        assert markdown(table).strip().splitlines()[2] in page


def test_no_figure_is_lost_where_all_times_are_0():
    zero = engine(layers=(LayerTime("a", "Conv", "image", 0.0),))
    assert branch_table(replace(profile(), engines=(zero,))).rows == (("image", "0.0000"),)
    assert np.isfinite(zero.branches_ms["image"])
