"""edgekd: distil a multi-modal teacher, prove that its Gram structure survives, ship a verified engine.

The names below are the public surface. Everything else in this package is internal: it changes without notice.

Nothing heavy is imported until it is used: importing this package loads neither torch nor an engine library. What type
checkers and editors know of it is in ``__init__.pyi`` beside this file.
"""

from __future__ import annotations

import importlib
import os

__version__ = "0.1.0"

# ONNX Runtime reports each model that it opens to its maker, unless told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: The modules in which the public names are defined.
_NAMES = {
    "edgekd.training.task.protocol": ("ArraySplit", "Batch", "Modality", "Output", "Sample", "Split", "Task"),
    "edgekd.training.task.models": ("Standardize",),
    "edgekd.training.distillation.loss": ("Loss", "LossOptions"),
    "edgekd.compress.quantizers.quantizer": ("Quantizer",),
    "edgekd.runtime.backends.backend": ("Backend", "BackendOption"),
    "edgekd.stages.labels": ("UNLABELLED",),
    "edgekd.tasks": ("Package", "fetch", "read_member", "shipped_task"),
    "edgekd.tasks.data.columns": ("Categories", "Words"),
    "edgekd.tasks.data.division": ("Division",),
    "edgekd.tasks.data.files": ("Arrays", "Images", "Sounds"),
    "edgekd.tasks.data.folder": ("from_folder",),
    "edgekd.tasks.data.table": ("from_csv",),
    "edgekd.tasks.data.task_data": ("TaskData",),
    "edgekd.tasks.data.words": ("word_tokens",),
    "edgekd.config.recipe": ("ProfileConfig", "Recipe", "Tap"),
    "edgekd.config.loading": ("load_recipe",),
    "edgekd.config.target": ("Target",),
    "edgekd.devices.targets": ("load_target",),
    "edgekd.stages.progress": ("Observer",),
    "edgekd.workflows.build": ("build",),
    "edgekd.workflows.dry_run": ("DryRun", "dry_run"),
    "edgekd.report.results": ("BuildReport",),
    "edgekd.workflows.check": ("TargetCheck", "blame", "check", "suggest_limits"),
    "edgekd.gram.blame": ("Blame",),
    "edgekd.gram.drift": ("Drift",),
    "edgekd.gram.output_kind": ("OutputKind",),
    "edgekd.workflows.arrays": ("Judgement", "gram_drift", "judge"),
    "edgekd.workflows.thresholds": ("Alarm",),
    "edgekd.workflows.search.run": ("SearchOptions", "search"),
    "edgekd.report.search.tables": ("SearchResult",),
    "edgekd.workflows.advise.run": ("advise",),
    "edgekd.workflows.advise.result": ("Advice",),
    "edgekd.workflows.bundles": ("ProfiledBundle", "VerifiedBundle", "profile", "verify"),
    "edgekd.runtime.bundle": ("Bundle", "load"),
    "edgekd.runtime.predict": ("Predictions", "predict"),
    "edgekd.runtime.verification": ("Verification",),
    "edgekd.errors": (
        "BudgetError",
        "BudgetMissed",
        "BundleError",
        "CacheError",
        "DataError",
        "DeviceError",
        "EdgekdError",
        "GateFailed",
        "MissingDependency",
        "ModelError",
        "OutputError",
        "RankError",
        "RecipeError",
        "ReportError",
        "StorageError",
        "TargetError",
        "TaskError",
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

#: Public modules, which load torch.
_MODULES = ("distillation",)

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604 - all are strings; the stub beside this file spells them out


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"edgekd.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekd' has no attribute '{name}'")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
