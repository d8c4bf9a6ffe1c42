"""The page docs/explanation/compress.md with its pictures, written from benchmarks/results/compress.json alone."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from common import drawing
from compress_goals import GOALS, OURS, judge, latency_of, rivals, rows_of
from contestants import FLOAT

from edgekd.files import atomic_path, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TITLES = {
    "digits": "digits: the pruned student of the shipped task",
    "gestures": "gestures: the pruned student of the shipped task",
    "ocr-cls": "ocr-cls: which way up a line of text is (PaddleOCR mobile v2.0)",
    "ocr-det": "ocr-det: where text is in an image (PP-OCRv4)",
    "ocr-rec": "ocr-rec: what a line of text says (PP-OCRv4)",
}
_INTRODUCTION = """\
# INT8 by edgekd and by its peers

Written by `python benchmarks/compress.py --only page` from
`benchmarks/results/compress.json`; nothing here is written by hand.

Every contestant gets the same float network and the same calibration samples, and quantizes in a process of its own.
"default" is what it does when told nothing else; "best" is the best that its options allow here: ranges by extremes,
weights by channel and in 7 bits where it has them, arithmetic on raw inputs left float (`benchmarks/peers/quantize.py`
has each option). What comes out runs in ONNX Runtime on one machine. "edgekd" is what `edgekd build` ships, which is
float32 where INT8 brings no speed; "edgekd, INT8" is `--set quantize.precision=int8`; "least drift" is that with
`repair=best` and `slack=0.05`: the layers that hurt most go back to float as long as this costs at most 5 % of time.

- **INT8**: how many of the layers with weights compute in it.
- **drift**: mean distance of the Gram of the embeddings from the float network's, on the test samples; read before any
  rounding of the output itself, in all alike. For networks with one input it is the Gram of the samples.
- **drop**: how much worse the metric is than the float network's; **flips**: share of samples whose class changed.
- **p50**: batch 1, one thread, all contestants of a network in turns of 50 inferences; with the first seed.
- **peak RSS** and **time** of quantizing, libraries included; of edgekd the whole build's memory, and the time of the
  stages that write and repair INT8. Other work ran on the same two cores: the time is an order of magnitude.

The goals are judged against the peer that is best in each: drift at most half of the least, p50 not above the fastest
beyond noise, metric not below the highest beyond noise. The closest peer is often among the slowest, so the last column
names those that drift no more than edgekd does and are not clearly slower. A peer that leaves every layer float is no
rival.
"""


def write_page(result: dict[str, Any], folder: Path) -> None:
    """Write the page and a picture for each network whose latency was measured."""
    parts = [_INTRODUCTION, _machine(result), "## The goals\n", _goals(result["models"])]
    for name, model in result["models"].items():
        parts.append(f"## {TITLES[name]}\n")
        if any(latency_of(model, contestant) for contestant in _contestants(model)):
            with drawing(**{"svg.fonttype": "none", "font.size": 9}):
                _draw(model, TITLES[name], folder / f"compress-{name}.svg")
            parts.append(f"![drift against latency of {name}](compress-{name}.svg)\n")
        parts += [_table(model), *_failures(model)]
    write_text(folder / "compress.md", "\n".join(parts))


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    rows = [
        row
        for model in result["models"].values()
        for run in model["runs"].values()
        for row in run["contestants"].values()
    ]
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    shown = ("onnxruntime", "nncf", "olive-ai", "nvidia-modelopt")
    libraries = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return f"Measured on {machine['cpu']} with {machine['int8_instructions']}, {machine['os']}; {libraries}.\n"


def _goals(models: dict[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        for ours in OURS:
            cells = [f"{_VERDICTS[goal.met]}{goal.found}" for goal in judge(model, ours)]
            found = rivals(model, ours)
            rows.append(
                [name, ours + _ships(model, ours), *cells, "–" if found is None else ", ".join(found) or "no peer"]
            )
    return _markdown(["network", "contestant", *GOALS, "as fast and as close"], rows)


_VERDICTS = {True: "met: ", False: "**missed**: ", None: ""}


def _contestants(model: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for run in model["runs"].values() for name in run["contestants"]))


def _ships(model: dict[str, Any], contestant: str) -> str:
    """Say what a build shipped."""
    shipped = dict.fromkeys(row["ships"] for row in rows_of(model, contestant) if "ships" in row)
    return f" (ships {' or '.join(shipped)})" if shipped else ""


def _table(model: dict[str, Any]) -> str:
    runs, samples = len(model["runs"]), model["samples"]
    metric = "" if model["metric"] == "none" else f"{model['metric']} of the float network {_float_metric(model)}; "
    seeds = f"mean ± standard deviation over {runs} seeds" if runs > 1 else "one network"
    header = ["contestant", "INT8", "drift", "drop", "flips", "p50 µs", "size kB", "peak RSS MB", "time s"]
    rows = [_row(model, name) for name in _contestants(model) if rows_of(model, name)]
    return f"{samples} test samples, {seeds}; {metric}sizes are those of the graph that is deployed.\n\n" + _markdown(
        header, rows
    )


def _float_metric(model: dict[str, Any]) -> str:
    return _spread([row["metric"] for row in rows_of(model, FLOAT)], 4)


def _row(model: dict[str, Any], name: str) -> list[str]:
    rows, p50 = rows_of(model, name), latency_of(model, name)
    sign = 1 if model["higher_is_better"] else -1
    drops = [
        None if row["metric"] is None else sign * (reference["metric"] - row["metric"])
        for row, reference in zip(rows, rows_of(model, FLOAT), strict=True)
    ]
    return [
        name + _ships(model, name),
        "/".join(dict.fromkeys(f"{row['quantized_layers']} of {row['layers']}" for row in rows)),
        _spread([row["drift"] for row in rows], 5),
        _spread(drops, 4),
        _spread([row["flips"] for row in rows], 4),
        "–" if p50 is None else f"{p50:.1f}",
        _spread([row["size_bytes"] / 1e3 for row in rows], 1),
        _mean([row.get("peak_rss_bytes") for row in rows], 1e6),
        _mean([row.get("seconds") for row in rows], 1),
    ]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _mean(values: Sequence[float | None], unit: float) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known) / unit:.3g}" if known else "–"


def _failures(model: dict[str, Any]) -> Iterable[str]:
    for seed, run in model["runs"].items():
        for name, row in run["contestants"].items():
            if "failed" in row:
                yield f"- {name}, seed {seed}: {row['failed']}\n"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


#: Of Okabe and Ito, told apart by colour-blind readers too; and a shape for each setting of a peer, in its order.
_COLOURS = {
    "edgekd": "#D55E00",
    "ONNX Runtime": "#0072B2",
    "NNCF": "#009E73",
    "Olive": "#CC79A7",
    "ModelOpt": "#56B4E9",
}
_SHAPES = "os^"


def _draw(model: dict[str, Any], title: str, path: Path) -> None:
    """Draw drift against latency, with a label for each contestant in a column beside the points."""
    from matplotlib import pyplot

    points = {
        name: (p50, statistics.fmean(row["drift"] for row in rows_of(model, name)))
        for name in _contestants(model)
        if (p50 := latency_of(model, name)) is not None
    }
    figure, axes = pyplot.subplots(figsize=(8, 4.2), facecolor="white")
    figure.subplots_adjust(left=0.09, right=0.62, bottom=0.13, top=0.91)
    seen: dict[str, int] = {}
    for name, (p50, drift) in points.items():
        peer = name.partition(",")[0]
        seen[peer] = seen.get(peer, -1) + 1
        axes.scatter(p50, drift, s=42, color=_COLOURS.get(peer, "black"), marker=_SHAPES[seen[peer]], zorder=3)
    # Linear below the least drift that there is, so that none at all has a place too.
    axes.set_yscale("symlog", linthresh=min(drift for _, drift in points.values() if drift > 0))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="p50 of one inference, µs", ylabel="Gram drift (mean over seeds)", title=title)
    axes.grid(alpha=0.3)
    _label(axes, points)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _label(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write the names in a column, in the order of the points' heights, each with a line to its point."""
    in_order = sorted(points, key=lambda name: (points[name][1], points[name][0]))
    for place, name in enumerate(in_order):
        colour = _COLOURS.get(name.partition(",")[0], "black")
        axes.annotate(
            name,
            points[name],
            xytext=(1.05, (place + 0.5) / len(in_order)),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": colour, "lw": 0.6, "alpha": 0.6},
        )
