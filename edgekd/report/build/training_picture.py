"""Pictures of training: losses, shares of the gradient, and the metric and drift on the validation split."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.report.svg.chart import COLOURS, DASHES, Curve, Panel, chart_figure, chart_svg

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.report.results import BuildReport

#: Folder of the pictures, beside the report.
FOLDER = "training"

_LOSS, _SHARE = "loss.", "share."
_BASE = ("loss", "ce", "kd")

History = list[dict[str, float]]


def pictures(report: BuildReport) -> dict[str, str]:
    """Return the picture of each network that was trained as SVG, by the network's name."""
    metric = report.targets[0].ledger.metric if report.targets else "metric"
    return {name: training_svg(name, history, metric) for name, history in report.training.items()}


def file_name(network: str) -> str:
    """Return the name of a network's picture."""
    return f"{network.replace(' ', '-')}.svg"


def training_svg(network: str, history: History, metric: str) -> str:
    """Return the picture of one training as a file: a panel for each kind of figure that it has.

    Args:
        network: Name of the network.
        history: The figures of each epoch.
        metric: Name of the task's metric.
    """
    return chart_svg(_head(network), _panels(history, metric))


def training_figure(name: str, network: str, history: History, metric: str) -> str:
    """Return the same picture for a page, under an id that no other picture of the page has."""
    return chart_figure(name, _head(network), _panels(history, metric))


def _head(network: str) -> str:
    return f"Training of the {network} network"


def _panels(history: History, metric: str) -> list[Panel]:
    names = dict.fromkeys(name for epoch in history for name in epoch)
    extras = [name.removeprefix(_LOSS) for name in names if name.startswith(_LOSS)]
    base = [name for name in _BASE if name in names]
    looks = dict(zip((*base, *extras), _looks(len(base) + len(extras)), strict=True))

    def line(figure: str, name: str) -> Curve:
        return Curve(name, _values(history, figure), *looks[name])

    losses = [*(line(name, name) for name in base), *(line(f"{_LOSS}{name}", name) for name in extras)]
    shares = [line(f"{_SHARE}{name}", name) for name in extras]
    panels = [Panel("Losses", "mean of the epoch", losses)]
    if any(f"{_SHARE}{name}" in names for name in extras):
        panels.append(Panel("Added losses' share of the gradient", "× that of CE and KD", shares))
    panels.append(_validation(history, metric, "drift" in names))
    return panels


def _looks(count: int) -> list[tuple[str, str]]:
    """Return a colour and a dash for each of ``count`` lines, no two alike."""
    return [(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]) for index in range(count)]


def _values(history: History, figure: str) -> Sequence[float]:
    return [epoch.get(figure, math.nan) for epoch in history]


def _validation(history: History, metric: str, drifts: bool) -> Panel:
    lines = [Curve(metric, _values(history, "validation"), COLOURS[2])]
    if not drifts:
        return Panel("Validation split", metric, lines, log=False)
    lines.append(Curve("Gram drift from the anchor", _values(history, "drift"), COLOURS[1], DASHES[1], right=True))
    return Panel("Validation split", metric, lines, "mean |Δ cosine|", log=False)


def write_pictures(report: BuildReport, folder: Path) -> None:
    """Write the pictures into the report's folder, and remove those of networks that are no longer trained."""
    pictures_folder = folder / FOLDER
    wanted = {file_name(name): svg for name, svg in pictures(report).items()}
    for old in pictures_folder.glob("*.svg"):
        if old.name not in wanted:
            old.unlink()
    for name, svg in wanted.items():
        write_text(pictures_folder / name, svg)
