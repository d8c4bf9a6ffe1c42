"""docs/explanation/distill.md and its pictures, out of the comparison's JSON."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from common import drawing
from distill_methods import BY_NAME
from matplotlib import pyplot

from edgekd.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ALPHA = 0.05
OURS = "edgekd"
#: Colour-blind safe (Okabe and Ito).
_COLOURS = {"ours": "#D55E00", "gram": "#0072B2", "rival": "#009E73", "baseline": "#555555", "control": "#CC79A7"}
_LEGEND = {
    "ours": "edgekd's default",
    "gram": "Gram family",
    "rival": "rivals",
    "baseline": "baselines",
    "control": "controls",
}


def mean_ranks(cases: Mapping[str, Any]) -> dict[str, float]:
    """Return each method's rank among those that are no controls, mean over cases, best first."""
    names = next(iter(cases.values()))["ranks"]
    means = {name: statistics.fmean(case["ranks"][name] for case in cases.values()) for name in names}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def verdicts(cases: Mapping[str, Any], method: str) -> dict[str, list[str]]:
    """Return the cases in which a method is better or worse than KD with p < 0.05, paired, uncorrected and Holm's."""
    found: dict[str, list[str]] = {"better": [], "better, Holm": [], "worse": [], "worse, Holm": []}
    for name, case in cases.items():
        against = case["against_kd"].get(method)
        if against is None:
            continue
        word = "better" if against["mean"] > 0 else "worse"
        if against["p"] < _ALPHA:
            found[word].append(name)
        if against["p_holm"] < _ALPHA:
            found[f"{word}, Holm"].append(name)
    return found


def write_page(result: dict[str, Any], folder: Path) -> None:
    """Write distill.md, distill-points.svg and distill-drift.svg."""
    cases = result["cases"]
    with drawing():
        _points(cases, folder / "distill-points.svg")
        _drift(cases, folder / "distill-drift.svg")
    write_text(folder / "distill.md", _text(result))
    print(f"wrote {folder / 'distill.md'}")


def _text(result: dict[str, Any]) -> str:
    cases = result["cases"]
    parts = [_HEAD, _cases_table(cases), _RANKED, _ranking(cases), _goals(cases), _losing(cases), _controls(cases)]
    parts += [_PAIRS, _pairing(cases), _PICTURES, *(_case(name, case) for name, case in cases.items())]
    return "\n\n".join(parts) + "\n"


_HEAD = """# Distillation: what each loss is worth

`benchmarks/distill.py` → `benchmarks/results/distill.json` holds every number below, and writes this page. Four tasks
in three regimes, each method in each with five paired seeds: a seed has its own teacher, its own labels, and one
initial student with one order of batches for all methods, so only the loss differs. What counts is the last epoch, on
test samples that chose nothing. Mean ± sd over seeds; differences are paired, with Student's t, and Holm's correction
within a case where it says so.

- **Losses are added to KD** (0.1 CE + 0.9 KD), but *none* (labels alone) and *DKD* (in KD's place). Each rival's
  share is one of 1, 3 and 10 (DKD's beta 1, 4 or 8; the dropout's probability 0.1, 0.2 or 0.3), chosen on the
  validation split by a seed that is not counted; KD's temperature is 4 or 8, chosen likewise, for all methods of a
  case alike. **edgekd** is the recipe's default as it is, with nothing but the temperature chosen by case; but its
  losses and shares were picked with a look at seven of these cases, so on tasks that are not among them it may do less.
- *KD, 3 times as long* and *KD, modality dropout* are baselines of another kind: more time, and another input.
- Controls must not help for what they teach: *shuffled pairs* gives each sample the embeddings of another one of its
  batch, *random teacher* those of a network that was never trained; *Gram of the output* aligns the logits' Gram
  instead of the modalities'.
- *drift* is that of the per-sample Gram from the teacher's, on the test split. *modality missing*: the metric with
  one modality replaced by its training mean, mean over modalities."""

_RANKED = """## The ranking

Mean rank of the test metric among all but the controls, 1 is best. *Better* and *worse* than KD count cases with p <
0.05, paired; in brackets those that hold under Holm's correction within their case."""


_PAIRS = """## What a teacher's pairs hold

The mean cosine of a sample's two embeddings, centred, against that of different samples (± standard error). A block
between two modalities can only teach who belongs to whom where the first is well above the second. In these teachers,
which concatenate embeddings before the head, it hardly is: what the blocks between modalities hold is where two
unrelated spaces happen to lie, and a student that copies it has that much less room. This is why the default aligns
`intra`, and `sample` by a tenth only, which costs nothing and halves the drift; a teacher whose modalities share a
space (trained by contrast, say) is another matter, and `edgekd advise` tells."""

_PICTURES = """## Pictures

![Points over KD with 95 % intervals, a panel for each case](distill-points.svg)

![Mean rank against drift](distill-drift.svg)

## Every case"""


def _cases_table(cases: Mapping[str, Any]) -> str:
    lines = [
        "| case | samples | labelled | student | epochs | teacher | KD | room |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        about, teacher, kd = case["case"], case["teacher"]["metric"], case["raw"]["KD"]["metric"]
        student = ", ".join(f"{key} {value}" for key, value in about["student"].items()) or "the recipe's"
        lines.append(
            f"| {name} | {about['samples'] or 'all'} | {about['labelled']:.0%} | {student} | {about['epochs']} | "
            f"{statistics.fmean(teacher):.3f} | {statistics.fmean(kd):.3f} | "
            f"{100 * (statistics.fmean(teacher) - statistics.fmean(kd)):+.1f} points |"
        )
    return "\n".join(lines)


def _goals(cases: Mapping[str, Any]) -> str:
    ranks, found = mean_ranks(cases), verdicts(cases, OURS)
    first = next(iter(ranks))
    ahead = ", ".join(f"{name} {rank:.1f}" for name, rank in ranks.items() if rank < ranks[OURS])
    best = "met" if first == OURS else f"missed: {ranks[OURS]:.1f}; before it are {ahead}"
    worse = "met" if not found["worse"] else f"missed: {', '.join(found['worse'])}"
    better = "met" if len(found["better"]) >= 3 else "missed"
    names = ", ".join(found["better"]) or "none"
    return "\n".join(
        [
            "## The goals for edgekd's default",
            "",
            f"- The best mean rank: {best}.",
            f"- Never worse than KD beyond noise (p < 0.05): {worse}.",
            f"- Better than KD with p < 0.05 in three cases or more: {better} ({len(found['better'])}: {names}; with "
            f"Holm's correction {len(found['better, Holm'])}).",
        ]
    )


def _controls(cases: Mapping[str, Any]) -> str:
    lines = ["## Do the controls hold?", ""]
    for name, method in BY_NAME.items():
        if method.group != "control" or any(name not in case["raw"] for case in cases.values()):
            continue
        found = verdicts(cases, name)
        mean = 100 * statistics.fmean(case["against_kd"][name]["mean"] for case in cases.values())
        said = [f"{word} than KD in {', '.join(found[word])}" for word in ("better", "worse") if found[word]]
        lines.append(f"- {name}: {mean:+.1f} points over KD in the mean; {'; '.join(said) or 'nowhere beyond noise'}.")
    return "\n".join(lines)


def _losing(cases: Mapping[str, Any]) -> str:
    lines = ["## Where the Gram loses", ""]
    for name, method in BY_NAME.items():
        worse = verdicts(cases, name)["worse"] if method.group in ("gram", "ours") else []
        if worse:
            points = [f"{case} {100 * cases[case]['against_kd'][name]['mean']:+.1f}" for case in worse]
            lines.append(f"- {name}: {', '.join(points)} points against KD.")
    return "\n".join(lines if len(lines) > 2 else [*lines, "In no case beyond noise."])


def _pairing(cases: Mapping[str, Any]) -> str:
    lines = ["| task | pair | matched | shuffled |", "|---|---|---|---|"]
    seen = set()
    for case in cases.values():
        task = case["case"]["task"]
        if task in seen:
            continue
        seen.add(task)
        pairs = sorted(case["teacher"]["pairing"].items(), key=lambda item: -abs(item[1]["matched"]))
        for pair, held in pairs[:3]:
            lines.append(
                f"| {task} | {pair} | {held['matched']:+.3f} ± {held['error']:.3f} | {held['shuffled']:+.3f} |"
            )
    return "\n".join([*lines, "", "The three pairs of each task that are farthest from 0; the JSON has all."])


def _ranking(cases: Mapping[str, Any]) -> str:
    lines = [
        "| method | mean rank | better than KD | worse | points over KD | drift | points, modality missing |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rank in mean_ranks(cases).items():
        found = verdicts(cases, name)
        rows = [case["raw"][name] for case in cases.values()]
        against = [case["against_kd"][name]["mean"] for case in cases.values() if name in case["against_kd"]]
        missing = statistics.fmean(
            statistics.fmean(row["missing"]) - statistics.fmean(case["raw"]["KD"]["missing"])
            for row, case in zip(rows, cases.values(), strict=True)
        )
        words = (
            [f"{len(found[word])} ({len(found[word + ', Holm'])})" for word in ("better", "worse")]
            if against
            else ["–", "–"]
        )
        lines.append(
            f"| {_name(name)} | {rank:.1f} | {words[0]} | {words[1]} | "
            f"{'–' if not against else f'{100 * statistics.fmean(against):+.1f}'} | "
            f"{statistics.fmean(statistics.fmean(row['drift']) for row in rows):.3f} | {100 * missing:+.1f} |"
        )
    return "\n".join(lines)


def _name(method: str) -> str:
    return f"**{method}**" if BY_NAME[method].group == "ours" else method


def _case(name: str, case: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        f"KD's temperature {case['temperature']:g}.",
        "",
        "| method | setting | metric | over KD, points (95 %, Holm) | p | p, Holm | drift | modality missing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(case["raw"].items(), key=lambda item: -statistics.fmean(item[1]["metric"]))
    for method, row in order:
        against = case["against_kd"].get(method)
        columns = ["–", "–", "–"]
        if against is not None:
            low, mean, high = (100 * against[key] for key in ("low", "mean", "high"))
            columns = [f"{mean:+.1f} ({low:+.1f} … {high:+.1f})", f"{against['p']:.3f}", f"{against['p_holm']:.3f}"]
        setting = case["settings"][method] if len(BY_NAME[method].settings) > 1 else None
        lines.append(
            f"| {_name(method)} | {'–' if setting is None else f'{setting:g}'} | {_spread(row['metric'])} | "
            f"{' | '.join(columns)} | {_spread(row['drift'])} | {_spread(row['missing'])} |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _points(cases: Mapping[str, Any], path: Path) -> None:
    """Points over KD with 95 % intervals, a panel for each case."""
    columns = 3
    rows = -(-len(cases) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(12, 3.4 * rows), sharey=True, squeeze=False)
    names = [name for name in BY_NAME if name != "KD" and all(name in case["raw"] for case in cases.values())]
    for axis, (title, case) in zip(axes.flat, cases.items(), strict=False):
        for y, name in enumerate(reversed(names)):
            against = case["against_kd"][name]
            low, mean, high = (100 * against[key] for key in ("low", "mean", "high"))
            colour = _COLOURS[BY_NAME[name].group]
            axis.plot([low, high], [y, y], color=colour, linewidth=1.5)
            axis.plot([mean], [y], "o", color=colour, markersize=5)
        axis.axvline(0, color="#999999", linewidth=1)
        axis.set_title(title, fontsize=11)
        means = [100 * case["against_kd"][name]["mean"] for name in names if name != "none"]
        axis.set_xlim(max(min(means) - 4, -15), min(max(means) + 4, 25))
        axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
        axis.set_xlabel("points over KD")
    for axis in list(axes.flat)[len(cases) :]:
        axis.remove()
    _legend(figure)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _drift(cases: Mapping[str, Any], path: Path) -> None:
    """Mean rank against drift to the teacher: what helps the metric need not be what keeps the structure."""
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for name, rank in mean_ranks(cases).items():
        drift = statistics.fmean(statistics.fmean(case["raw"][name]["drift"]) for case in cases.values())
        axis.plot([drift], [rank], "o", color=_COLOURS[BY_NAME[name].group])
        axis.annotate(name, (drift, rank), textcoords="offset points", xytext=(6, -3), fontsize=8)
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_xlabel("drift of the per-sample Gram from the teacher's, mean over cases")
    axis.set_ylabel("mean rank of the metric (1 is best)")
    _legend(figure)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _legend(figure: Any) -> None:
    handles = [pyplot.Line2D([], [], color=colour, marker="o", label=_LEGEND[key]) for key, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="upper center", ncol=len(handles), frameon=False, fontsize=9)
