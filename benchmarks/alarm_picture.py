"""The picture of the alarm study: what each measure sees of the same networks, and what the gate says of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from common import drawing

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

_INK = "#808080"  # on white and on black alike
_FAMILIES = {
    "damage": ("weights damaged", "#88a8c8"),
    "fake": ("rounded in simulation", "#33a3a3"),
    "pruned": ("pruned and fine-tuned", "#ee7733"),
    "int8": ("real INT8", "#aa3377"),
    "fusion": ("fusion damaged", "#cc3311"),
}
_MOST, _LEAST = 20, -5  # points of accuracy; more is drawn there
_HARM = 1.5
_PANELS = {"drift": "drift of the modality Gram", "divergence": "divergence of the answers, nats"}
_SMALLEST = {"drift": 2e-4, "divergence": 2e-5}
_VERDICTS = {"pass": "#4c9f70", "warn": "#e6b544", "undecided": "#a0a0a0", "fail": "#c44e52"}
_RULES = {"old rule": "rule before", "defaults": "gate", "defaults, no labels": "gate, no labels"}
_LEAST_LABELLED = 0.035


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw a result."""
    inked = {f"{name}color": _INK for name in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")}
    with drawing(**{"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, **inked}):
        _draw(result, picture)
    svg = picture.read_text(encoding="utf-8")
    picture.write_text(re.sub(r"(\d+\.\d{2})\d{2,}", r"\1", svg), encoding="utf-8")  # half the size
    print(f"wrote {picture}")


def _draw(result: dict[str, Any], picture: Path) -> None:
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1.5))
    first: Axes | None = None
    for column, (measure, title) in enumerate(_PANELS.items()):
        axis = figure.add_subplot(grid[0, column], sharey=first)
        first = first or axis
        _scatter(axis, result, measure, title)
    first.set_ylabel("points of accuracy lost on other samples") if first else None
    for column, who in enumerate(("harmed", "harmless")):
        _bars(figure.add_subplot(grid[1, column]), result, who)
    figure.savefig(picture, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def points(result: dict[str, Any], measure: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return for each family of a result's classifiers measure and loss [2, V]."""
    classifiers = {each["task"] for each in result["networks"] if each["kind"] == "classes"}
    found: dict[str, list[tuple[float, float]]] = {family: [] for family in _FAMILIES}
    for network in result["raw"]:
        if network["task"] not in classifiers:
            continue
        column = network["columns"].index(measure)
        for done, text in network["variants"].items():
            family, where, _ = done.split(" · ")
            figures = text.split()
            found["fusion" if where == "fusion" else family].append((float(figures[column]), 100 * float(figures[0])))
    return {family: np.array(rows).reshape(-1, 2).T for family, rows in found.items()}


def _scatter(axis: Axes, result: dict[str, Any], measure: str, title: str) -> None:
    defaults = result["gate"]["defaults"]
    name = "tau_fail" if measure == "drift" else "max_divergence"
    limit = defaults[name] if measure == "drift" else defaults[name]["classes"]
    smallest = _SMALLEST[measure]
    found = points(result, measure)
    axis.axhspan(_HARM, _MOST + 1, xmax=1, color="#c44e52", alpha=0.07, linewidth=0)
    axis.axvspan(limit, 5, color="#808080", alpha=0.10, linewidth=0)
    for family, (figures, losses) in found.items():
        label, colour = _FAMILIES[family]
        shown = np.clip(losses, _LEAST, _MOST)
        axis.plot(
            np.maximum(figures, smallest), shown, "o", markersize=2.6, markeredgewidth=0, color=colour, label=label,
            alpha=0.8,
        )  # fmt: skip
    figures, losses = np.concatenate(list(found.values()), 1)
    harmed = losses > _HARM
    for x, y, text in (
        (0.03, 0.95, f"missed\n{(figures[harmed] <= limit).mean() * 100:.1f} % of the broken"),
        (0.97, 0.04, f"refused for nothing\n{(figures[~harmed] > limit).mean() * 100:.1f} % of the sound"),
    ):
        at = {"ha": "left" if x < 0.5 else "right", "va": "top" if y > 0.5 else "bottom"}
        axis.text(x, y, text, transform=axis.transAxes, fontsize=8.5, **at)
    axis.axhline(_HARM, color=_INK, linewidth=0.8)
    axis.axvline(limit, color=_INK, linewidth=0.8, linestyle="--")
    axis.text(limit * 0.9, _MOST * 0.72, f"{name} {limit:g}", rotation=90, ha="right", va="top", fontsize=8)
    axis.set(xscale="log", xlim=(smallest * 0.7, 5), ylim=(_LEAST - 0.5, _MOST + 1), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    if measure == "divergence":
        axis.legend(loc="center left", bbox_to_anchor=(0.0, 0.52), frameon=False, fontsize=8, markerscale=2)


def _bars(axis: Axes, result: dict[str, Any], who: str) -> None:
    """Draw what each rule says of the harmed or of the harmless, tasks of the same weight."""
    rules = {name: label for name, label in _RULES.items() if result["gate"]["rules"].get(name)}
    for row, name in enumerate(rules):
        tasks = result["gate"]["rules"][name]["by_task"].values()
        start = 0.0
        for verdict, colour in _VERDICTS.items():
            share = 100 * float(np.mean([task[who][verdict] for task in tasks if task[who]["count"]]))
            axis.barh(row, share, left=start, color=colour, height=0.62, label=verdict if row == 0 else None)
            if share > 100 * _LEAST_LABELLED:
                axis.text(start + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8.5, color="white")
            start += share
    axis.set(yticks=range(len(rules)), yticklabels=rules.values(), xlim=(0, 100), xticks=[])
    axis.set_title(f"what is said of the {'broken' if who == 'harmed' else 'sound'}, % of all kinds", fontsize=9)
    axis.invert_yaxis()
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if who == "harmed":
        axis.legend(loc="upper left", bbox_to_anchor=(0, -0.02), ncols=4, frameon=False, fontsize=8.5)
