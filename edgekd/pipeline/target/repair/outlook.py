"""Stage outlook: before minutes are spent on INT8, see on the device whether it could be faster than float at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress import quantize
from edgekd.compress.graph import drop_embeddings
from edgekd.config.target import load_calibration
from edgekd.errors import ModelError
from edgekd.files import scratch_folder
from edgekd.pipeline.target.context import LIBRARIES
from edgekd.pipeline.target.repair.examine import time_engines
from edgekd.runtime.measure.results import Quantile  # noqa: TC001  # msgspec reads the annotations of Outlook
from edgekd.stages.artifacts import CALIBRATION, DEPLOY
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.compress.variants import CandidateSpec
    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import StageReporter

#: Bytes of a float graph below which INT8 costs seconds, and is simply tried.
_LEAST_BYTES = 4_000_000
#: Samples that ranges are found on: what they are does not change how long an inference takes.
_SAMPLES = 8
#: INT8 is left out where even the favourable ends of both intervals leave more than this share of the float p50.
_HOPELESS = 0.95


@dataclass(frozen=True)
class Outlook:
    """Networks that are INT8 throughout, timed beside the float one.

    Attributes:
        exact: p50 of the float network; None where nothing could be timed.
        int8: p50 of each candidate that could be written and timed, by its name.
    """

    exact: Quantile | None
    int8: dict[str, Quantile]

    def hopeless(self, name: str) -> str | None:
        """Return the reason why a candidate cannot be faster than float; None where it may be."""
        own = self.int8.get(name)
        if own is None or self.exact is None or own.low_ms < _HOPELESS * self.exact.high_ms:
            return None
        return (
            f"INT8 throughout takes {own.value_ms:.3g} ms and float {self.exact.value_ms:.3g} ms here, so that it "
            "cannot win; quantize.effort = 'best', or quantize.precision = 'int8', tries it all the same"
        )


def _describe(outlook: Outlook) -> str:
    if outlook.exact is None:
        return "nothing was timed"
    times = ", ".join(f"{name} {p50.value_ms:.3g} ms" for name, p50 in outlook.int8.items())
    return f"{times}, float {outlook.exact.value_ms:.3g} ms"


OUTLOOK: StageSpec[Outlook] = StageSpec(
    "outlook", 1, Outlook, LIBRARIES, "see whether INT8 could be faster than float at all", _describe
)


def promising(context: Context, specs: Sequence[CandidateSpec]) -> tuple[tuple[CandidateSpec, ...], dict[str, str]]:
    """Return the candidates that are worth their time, and for each INT8 one that is not the reason.

    All are where the network is small, where something else is asked for than the fastest, or where nothing can be
    timed in seconds.
    """
    config, budgets = context.recipe.quantize, context.target.budgets
    int8 = [spec for spec in specs if quantize.has_pairs(spec)]
    asked = (
        config.precision == "best"
        and not config.quantizers
        and config.effort != "best"
        and not (budgets.size_mb or budgets.memory_mb)
    )
    quick = context.timed and not context.target.compile and not context.runtime.backend.on_gpu
    large = context.float_graph.stat().st_size >= _LEAST_BYTES
    if not (int8 and len(int8) < len(specs) and asked and quick and large):
        return tuple(specs), {}
    outlook = _look(context, int8)
    hopeless = {spec.name: reason for spec in int8 if (reason := outlook.hopeless(spec.name))}
    return tuple(spec for spec in specs if spec.name not in hopeless), hopeless


def _look(context: Context, specs: Sequence[CandidateSpec]) -> Outlook:
    calibration = msgspec.structs.replace(load_calibration("minmax"), samples=_SAMPLES)

    def run(folder: Path, report: StageReporter) -> Outlook:
        samples = context.exported.folder / CALIBRATION
        with scratch_folder(folder) as work:
            engines = {}
            for done, spec in enumerate(specs, 1):
                try:
                    quantize.run(spec, context.float_graph, samples, context.target.scheme, calibration, work)
                except ModelError:  # which is told where it is written for good
                    continue
                engines[spec.name] = work / spec.name / DEPLOY
                report.advance(done, len(specs) + 1, f"{spec.name} written")
            if not engines:
                return Outlook(None, {})
            drop_embeddings(context.float_graph, work / DEPLOY)
            try:
                exact, *int8 = time_engines(context, [work / DEPLOY, *engines.values()], work)
            except ModelError:  # the device refuses one of them, which is told where it is evaluated
                return Outlook(None, {})
        return Outlook(exact, dict(zip(engines, int8, strict=True)))

    config = {
        **context.device_identity(),
        "candidates": [spec.name for spec in specs],
        "quantizers": quantize.quantizer_digests(specs),
        "scheme": msgspec.to_builtins(context.target.scheme),
        "threads": context.recipe.profile.threads,
    }
    return context.stage(OUTLOOK, config=config, inputs={"exported": context.exported.key}, run=run).result
