"""docs/explanation/alarm.md, out of the alarm study's JSON."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from alarm_rates import default_limits

from edgekd.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KINDS = {"classes": "classes", "regression": "numbers", "embedding": "embeddings"}
_MEASURES = {
    "divergence": "**divergence of the answers**",
    "changed answers": "changed answers (flips, turnover)",
    "relative error": "relative L2 error of the output",
    "noise over signal": "SQNR of the output",
    "drift": "**drift of the modality Gram**",
    "drift within": "drift within each modality",
    "cross-Gram": "cross-Gram to float embeddings",
    "1 - cosine": "1 − cosine of the embeddings",
    "1 - CKA": "1 − CKA of the embeddings",
    "ablated divergence": "divergence, worst absent modality",
    "ablated changed answers": "changed answers, worst absent modality",
    "divergence and drift": "divergence and drift together",
    "divergence and changed answers": "divergence and changed answers together",
    "metric drop on the probe (labels)": "*the metric's own drop, with labels*",
}
_RULES = {
    "old rule": "the rule before: drift > 0.02 or flips > 3 %",
    "defaults": "**the gate, its defaults**",
    "defaults, other seeds": "the same, seeds that did not choose the defaults",
    "limits from other tasks": "the gate, limits from other tasks",
    "limits from other tasks, drift as planned": "the same, drift's limits as planned (0.005, 0.02)",
    "defaults, drift not asked": "the gate, drift not asked",
    "defaults, no labels": "**no labels**: the gate, its defaults",
    "limits from other tasks, no labels": "no labels, limits from other tasks",
    "defaults, drift not asked, no labels": "no labels, drift not asked",
}
_FAMILIES = {
    "damage": "damage to weights",
    "fake": "rounding in simulation",
    "pruned": "real pruning and fine-tune",
    "int8": "real INT8",
}
_SUBSETS = ("all", "but fusion", "near")
_TOWERS = ("divergence", "cross-Gram", "drift")
_SIGNIFICANT = 0.05
_GOAL_PASSED, _GOAL_REFUSED = 0.02, 0.10
#: A limit below this would refuse whatever is not the same network.
_NO_LIMIT = 1e-4
_WIDTH = 140


def write_page(result: dict[str, Any], folder: Path) -> None:
    """Write alarm.md."""
    write_text(folder / "alarm.md", _text(result))
    print(f"wrote {folder / 'alarm.md'}")


def _text(result: dict[str, Any]) -> str:
    parts = (_head, _gate, _holds, _areas, _few, _limits, _missing, _on_your_task, _cannot)
    return "\n\n".join(block for part in parts for block in part(result)) + "\n"


def _prose(text: str) -> str:
    """Return a paragraph, or an item of a list, wrapped."""
    joined = " ".join(text.split())
    indent = "  " if joined.startswith("- ") else ""
    return textwrap.fill(joined, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _items(*texts: str) -> str:
    return "\n".join(_prose(f"- {text}") for text in texts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """Write a share as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    if low is None:
        return ""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _head(result: dict[str, Any]) -> list[str]:
    networks = result["networks"]
    variants, harmed = (sum(each[name] for each in networks) for name in ("variants", "harmed"))
    trained = len({(each["task"].partition(",")[0], each["seed"]) for each in networks})
    return [
        "# The alarm: what tells that compression broke a network",
        _prose("""Some compressed networks answer as before, and some no longer do. A gate that has to say which is
            which, often without labels, is worth having only if it refuses the broken and lets the sound go. This page
            measures whether edgekd's does, and what each measure adds."""),
        _prose(f"""`benchmarks/alarm.py` wrote every number below, and this page, from `benchmarks/results/alarm.json`.
            Its plan, `benchmarks/alarm_plan.md`, was committed before its run. {trained} float networks of eight tasks
            (classes, numbers, and pairs of towers for retrieval) were damaged, rounded, really pruned and fine-tuned,
            and really quantized by edgekd, ONNX Runtime and NNCF: {variants:,} variants. *Broken*: more than 0.015 of
            the metric lost **on test**; {harmed:,} were. Whatever judges sees only **other samples**, val and
            calibration."""),
        "![Each dot is a compressed classifier: drift and divergence against the accuracy lost; below, the verdicts on "
        "the broken and on the sound](alarm.svg)",
        _prose("""*Above: all variants of the classifiers; more than 20 points lost are drawn at 20. Damage to the
            fusion alone has drift 0, at the left edge. Below: all tasks, each of the same weight.*"""),
    ]


def _gate(result: dict[str, Any]) -> list[str]:
    rules = {name: result["gate"]["rules"][name] for name in _RULES if result["gate"]["rules"].get(name)}
    rows = []
    for name, rule in rules.items():
        all_tasks = rule["all"]
        passed, refused = (
            f"{percent(all_tasks[rate]['mean'])} {_interval(all_tasks[rate])}" for rate in ("passed", "refused")
        )
        rest = (percent(all_tasks[rate]["mean"]) for rate in ("warned", "left_undecided"))
        rows.append([_RULES[name], passed, *rest, refused, percent(all_tasks["undecided"]["mean"])])
    kinds = [
        [_RULES[name], *(_three_rates(rule["by_kind"].get(kind, {})) for kind in _KINDS)]
        for name, rule in rules.items()
    ]
    sure = rules["defaults"]["surely"]
    families = result["gate"]["by_family"]
    return [
        "## The gate as a whole",
        *_judged_before(result["gate"]["defaults"]),
        _table(
            ("rule", "broken: passed", "broken: warned", "broken: undecided", "sound: refused", "sound: undecided"),
            rows,
        ),
        _prose("""Tasks have the same weight; in brackets 95 % intervals over seeds and variants. `warn` is released,
            and `undecided` too unless `gate.undecided` says otherwise; whoever takes either for a miss adds the columns
            up. So does the middle figure here, by kind: broken and passed / broken and released in any way / sound and
            refused."""),
        _table(("rule", *_KINDS.values()), kinds),
        _prose("""By what was done to the network, all tasks together, the gate at its defaults: broken and passed /
            warned / undecided / failed, and the same of the sound."""),
        _table(
            ("done", "broken", "sound"), [[_FAMILIES[name], *map(_counts, each)] for name, each in families.items()]
        ),
        _prose(f"""What is broken by a hair on test is often not broken on other samples. Of those that are surely
            broken, or surely sound (95 %, by a bootstrap over test), the gate at its defaults passes
            {percent(sure["passed"])}, releases {percent(sure["released"])} in any way, and refuses
            {percent(sure["refused"])}."""),
    ]


def _judged_before(defaults: dict[str, Any]) -> list[str]:
    """Say so where the figures are of a gate with other defaults than today's; measured anew they need no note."""
    now = {name: _measured_kinds(value, defaults.get(name)) for name, value in default_limits().items()}
    changed = [name for name in sorted(defaults) if defaults[name] != now[name]]
    other = [f"`{name}` {defaults[name]} then, {now[name]} now" for name in changed]
    if not other:
        return []
    return [
        _prose(f"""**Measured before the gate's last changes, and not since**: {"; ".join(other)}. Since then, too,
            changed answers fail by themselves where there are no labels, a metric that a constant answer keeps excuses
            nothing, a fall of the metric within a quarter of the divergence's limit is undecided and not a failure, and
            labels that hold are counted by themselves. What these do to the rates below is *not measured*.""")
    ]


def _measured_kinds(limit: object, before: object) -> object:
    """Return a limit, of one for each kind of output those kinds alone that there were when it was measured."""
    if isinstance(limit, dict) and isinstance(before, dict):
        return {kind: value for kind, value in limit.items() if kind in before}
    return limit


def _counts(said: dict[str, int]) -> str:
    return " / ".join(str(said[verdict]) for verdict in ("pass", "warn", "undecided", "fail"))


def _three_rates(rates: dict[str, float | None]) -> str:
    return " / ".join(percent(rates.get(rate)) for rate in ("passed", "released", "refused"))


def _holds(result: dict[str, Any]) -> list[str]:
    kinds, fusion = result["areas"]["by_kind"], result["fusion"]["classes"]
    gate, few = result["gate"]["rules"], result["small_probes"]["classes"]["8"]
    primary, by_kind = gate["limits from other tasks"]["all"], gate["limits from other tasks"]["by_kind"]
    passed, refused = primary["passed"]["mean"], primary["refused"]["mean"]
    both, single = "divergence and drift", result["single_measures"]
    refusals = ", ".join(f"{word} {percent(by_kind[kind]['refused'])}" for kind, word in _KINDS.items())

    def area(kind: str, subset: str, name: str) -> str:
        return _three(kinds[kind][subset][name]["area"])

    towers = [each for task, each in result["areas"]["by_task"].items() if "asymmetric" in task]
    asymmetric = {name: sum(each[name] for each in towers) / len(towers) for name in (*_TOWERS,)}
    return [
        "## What holds, and what does not",
        _items(
            f"""**The goal.** With limits from *other* tasks at most 2 % of the broken were to pass: {percent(passed)},
            {_met(passed, _GOAL_PASSED)}. At most 10 % of the sound were to be refused: {percent(refused)},
            {_met(refused, _GOAL_REFUSED)}; by kind: {refusals}.""",
            f"""**Divergence is the measure to have**: area {area("classes", "all", "divergence")} for classes,
            {area("regression", "all", "divergence")} for numbers,
            {area("embedding", "all", "divergence")} for embeddings;
            the drift's are {area("classes", "all", "drift")}, {area("regression", "all", "drift")} and
            {area("embedding", "all", "drift")}.""",
            f"""**Drift is blind to what comes after the embeddings**: of {fusion["variants"]} classifiers whose fusion
            alone was damaged {fusion["harmed"]} were broken, and the largest drift of any is
            {fusion["largest_drift"]:g}. Without these its area is {area("classes", "but fusion", "drift")}, and
            divergence's {area("classes", "but fusion", "divergence")}.""",
            f"""**Beside divergence, drift adds nothing to the ranking**: the two together have
            {area("classes", "all", both)} for classes, {area("regression", "all", both)} for numbers and
            {area("embedding", "all", both)} for embeddings. In the gate it turns some
            `undecided` into `fail`: compare the rows with and without it. It says *where* structure moved, which
            divergence does not.""",
            f"""**Where drift earns its place: embeddings.** Not asked there, the gate would pass
            {percent(gate["defaults, drift not asked"]["by_kind"]["embedding"]["passed"])} of the broken, and asked
            {percent(gate["defaults"]["by_kind"]["embedding"]["passed"])}; the price is
            {percent(gate["defaults"]["by_kind"]["embedding"]["refused"])} of the sound refused instead of
            {percent(gate["defaults, drift not asked"]["by_kind"]["embedding"]["refused"])}. Each alone, at limits from
            other tasks, missed / refused: drift {_alone(single["drift"].get("embedding"))}, divergence
            {_alone(single["divergence"].get("embedding"))}.""",
            f"""**Few samples**: on 8 of them flips have {_three(few.get("changed answers"))}, divergence
            {_three(few.get("divergence"))}, relative error {_three(few.get("relative error"))} and drift
            {_three(few.get("drift"))}. What helps is that a measure is continuous, not that it is a Gram.""",
            f"""**Towers**, queries compressed against a float index: divergence to itself and its five nearest has
            {asymmetric["divergence"]:.3f}, the cross-Gram over all {asymmetric["cross-Gram"]:.3f}, the drift
            {asymmetric["drift"]:.3f}. Where embeddings are the product, what measures them is as good as anything; the
            drift is nowhere the best by more than chance.""",
            """**One limit for all tasks is the weak point.** Of two tasks the one that forgives much and the one that
            forgives little need other limits, whatever is measured: see the limits from other tasks below.
            `edgekd check --suggest-limits` finds yours.""",
        ),
    ]


def _met(rate: float | None, goal: float) -> str:
    return "not measured" if rate is None else "met" if rate <= goal else "not met"


def _areas(result: dict[str, Any]) -> list[str]:
    places = [(kind, subset) for kind in _KINDS for subset in _SUBSETS if (kind, subset) != ("embedding", "but fusion")]
    found = result["areas"]["by_kind"]
    rows = [
        [label, *(_cell(found.get(kind, {}).get(subset, {}).get(name)) for kind, subset in places)]
        for name, label in _MEASURES.items()
    ]
    return [
        "## Which measure ranks harm best",
        _prose(f"""Area under the ROC: how often a broken variant has the larger figure than a sound one, mean over
            tasks. *near*: broken by at most 0.05, against sound ones of which a test answer moved. † differs from
            divergence with p < {_SIGNIFICANT}, Holm over all {result["areas"]["comparisons"]} differences, by a
            bootstrap over seeds, variants and samples."""),
        _table(("measure", *(f"{_KINDS[kind]}: {subset}" for kind, subset in places)), rows),
    ]


def _cell(found: dict[str, Any] | None) -> str:
    if not found:
        return "–"
    return _three(found["area"]) + ("†" if (found.get("p_holm") or 1) < _SIGNIFICANT else "")


def _few(result: dict[str, Any]) -> list[str]:
    few = result["small_probes"]

    def cell(kind: str, name: str) -> str:
        return " / ".join(_three(few[kind][str(count)].get(name)) for count in (8, 32, 128))

    rows = [
        [label, *(cell(kind, name) for kind in _KINDS)]
        for name, label in _MEASURES.items()
        if name in few["classes"]["8"]
    ]
    return [
        _prose("The same for all variants on 8 / 32 / 128 probe samples, mean of four draws:"),
        _table(("measure", *_KINDS.values()), rows),
    ]


def _limits(result: dict[str, Any]) -> list[str]:
    single = result["single_measures"]
    rows = [
        [label, *(_alone(single[name].get(kind)) for kind in _KINDS)]
        for name, label in _MEASURES.items()
        if single.get(name)
    ]
    elsewhere = [
        [task, _two(limits and limits["max_divergence"])] for task, limits in result["gate"]["limits_elsewhere"].items()
    ]
    fitted = result["gate"]["limits_of_all_tasks"]
    bounds = ", ".join(f"{_KINDS[kind]} {_two(limits['max_divergence'])}" for kind, limits in fitted.items())
    return [
        "## Limits from other tasks",
        _prose("""One measure alone: its mean against the largest limit that lets through at most 1 % of the broken of
            the *other* tasks of its kind. Missed / refused for nothing; in brackets the limit that all tasks give.
            "none": no limit above 0 does, for damage behind the embeddings does not move the measure."""),
        _table(("measure", *_KINDS.values()), rows),
        _prose(f"""`max_divergence`, which the gate holds against the upper bound, by the same rule from the other
            tasks; all tasks of a kind give {bounds}."""),
        _table(("task", "limit from others"), elsewhere),
        _defaults(result),
    ]


def _defaults(result: dict[str, Any]) -> str:
    known = result["gate"]["defaults"]
    divergences = ", ".join(f"{label} {known['max_divergence'][kind]:g}" for kind, label in _KINDS.items())
    return _prose(f"""The defaults: `max_divergence` {divergences}; `max_flips` {known["max_flips"]:g}; `tau_pass`
        {known["tau_pass"]:g} and `tau_fail` {known["tau_fail"]:g}; `max_missing_flips` {known["max_missing_flips"]:g}.
        They were chosen with a look at the first seed of all tasks; the row of the other seeds above judges them.""")


def _alone(found: dict[str, Any] | None) -> str:
    if not found:
        return "–"
    limit = found["limit_of_all"]
    told = "none" if limit is None or limit < _NO_LIMIT else f"{limit:.2g}"
    return f"{percent(found['missed']['mean'])} / {percent(found['refused']['mean'])} ({told})"


def _missing(result: dict[str, Any]) -> list[str]:
    names = ("ablated changed answers", "divergence", "changed answers", "drift")
    rows = [
        [
            task, *(str(found[name]) for name in ("variants", "broken")),
            *(" / ".join(map(str, found[limit])) for limit in ("0.08", "0.1")),
            *(_three(found["areas"].get(name)) for name in names),
        ]
        for task, found in result["missing_modality"].items()
    ]  # fmt: skip
    return [
        "## With a modality absent",
        _prose("""Of the classifiers that lost nothing, those are broken here that lost more than 0.05 with one modality
            at its mean. Caught / falsely warned of, by answers that changed with a modality absent, at two limits; then
            the areas of four measures."""),
        _table(
            ("task", "sound", "broken so", "at 0.08", "at 0.1", "ablated flips", "divergence", "flips", "drift"), rows
        ),
    ]


def _on_your_task(_result: dict[str, Any]) -> list[str]:
    return [
        "## On your task",
        _prose("""`edgekd check --suggest-limits` damages your own float network in some 250 ways on your *calibration*
            split, never on the test split, which must not choose the limits that it is judged by. For each limit of
            `[gate]` it says whom the recipe's misses and whom it refuses for nothing, the same of the one that it
            suggests, and about how many samples would sharpen them; it prints a `[gate]` table to paste."""),
        _prose("""The rule (`edgekd/gram/limits.py`): the largest figure at which, and at every smaller one, at most 2
            of the 61 variants next below lost too much. With 95 % confidence that is fewer than one in ten (exact
            binomial bound, as far as variants of one network are independent); where the data do not tell a limit, it
            says that instead. `tau_pass` is for half of the loss. Without labels it takes flips for the loss."""),
    ]


def _cannot(result: dict[str, Any]) -> list[str]:
    names = ("variants", "harmed", "surely_harmed", "surely_harmless")
    tasks: dict[str, list[dict[str, Any]]] = {}
    for each in result["networks"]:
        tasks.setdefault(each["task"], []).append(each)
    rows = [
        [task, str(len(of)), *(str(sum(each[name] for each in of)) for name in names)] for task, of in tasks.items()
    ]
    return [
        "## What this cannot say",
        _table(("task", "seeds", "variants", "broken", "surely broken", "surely sound"), rows),
        _items(
            """Small networks on three sets of data, and few seeds. There are two tasks with numbers, and two of towers
            in two configurations each: limits "from other tasks" come from a single one there.""",
            """Damage was made. How common each kind is in the field is not known, and rates weigh variants as they were
            made; real INT8 is nearly always fine or far off.""",
            """The gate judges here with intervals over recordings where these are the units, and 200 resamples. On
            gestures test has other people than what judges: what holds for some fails for others, and no measure sees
            that.""",
            "Where the run departed from its plan, the plan's last section says so.",
        ),
    ]
