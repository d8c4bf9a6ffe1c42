"""What a page shows of one engine: its ledger, its times, its Gram matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.gate import DEVICE
from edgekd.report.compare.branches import branches_svg
from edgekd.report.compare.grams import heat_maps, read_grams
from edgekd.report.compare.html import figure_html, table_html
from edgekd.report.compare.latencies import latency_svg
from edgekd.report.compare.stages import divergence_svg, drift_svg, flips_svg, metric_svg
from edgekd.report.escape import escape
from edgekd.report.ledger_tables import ledger_columns, ledger_table
from edgekd.report.questions import row_verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.compare.rows import Entry


def ledger_html(index: int, entry: Entry) -> str:
    """Return the ledger as a table, in which each figure that is beyond its limit is marked."""
    columns = ledger_columns(entry.ledger)
    marks = {
        (place, columns[name]): verdict
        for place, row in enumerate(entry.ledger.rows)
        for name, verdict in row_verdicts(entry.ledger, row).items()
        if name in columns
    }
    return table_html(ledger_table(entry.ledger, "test samples"), f"Ledger {index}", marks)


def ledger_pictures(index: int, entry: Entry) -> Iterator[str]:
    """Yield the pictures of what each stage kept: divergence, flips, metric and drift, each against its limit."""
    ledger = entry.ledger
    states = row_verdicts(ledger, ledger.rows[-1])
    until = f"a dot at the mean, a bar to its {ledger.confidence:.0%} bound."
    if divergence := divergence_svg(f"divergence-{index}", ledger):
        yield figure_html(
            f"How far answers are from the {ledger.reference}'s: {until}", divergence, states.get("divergence")
        )
    if flips := flips_svg(f"flips-{index}", ledger):
        caption = f"Share of answers that are not those of the {ledger.reference}."
        yield figure_html(caption, flips, states.get("changed"))
    if metric := metric_svg(f"metric-{index}", ledger):
        yield figure_html("The metric by stage, and what it must not fall behind.", metric, states.get("loss"))
    else:
        yield f"<p>Metric {escape(entry.row.why_not('metric.shipped'))}.</p>"
    if drift := drift_svg(f"drift-{index}", ledger):
        yield figure_html(f"Gram drift by stage: {until}", drift, states.get("drift"))


def time_pictures(index: int, entry: Entry) -> Iterator[str]:
    """Yield the pictures of latency and of the time by branch, or why there is none."""
    if entry.profile is None:
        yield f"<p>Latency {escape(entry.row.why_not('latency_ms.p50'))}.</p>"
        return
    if svg := latency_svg(f"latency-{index}", entry):
        threads = f"{entry.profile.threads} thread{'s' * (entry.profile.threads > 1)}"
        yield figure_html(
            f"Share of inferences that took no longer, {threads}; dots: p50, p90, p99. None is left out.", svg
        )
    else:
        yield "<p>Latency distributions: the raw timings no longer lie beside the report.</p>"
    if branches := branches_svg(f"branches-{index}", entry.profile):
        yield figure_html("Time by branch: the modality from whose input alone a layer is computed.", branches)
    else:
        reasons = [engine.not_measured.get("layers") for engine in entry.profile.engines]
        why = next(filter(None, reasons), "not measured: the profile was not asked for it")
        yield f"<p>Time by branch {escape(why)}.</p>"


def gram_pictures(index: int, entry: Entry) -> Iterator[str]:
    """Yield the Gram matrices of a few samples, model by model.

    Raises:
        ReportError: The file of the matrices is broken.
    """
    grams = read_grams(entry)
    if grams is None:
        yield "<p>Gram matrices: there are none beside the report.</p>"
        return
    classes = list(dict.fromkeys(filter(None, grams.classes)))
    caption = f"Cosines between the embeddings of the same {len(grams.ids)} test samples"
    caption += f", by class ({', '.join(classes)})" if classes else ""
    caption += ", each modality a block. The last picture has a scale of its own."
    last = entry.ledger.rows[-1].stage
    caption += "" if last == DEVICE else f" Shipped: its graph in ONNX Runtime on the building host ({last})."
    pictures = heat_maps(f"gram-{index}", grams).values()
    yield figure_html(caption, f'<div class="grams">{"".join(pictures)}</div>')
