"""The kinds of inputs that are fuzzed: how one is made of a random number, and what reads it.

A function here makes an input in a folder by ``random`` and gives it to edgekd, which may take it or raise an
EdgekdError. Inputs are made of right ones: most are almost right, so that they get far.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from graphs import integers, mlp, node, normal, tensor, two_towers, weights, write
from onnx import numpy_helper

NASTY = ("", " ", "\x00", "\x1b[2J", "\ud800", "\u202e", "a" * 5000, "../../x", "/dev/zero", "[/]", "`$(id)`", "ä",
         "=1",
         "0", "-1", "nan", "x.y", "logits", "embedding.x", "labels", "\n")  # fmt: skip
NUMBERS = (0, -1, 1, 2, 3, 1e308, -1e308, 1e-308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, True, -0.0)


def flip_bytes(content, random):
    """Return the content with a few bytes changed, cut out, doubled or added."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(content) + 1)
        match random.randrange(5):
            case 0 | 1 if at < len(content):
                content[at] ^= 1 << random.randrange(8)
            case 2:
                del content[at : at + random.choice((1, 2, 8, 100))]
            case 3:
                content[at:at] = content[at : at + random.choice((1, 2, 8, 100))]
            case _:
                content[at:at] = random.randbytes(random.choice((1, 2, 8)))
    return bytes(content)


def value(random, depth=0):
    """Return anything that JSON or TOML can hold."""
    kind = random.randrange(4 if depth > 3 else 6)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind < 4:
        return random.choice(NASTY)
    if kind == 4:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(NASTY): value(random, depth + 1) for _ in range(random.randrange(4))}


def _literal(item):
    """Write anything as TOML, right or not."""
    if isinstance(item, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_literal(entry)}" for key, entry in item.items()) + " }"
    if isinstance(item, list):
        return f"[{', '.join(map(_literal, item))}]"
    return json.dumps(item) if isinstance(item, str | bool) else str(item)


# --- recipes, targets, calibrations and budgets


@functools.cache
def _toml_files():
    from edgekd.config.loading import shipped_recipes
    from edgekd.config.target import shipped_targets
    from edgekd.files import data_dir

    texts = [path.read_text() for path in (*shipped_recipes().values(), *shipped_targets().values())]
    return texts + [path.read_text() for path in sorted(data_dir("calibration").glob("*.toml"))]


@functools.cache
def _keys():
    """Every dotted key of a recipe, a target, a calibration and a budget file."""
    from msgspec import inspect

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Calibration, Target

    def walk(kind, at):
        match kind:
            case inspect.Metadata():
                yield from walk(kind.type, at)
            case inspect.UnionType():
                for option in kind.types:
                    yield from walk(option, at)
            case inspect.StructType():
                for field in kind.fields:
                    yield from walk(field.type, f"{at}.{field.name}".lstrip("."))
            case inspect.DictType():
                yield from walk(kind.value_type, f"{at}.x")
            case _:
                yield at

    return sorted({key for kind in (Recipe, Target, Calibration) for key in walk(inspect.type_info(kind), "")})


def recipe(folder, random):
    """A recipe, a target, a calibration or a budget with some keys that hold anything, or bytes that were changed."""
    from edgekd.config.loading import load_recipe
    from edgekd.config.target import load_calibration
    from edgekd.devices.targets import load_target
    from edgekd.errors import EdgekdError
    from edgekd.report.compare.budgets import read_budgets
    from edgekd.training.distillation.loss_registry import check_losses

    text = random.choice(_toml_files())
    lines = [f"{random.choice(_keys())} = {_literal(value(random))}" for _ in range(random.choice((0, 1, 1, 2)))]
    text = "\n".join([*lines, text]) if random.random() < 0.7 else "[[limits]]\n" + "\n".join(lines)
    content = text.encode(random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")
    path = folder / "x.toml"
    path.write_bytes(flip_bytes(content, random) if not lines or random.random() < 0.3 else content)
    overrides = tuple(
        f"{random.choice(_keys())}={random.choice((_literal, str))(value(random))}" for _ in range(random.randrange(3))
    )
    for read in (
        lambda: check_losses(load_recipe(path, overrides)),
        lambda: check_losses(load_recipe("demo", overrides)),
        lambda: load_target(str(path)),
        lambda: load_calibration(str(path)),
        lambda: read_budgets(path),
    ):
        try:
            read()
        except EdgekdError as error:
            str(error)


# --- ONNX


@functools.cache
def _models():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        paths = [
            mlp(Path(folder) / "a.onnx"),
            mlp(Path(folder) / "b.onnx", opset=11),
            two_towers(Path(folder) / "c.onnx"),
        ]
        nodes = [
            node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(2))),
            node("Mul", ["x", "k"], ["twice"]),
            node("Reshape", ["twice", "shape"], ["map"]),
            node("Conv", ["map", "c"], ["conv"]),
            node("Flatten", ["conv"], ["flat"]),
            node("Gemm", ["flat", "w"], ["y"], alpha=0.5, transB=1),
        ]
        stored = [*weights(c=(2, 1, 3), w=(3, 4)), *integers(shape=[-1, 1, 4])]
        ends = [tensor("x", ["n", 4])], [tensor("y", ["n", 3])]
        paths.append(write(Path(folder) / "d.onnx", nodes, *ends, stored))
        return [path.read_bytes() for path in paths]


SAMPLES = {"x": normal(4), "image": normal(1, 8, 8), "motion": normal(5, 4, seed=1)}


def _messages(message):
    """Yield every field that is set in a message and in those inside it."""
    for field, item in message.ListFields():
        yield message, field
        if field.type == field.TYPE_MESSAGE:
            for inner in (item,) if hasattr(item, "ListFields") else item:
                yield from _messages(inner)


def _mutate(model, random):
    """Change one field of a model, in place: another value, cleared, doubled, reversed."""
    message, field = random.choice(list(_messages(model)))
    item, name = getattr(message, field.name), field.name
    many = not isinstance(item, str | bytes | int | float) and not hasattr(item, "ListFields")
    choice = random.randrange(5)
    if choice == 0:
        message.ClearField(name)
    elif many and field.type == field.TYPE_MESSAGE:
        kept = list(item)
        random.shuffle(kept)
        kept = kept if choice == 1 else [*kept, random.choice(kept)] if choice == 2 else kept[:-1]
        kept = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
        message.ClearField(name)
        getattr(message, name).extend(kept)
    elif field.type != field.TYPE_MESSAGE:
        other = random.choice(list(_messages(model)))
        new = _scalar(field, random, getattr(*[other[0], other[1].name]))
        if not many:
            setattr(message, name, new)
        elif item:
            item[random.randrange(len(item))] = new


def _scalar(field, random, other):
    if field.type == field.TYPE_STRING:
        words = (
            "x",
            "w",
            "y",
            "h",
            "Relu",
            "Loop",
            "If",
            "Constant",
            "LSTM",
            "QuantizeLinear",
            "Dropout",
            "com.microsoft",
        )
        nasty = [text for text in NASTY if "\ud800" not in text]
        return other if isinstance(other, str) else random.choice((*words, *nasty))
    if field.type == field.TYPE_BYTES:
        return random.randbytes(random.choice((0, 1, 4, 48)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return float(random.choice((0, -1, 1, 1e30, float("nan"), float("inf"))))
    limit = 31 if field.type in (field.TYPE_INT32, field.TYPE_ENUM) else 62
    return random.choice((0, 1, -1, 2, 3, 4, 7, 10, 11, 13, 16, 18, 20, 2**limit, -(2**limit)))


def model(folder, random):
    """An ONNX model with some fields or bytes changed, imported with samples that fit what it was."""
    from edgekd.pipeline.imported_source import weight_files
    from edgekd.pipeline.onnx_import.source import OnnxSource
    from edgekd.pipeline.onnx_import.stage import import_onnx
    from edgekd.stages.progress import Silent, StageReporter

    content = random.choice(_models())
    if random.random() < 0.75:
        changed = onnx.load_from_string(content)
        for _ in range(random.choice((1, 1, 2, 3))):
            try:
                _mutate(changed, random)
            except (ValueError, TypeError):  # no value of this field
                continue
        content = changed.SerializeToString()
    else:
        content = flip_bytes(content, random)
    path = folder / "m.onnx"
    path.write_bytes(content)
    names = ("image", "motion") if b"motion" in content else ("x",)
    extra = {} if random.random() < 0.5 else {"labels": np.arange(12) % 3}
    np.savez(folder / "s.npz", **{name: SAMPLES[name] for name in names}, **extra)
    weight_files(path)
    taps = {} if random.random() < 0.8 else {"a": random.choice(("h", "y", "x", "pooled"))}
    import_onnx(OnnxSource(path, folder / "s.npz", taps=taps), folder, StageReporter(Silent(), "import"))


# --- samples


def _array(random):
    shape = tuple(random.choice((0, 1, 2, 4, 12)) for _ in range(random.randrange(4)))
    kind = random.choice(("f4", "f8", "f2", "i8", "u1", "?", "U3", "S2", "O", "M8[s]", "c8", "V4", "i4,f4", ">f4"))
    array = np.zeros(shape, kind)
    if array.dtype.kind == "f" and array.size:
        array.flat[0] = random.choice(NUMBERS[:4] + NUMBERS[7:10])
    return np.asfortranarray(array) if random.random() < 0.2 else array


def samples(folder, random):
    """An .npz with arrays of any shape and type, or bytes changed, for a model and for an engine."""
    from edgekd.errors import EdgekdError
    from edgekd.pipeline.onnx_import.samples import read_samples
    from edgekd.runtime.feeds import read_feeds
    from edgekd.runtime.session import TensorSpec

    arrays = {
        "x": SAMPLES["x"],
        "labels": np.arange(12),
        "ids": np.arange(12).astype(str),
        "groups": np.arange(12) // 2,
    }
    for _ in range(random.randrange(3)):
        arrays[random.choice((*arrays, "input.x", "other", "a/b"))] = _array(random)
    stream = io.BytesIO()
    random.choice((np.savez, np.savez_compressed))(stream, **arrays)
    content = stream.getvalue()
    path = folder / "s.npz"
    path.write_bytes(content if random.random() < 0.3 else flip_bytes(content, random))
    specs = (TensorSpec("x", "float32", ("n", 4)),)
    for read in (lambda: read_samples(path, specs, ()).save(folder / "t.npz"), lambda: read_feeds(path, specs)):
        try:
            read()
        except EdgekdError as error:
            str(error)


# --- bundles


@functools.cache
def _bundle():
    import tempfile

    import test_bundle

    folder = Path(tempfile.mkdtemp(prefix="edgekd-fuzz-")) / "bundle"
    test_bundle.make_bundle(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder.parent)
    return files


def _poison(item, random):
    """Return a JSON value with one part of it replaced by anything."""
    if isinstance(item, dict | list) and item and random.random() < 0.85:
        changed = item.copy()
        key = random.choice(list(item)) if isinstance(item, dict) else random.randrange(len(item))
        if random.random() < 0.1:
            del changed[key]
        else:
            changed[key] = _poison(item[key], random)
        return changed
    return value(random)


def bundle(folder, random):
    """A bundle with bytes of a file changed, or a value of its manifest or ledger; loaded, run and verified."""
    import edgekd

    files = dict(_bundle())
    name = random.choice((*files, "manifest.json", "manifest.json"))
    if name.endswith(".json") and random.random() < 0.6:
        text = json.dumps(_poison(json.loads(files[name]), random))
        files[name] = text.encode("utf-8", "surrogatepass")
    else:
        files[name] = flip_bytes(files[name], random)
    place = folder / "bundle"
    for file, content in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(content)
    with edgekd.load(place, allow_rejected=True) as opened:
        opened.run({"accel": np.zeros((1, 4), np.float32), "image": np.zeros((1, 1, 2, 3), np.float32)})
    edgekd.verify(place)


# --- tasks


_TASK = """
import torch
from torch import nn
from edgekd import ArraySplit, Modality, Sample

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(2, width), nn.Linear(3, width)
        self.head = nn.Linear(2 * width, 3)
    def forward(self, {parameters}):
        {forward}

class Mine:
    {attributes}
    {modalities}
    def __init__(self{options}):
        {init}
    def splits(self):
        {splits}
    def split(self, name, count=4):
        a, b = {a}, {b}
        return ArraySplit({ids}, {inputs}, {labels}{groups})
    def teacher(self):
        {teacher}
    def student(self):
        {student}
    {more}
"""

_ANY = ("None", "3", "-1", "'x'", "[]", "{}", "object()", "float('nan')", "torch.zeros(0)", "Net", "print", "b'x'",
        "'\\ud800'", "'\\x1b[2J'", "lambda *a: None", "iter(())", "1 / 0", "[5]", "torch.zeros(4, 3)", "type", "...")  # fmt: skip
_NETS = ("return Net()", "return Net(8)", "return {any}", "pass", "raise SystemExit(0)",
         "return nn.Linear(2, 3)", "return torch.jit.script(nn.Linear(2, 3))", "return Net().half()", "import sys; sys.exit(0)",
         "net = Net(); net.head = None; return net", "net = Net(); net.a.weight.data.fill_(float('nan')); return net",
         "net = Net(); net.requires_grad_(False); return net", "return nn.utils.parametrizations.weight_norm(Net().a)")  # fmt: skip
_SLOTS = {
    "parameters": ("a, b", "a, b", "a", "*x", "a, b, c", "self_, a, b=None"),
    "forward": ("return self.head(torch.cat([self.a(a), self.b(b)], 1))", "return {any}", "raise ValueError('no')",
                "return self.head(torch.cat([self.a(a), self.b(b)], 1)) * float('nan')", "return self.a(a)",
                "return {{'logits': self.head(torch.cat([self.a(a), self.b(b)], 1))}}", "exit(0)",
                "self.a(a); return torch.zeros(len(a), 3)"),
    "attributes": ("pass", "classes = ['x', 'y', 'z']", "classes = {any}", "files = {any}", "metric_name = {any}",
                   "higher_is_better = {any}", "teacher_taps = {any}", "files = ['/dev/zero']", "files = ['.']"),
    "modalities": ("modalities = [Modality('a', (2,)), Modality('b', (3,))]", "modalities = {any}",
                   "modalities = [Modality('a', (2,))]", "modalities = [Modality({any}, (2,)), Modality('b', (3,))]",
                   "modalities = [Modality('a', {any}), Modality('b', (3,))]",
                   "modalities = [Modality('a', (2,)), Modality('a', (3,))]"),
    "options": ("", "", ", x", ", *a", ", **k"),
    "init": ("pass", "raise RuntimeError('x')", "exit()", "torch.set_default_dtype(torch.float64)", "import numpy; numpy.seterr(all='raise')"),
    "splits": ("return {{n: self.split(n) for n in ('train', 'val', 'calibration', 'test')}}", "return {any}",
               "return {{n: self.split(n) for n in ('train', 'val', 'test')}}",
               "return {{n: self.split(n) for n in ('train', 'val', 'calibration', 'test', 'more')}}",
               "return dict.fromkeys(('train', 'val', 'calibration', 'test'), {any})",
               "return {{n: self.split('x') for n in ('train', 'val', 'calibration', 'test')}}",
               "return {{n: self.split(n, 0) for n in ('train', 'val', 'calibration', 'test')}}"),
    "a": ("torch.randn(count, 2)", "torch.randn(count, 3)", "torch.full((count, 2), float('nan'))", "{any}",
          "torch.zeros(count, 2).long()", "torch.zeros(count, 2).double()"),
    "b": ("torch.randn(count, 3)", "torch.randn(count, 3)", "{any}", "torch.randn(count + 1, 3)"),
    "ids": ("[f'{{name}}{{i}}' for i in range(count)]", "['x'] * count", "range(count)", "{any}", "[{any}] * count",
            "[f'{{name}}\\ud800{{i}}' for i in range(count)]"),
    "inputs": ("{{'a': a, 'b': b}}", "{{'a': a}}", "{any}", "{{'b': b, 'a': a}}", "{{'a': a, 'b': b, 'c': a}}"),
    "labels": ("torch.arange(count) % 3", "torch.zeros(count).long()", "torch.full((count,), 99)", "torch.zeros(count)",
               "torch.full((count,), -1)", "{any}", "[0] * count"),
    "groups": ("", "", ", ['g'] * count", ", {any}", ", [name] * count"),
    "teacher": _NETS,
    "student": _NETS,
    "more": ("", "def metric(self, logits, labels): return {any}", "metric = {any}", "teacher = student", "splits = {any}"),
}  # fmt: skip


def task(folder, random):
    """A task that is right but for a few places; loaded, and checked before training."""
    from edgekd.config.loading import load_recipe
    from edgekd.stages.progress import Silent, StageReporter
    from edgekd.training.preflight.check import check
    from edgekd.training.taps.taps import Taps, resolve_taps
    from edgekd.training.task.loading import load_task

    odd = random.sample(sorted(_SLOTS), random.choice((0, 1, 1, 1, 2, 3)))
    chosen = {
        name: (random.choice(options) if name in odd else options[0]).format(any=random.choice(_ANY))
        for name, options in _SLOTS.items()
    }
    path = folder / "mine.py"
    path.write_text(_TASK.format(**chosen))
    content = path.read_bytes()
    path.write_bytes(flip_bytes(content, random) if random.random() < 0.1 else content)
    (folder / "edgekd.toml").write_text(
        '[task]\nname = "mine.py:Mine"\n[teacher.taps]\na = "a"\nb = "b"\n[student.taps]\na = "a"\nb = "b"\n'
    )
    recipe = load_recipe(folder)
    loaded = load_task(recipe.task)
    taps = (
        resolve_taps(role, getattr(recipe, role).taps, getattr(loaded.task, f"{role}_taps", {}), loaded.modalities)
        for role in ("teacher", "student")
    )
    check(loaded, Taps(*taps, recipe.teacher.precision), recipe, StageReporter(Silent(), "preflight"))


#: The kinds of inputs. How often each is drawn: a task is trained for a few steps, which takes a hundred times as long.
SHARES = {"recipe": 5, "onnx": 5, "npz": 5, "bundle": 5, "task": 1}
KINDS = {"recipe": recipe, "onnx": model, "npz": samples, "bundle": bundle, "task": task}
