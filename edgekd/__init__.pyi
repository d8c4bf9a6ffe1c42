"""The public surface for type checkers and editors; ``__init__.py`` imports each name when it is first used."""

from edgekd import distillation as distillation
from edgekd.compress.quantizers.quantizer import Quantizer as Quantizer
from edgekd.config.loading import load_recipe as load_recipe
from edgekd.config.recipe import ProfileConfig as ProfileConfig
from edgekd.config.recipe import Recipe as Recipe
from edgekd.config.recipe import Tap as Tap
from edgekd.config.target import Target as Target
from edgekd.devices.targets import load_target as load_target
from edgekd.errors import BudgetError as BudgetError
from edgekd.errors import BudgetMissed as BudgetMissed
from edgekd.errors import BundleError as BundleError
from edgekd.errors import CacheError as CacheError
from edgekd.errors import DataError as DataError
from edgekd.errors import DeviceError as DeviceError
from edgekd.errors import EdgekdError as EdgekdError
from edgekd.errors import GateFailed as GateFailed
from edgekd.errors import MissingDependency as MissingDependency
from edgekd.errors import ModelError as ModelError
from edgekd.errors import OutputError as OutputError
from edgekd.errors import RankError as RankError
from edgekd.errors import RecipeError as RecipeError
from edgekd.errors import ReportError as ReportError
from edgekd.errors import StorageError as StorageError
from edgekd.errors import TargetError as TargetError
from edgekd.errors import TaskError as TaskError
from edgekd.gram.blame import Blame as Blame
from edgekd.gram.drift import Drift as Drift
from edgekd.gram.output_kind import OutputKind as OutputKind
from edgekd.report.results import BuildReport as BuildReport
from edgekd.report.search.tables import SearchResult as SearchResult
from edgekd.runtime.backends.backend import Backend as Backend
from edgekd.runtime.backends.backend import BackendOption as BackendOption
from edgekd.runtime.bundle import Bundle as Bundle
from edgekd.runtime.bundle import load as load
from edgekd.runtime.predict import Predictions as Predictions
from edgekd.runtime.predict import predict as predict
from edgekd.runtime.verification import Verification as Verification
from edgekd.stages.labels import UNLABELLED as UNLABELLED
from edgekd.stages.progress import Observer as Observer
from edgekd.tasks import Package as Package
from edgekd.tasks import fetch as fetch
from edgekd.tasks import read_member as read_member
from edgekd.tasks import shipped_task as shipped_task
from edgekd.tasks.data.columns import Categories as Categories
from edgekd.tasks.data.columns import Words as Words
from edgekd.tasks.data.division import Division as Division
from edgekd.tasks.data.files import Arrays as Arrays
from edgekd.tasks.data.files import Images as Images
from edgekd.tasks.data.files import Sounds as Sounds
from edgekd.tasks.data.folder import from_folder as from_folder
from edgekd.tasks.data.table import from_csv as from_csv
from edgekd.tasks.data.task_data import TaskData as TaskData
from edgekd.tasks.data.words import word_tokens as word_tokens
from edgekd.training.distillation.loss import Loss as Loss
from edgekd.training.distillation.loss import LossOptions as LossOptions
from edgekd.training.task.models import Standardize as Standardize
from edgekd.training.task.protocol import ArraySplit as ArraySplit
from edgekd.training.task.protocol import Batch as Batch
from edgekd.training.task.protocol import Modality as Modality
from edgekd.training.task.protocol import Output as Output
from edgekd.training.task.protocol import Sample as Sample
from edgekd.training.task.protocol import Split as Split
from edgekd.training.task.protocol import Task as Task
from edgekd.workflows.advise.result import Advice as Advice
from edgekd.workflows.advise.run import advise as advise
from edgekd.workflows.arrays import Judgement as Judgement
from edgekd.workflows.arrays import gram_drift as gram_drift
from edgekd.workflows.arrays import judge as judge
from edgekd.workflows.build import build as build
from edgekd.workflows.bundles import ProfiledBundle as ProfiledBundle
from edgekd.workflows.bundles import VerifiedBundle as VerifiedBundle
from edgekd.workflows.bundles import profile as profile
from edgekd.workflows.bundles import verify as verify
from edgekd.workflows.check import TargetCheck as TargetCheck
from edgekd.workflows.check import blame as blame
from edgekd.workflows.check import check as check
from edgekd.workflows.check import suggest_limits as suggest_limits
from edgekd.workflows.dry_run import DryRun as DryRun
from edgekd.workflows.dry_run import dry_run as dry_run
from edgekd.workflows.search.run import SearchOptions as SearchOptions
from edgekd.workflows.search.run import search as search
from edgekd.workflows.thresholds import Alarm as Alarm

__version__: str

__all__ = [
    "UNLABELLED",
    "Advice",
    "Alarm",
    "ArraySplit",
    "Arrays",
    "Backend",
    "BackendOption",
    "Batch",
    "Blame",
    "BudgetError",
    "BudgetMissed",
    "BuildReport",
    "Bundle",
    "BundleError",
    "CacheError",
    "Categories",
    "DataError",
    "DeviceError",
    "Division",
    "Drift",
    "DryRun",
    "EdgekdError",
    "GateFailed",
    "Images",
    "Judgement",
    "Loss",
    "LossOptions",
    "MissingDependency",
    "Modality",
    "ModelError",
    "Observer",
    "Output",
    "OutputError",
    "OutputKind",
    "Package",
    "Predictions",
    "ProfileConfig",
    "ProfiledBundle",
    "Quantizer",
    "RankError",
    "Recipe",
    "RecipeError",
    "ReportError",
    "Sample",
    "SearchOptions",
    "SearchResult",
    "Sounds",
    "Split",
    "Standardize",
    "StorageError",
    "Tap",
    "Target",
    "TargetCheck",
    "TargetError",
    "Task",
    "TaskData",
    "TaskError",
    "Verification",
    "VerifiedBundle",
    "Words",
    "advise",
    "blame",
    "build",
    "check",
    "distillation",
    "dry_run",
    "fetch",
    "from_csv",
    "from_folder",
    "gram_drift",
    "judge",
    "load",
    "load_recipe",
    "load_target",
    "predict",
    "profile",
    "read_member",
    "search",
    "shipped_task",
    "suggest_limits",
    "verify",
    "word_tokens",
]
