"""The page docs/reference/known-models.md, written from benchmarks/results/real.json alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contestants import FLOAT
from real_goals import GOALS, OURS, able_peers, p50_us, peers_of, ratio, row_of

from edgekd.files import write_text
from edgekd.gram.output_kind import MAX_DIVERGENCE, MEASURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    Found = Mapping[str, Any]

PAGE = "known-models.md"
_INT8 = "edgekd, INT8"
_INTRODUCTION = """\
# Known models

Written by `python benchmarks/real.py --only page` from `benchmarks/results/real.json`; nothing here is written by hand.

Published networks, fetched by hash from the packages that they come in and given real samples in their own
preprocessing, are built with `edgekd build --model` and quantized by edgekd's peers. What a network's outputs are is
said with `--output NAME=KIND`; all else is default. Every contestant gets the same float network and the same
calibration samples, and is run by the engine that it is for: ONNX Runtime, and OpenVINO where the name says so.

- **divergence**: how far the answers to the test samples are from the float network's, by the measure of each output's
  kind, as a share of the limit to which the gate holds that kind; of several outputs the worst. 1 is the limit.
- **p50**: batch 1, one thread, all contestants of a network in turns in one run, each in a process of its own.
- **speed**: the float network's p50 in ONNX Runtime over this one's.
- **time** of quantizing alone, without the imports of libraries: of edgekd that of the stages that import, write and
  repair. **whole**: seconds from the start of the process to its end, in which edgekd also judges, times and bundles.
- **memory**: the most that the process and those below it held at once, shared pages counted once.
- **INT8**: how many of the layers with weights compute in it; of OpenVINO's files they are not counted.
"""
_GOALS = """\
A peer *manages* where its result is faster than float beyond noise and its divergence within the limit. A goal that a
network does not bear on, or that was not measured there, is not counted.
"""
_VERDICTS = {True: "met: ", False: "**missed**: ", None: "–: "}


def write_page(result: Found, folder: Path) -> None:
    """Write the page."""
    parts = [_INTRODUCTION]
    for instructions, processor in result["processors"].items():
        machine, networks = processor["machine"], processor["networks"]
        parts += [
            f"## {machine['cpu']}: {instructions or 'no INT8 instructions'}\n",
            f"{machine['os']}, {machine['logical_cores']} logical cores; {_versions(networks)}.\n",
            _models(networks),
            "### The goals\n",
            _GOALS,
            _summary(networks),
            _goals(networks),
        ]
        for name, found in networks.items():
            parts += [f"### {name}\n", _facts(found), _contestants(found), *_failures(found)]
    parts += ["## The limits of divergence\n", _limits()]
    write_text(folder / PAGE, "\n".join(parts))


def _versions(networks: Found) -> str:
    rows = [row for found in networks.values() for row in found["contestants"].values()]
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    shown = ("edgekd", "onnxruntime", "openvino", "nncf", "olive-ai", "nvidia-modelopt")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)


def _models(networks: Found) -> str:
    header = ["network", "family", "licence", "float p50", "ships", "p50", "speed", "size", "divergence", "metric",
              "INT8 p50", "fastest peer within the limit", "closest peer"]  # fmt: skip
    return markdown(header, [_model(name, found) for name, found in networks.items()])


def _model(name: str, found: Found) -> list[str]:
    row, reference = row_of(found, OURS), row_of(found, FLOAT)
    peers = peers_of(found)
    fastest = next(iter(able_peers(found)), None)
    closest = min(peers, key=lambda peer: found["contestants"][peer]["divergence_limits"], default=None)
    ours = ["failed" if OURS in found["contestants"] else "not measured", "–", "–", "–", "–", "–"]
    if row is not None and reference is not None:
        shipped = row["precision"] if row["released"] else f"nothing ({row['precision']} rejected)"
        ours = [
            shipped,
            _milliseconds(p50_us(found, OURS)),
            _speed(found, OURS),
            f"{row['size_bytes'] / 1e6:.2f} of {reference['size_bytes'] / 1e6:.2f} MB",
            f"{row['divergence_limits']:.3f}",
            _metric(row, reference),
        ]
    licence = found["licence"]
    return [
        name, found["family"], licence, _milliseconds(p50_us(found, FLOAT)), *ours,
        _milliseconds(p50_us(found, _INT8)), _peer(found, fastest), _peer(found, closest),
    ]  # fmt: skip


def _peer(found: Found, name: str | None) -> str:
    if name is None:
        return "none"
    divergence = found["contestants"][name]["divergence_limits"]
    return f"{name}: {_milliseconds(p50_us(found, name))}, {divergence:.3f}"


def _summary(networks: Found) -> str:
    rows = []
    for title, (judge, share) in GOALS.items():
        verdicts = [goal.met for found in networks.values() if (goal := judge(found)).met is not None]
        met = sum(verdicts)
        word = "not measured" if not verdicts else "met" if met >= share * len(verdicts) else "**missed**"
        rows.append([title, f"{share:.0%}", f"{met} of {len(verdicts)}", word])
    return markdown(["goal", "of the networks", "found", "verdict"], rows)


def _goals(networks: Found) -> str:
    rows = []
    for name, found in networks.items():
        judged = [judge(found) for judge, _ in GOALS.values()]
        rows.append([name, *(f"{_VERDICTS[goal.met]}{goal.found}" for goal in judged)])
    return markdown(["network", *GOALS], rows)


def _facts(found: Found) -> str:
    outputs = ", ".join(f"`{name}` ({kind})" for name, kind in found["outputs"].items())
    return (
        f"{found['family'].capitalize()}; `{found['member']}` of {found['package']} ({found['licence']}), SHA-256 "
        f"`{found['member_sha256'][:16]}…`. Judged by {outputs}, on {found['test_samples']} samples; calibrated with "
        f"{found['calibration_samples']} others.\n"
    )


def _contestants(found: Found) -> str:
    header = ["contestant", "INT8", "divergence", "worst output", "changed", "metric", "p50", "speed", "size MB",
              "time s", "whole s", "memory MB"]  # fmt: skip
    return markdown(header, [_row(found, name) for name in found["contestants"] if row_of(found, name)])


def _row(found: Found, name: str) -> list[str]:
    row, reference = found["contestants"][name], found["contestants"][FLOAT]
    worst = max(row["answers"], key=lambda output: _share(row["answers"][output]))
    answer = row["answers"][worst]
    shipped = ""
    if "precision" in row:
        shipped = f" ({'ships' if row['released'] else 'rejects'} {row['precision']})"
    return [
        name + shipped,
        "–" if row["layers"] is None else f"{row['quantized_layers']} of {row['layers']}",
        f"{row['divergence_limits']:.3f}",
        f"`{worst}` {answer['divergence']['mean']:.2g}",
        "–" if answer["changed"] is None else f"{answer['changed']['mean']:.2%}",
        _metric(row, reference),
        _milliseconds(p50_us(found, name)),
        "1" if name == FLOAT else _speed(found, name),
        f"{row['size_bytes'] / 1e6:.2f}",
        _number(row.get("seconds"), 1),
        _number(row.get("wall_s"), 1),
        _number(row.get("peak_tree_bytes"), 1e6),
    ]


def _share(answer: Found) -> float:
    share: float = answer["divergence"]["mean"] / MAX_DIVERGENCE[answer["kind"]]
    return share


def _metric(row: Found, reference: Found) -> str:
    if not row["metrics"]:
        return "no labels"
    changes = {key: value - reference["metrics"][key] for key, value in row["metrics"].items()}
    return ", ".join(f"{key.replace('_', ' ')} {row['metrics'][key]:.4f} ({by:+.4f})" for key, by in changes.items())


def _speed(found: Found, name: str) -> str:
    between = ratio(found, name, FLOAT)
    if between is None:
        return "–"
    value, low, high = (1 / between[key] for key in ("value", "high", "low"))
    return f"{value:.2f}× ({low:.2f} to {high:.2f})"


def _milliseconds(us: float | None) -> str:
    return "–" if us is None else f"{us / 1e3:.3g} ms"


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.3g}"


def _failures(found: Found) -> Iterable[str]:
    for name, row in found["contestants"].items():
        if "failed" in row:
            yield f"- {name}: {row['failed']}\n"


def _limits() -> str:
    rows = [[kind, measure, f"{MAX_DIVERGENCE[kind]:g}"] for kind, measure in MEASURES.items()]
    return markdown(["kind", "measure", "limit"], rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
