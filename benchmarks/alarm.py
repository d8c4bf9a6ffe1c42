"""What tells, without labels, that compression broke a network; and whom does the gate let through or refuse?

``alarm_plan.md`` beside this script was written before its run and says what is measured and why. The networks of each
task and seed, and all that their variants said, are kept in ``build/benchmarks/alarm``, so that a run that was stopped
goes on, and that rules of the gate can be judged anew without training anything. ``--only picture`` draws
docs/explanation/alarm.svg from the result alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alarm_gate import measured
from alarm_measures import CONFIGURATIONS, gather
from alarm_page import write_page
from alarm_picture import draw
from alarm_rates import Judged, gate_rates
from alarm_record import is_kept, record
from alarm_report import areas, fusion, missing_modality, networks_table, raw, single_rates, small_probes
from common import arguments, pages_folder, parse, result_path, write_result

if TYPE_CHECKING:
    from argparse import Namespace

FOLDER = Path("build/benchmarks/alarm")
PICTURE = "alarm.svg"
TASKS = (
    "digits", "digits-6", "gestures", "av-digits",
    "digits-values", "gestures-values", "digits-towers", "gestures-towers",
)  # fmt: skip
#: Two of each kind, for limits from other tasks.
QUICK_TASKS = ["digits", "digits-6", "digits-values", "gestures-values", "digits-towers", "gestures-towers"]


def load(options: Namespace) -> list[Judged]:
    """Train, compress and measure all networks, or read what is kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(options.seeds):
        for task in options.tasks:
            if options.kept and not is_kept(task, seed, FOLDER):
                continue
            said = record(task, seed, options.recipe, FOLDER)
            for configuration in CONFIGURATIONS if said.kind == "embedding" else ("",):
                evidence = gather(said, configuration, FOLDER)
                counts = (None,) if options.quick or seed else (None, 128, 32)
                gate = {count: measured(said, configuration, count, FOLDER) for count in counts}
                found.append(Judged(evidence, gate))
                print(f"{evidence.task} {seed}: {len(evidence.done)} variants", flush=True)
    return found


def measure_all(options: Namespace) -> None:
    """Measure everything, and write the result."""
    found = load(options)
    networks = [each.evidence for each in found]
    result = {
        "plan": "benchmarks/alarm_plan.md",
        "networks": networks_table(networks),
        "areas": areas(networks, options.draws),
        "small_probes": small_probes(networks),
        "single_measures": single_rates(networks, options.draws),
        "fusion": fusion(networks),
        "missing_modality": missing_modality(networks),
        "gate": gate_rates(found, options.draws),
        "raw": [raw(each) for each in found],
    }
    write_result(__file__, plain(result), options)


def plain(value: Any) -> Any:
    """Return a value for JSON: four digits of each number, and None for what is none."""
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=3, help="networks of each task")
    parser.add_argument("--kept", action="store_true", help="take what is kept, and train nothing more")
    parser.add_argument("--draws", type=int, default=400, help="draws of the bootstraps")
    parser.add_argument("--only", choices=("measure", "picture"), help="one step [default: both]")
    options = parse(parser, tasks=QUICK_TASKS, seeds=1, draws=5)
    if options.only != "picture":
        measure_all(options)
    if options.only != "measure":
        result = json.loads(result_path(__file__, options).read_text(encoding="utf-8"))
        draw(result, pages_folder(options) / PICTURE)
        write_page(result, pages_folder(options))


if __name__ == "__main__":
    main()
