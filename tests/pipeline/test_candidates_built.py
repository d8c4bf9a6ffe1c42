"""`edgekd build --model` of a transformer that was exported from torch: which candidates are tried, and what ships."""

import numpy as np
import onnx
import pytest
import torch
from commands import edgekd, events
from onnxruntime.quantization import quantize_dynamic

from edgekd import load
from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import Calibration, read_target

QUICK = (
    *("--set=profile.iterations=100", "--set=profile.warmup=5", "--set=profile.cold_starts=1"),
    *("--set=quantize.calibration=minmax", "--set=quantize.repair=off"),
)
LENGTH, WORDS, WIDTH = 24, 800, 96


class Reader(torch.nn.Module):
    """Attention with a mask, a GRU, and a head that shares the embedding's table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.widen, self.narrow = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.gru = torch.nn.LayerNorm(WIDTH), torch.nn.GRU(WIDTH, 48, batch_first=True)
        self.head = torch.nn.Linear(48, WIDTH)

    def forward(self, tokens, mask):
        x = self.table(tokens)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        shares = torch.softmax(scores.masked_fill(mask[:, None] == 0, torch.finfo(torch.float32).min), -1)
        x = self.norm(x + shares @ self.value(x))
        x = self.norm(x + self.narrow(torch.nn.functional.gelu(self.widen(x))))
        _, last = self.gru(x)
        return self.head(last[0]) @ self.table.weight.T


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    tokens = random.integers(0, WORDS, (96, LENGTH))
    mask = (np.arange(LENGTH) < random.integers(8, LENGTH, (96, 1))).astype(np.int64)
    given = (torch.from_numpy(tokens[:2]), torch.from_numpy(mask[:2]))
    torch.onnx.export(
        Reader().eval(), given, folder / "reader.onnx", dynamo=False, opset_version=17,
        input_names=["tokens", "mask"], output_names=["words"],
        dynamic_axes={name: {0: "batch"} for name in ("tokens", "mask", "words")},
    )  # fmt: skip
    np.savez(folder / "samples.npz", tokens=tokens, mask=mask)
    np.savez(folder / "calibration.npz", ids=np.arange(96), **{"input.tokens": tokens, "input.mask": mask})
    return folder


def build(folder, *more):
    process = edgekd(
        *("build", "--model", "reader.onnx", "--calibration", "samples.npz", "--output", "words=regression"),
        *("--cache", "cache", "--json", *QUICK, *more),
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    return events(process.stdout)[-1]["report"]["targets"][0]


def test_what_can_win_is_tried_and_what_cannot_is_told_in_one_line(folder):
    target = build(folder)
    assert [one["name"] for one in target["candidates"]] == ["int8", "int8-dynamic", "float32"]
    (told,) = [fact for fact in target["facts"] if fact.startswith("Not tried: ")]
    assert told.startswith("Not tried: int8-weights8 and int8-weights4, since ")


def test_a_candidate_that_was_asked_for_is_tried_and_ships_as_it_was_judged(folder):
    target = build(folder, '--set=quantize.quantizers=["dynamic"]', "--set=quantize.precision=int8")
    assert [one["name"] for one in target["candidates"]] == ["int8-dynamic"]
    assert not [fact for fact in target["facts"] if fact.startswith("Not tried")]
    with load(folder / "build" / "reader" / "cpu" / "bundle") as bundle, np.load(folder / "samples.npz") as samples:
        assert bundle.verify().ok
        assert bundle.run({name: samples[name][:1] for name in ("tokens", "mask")})["words"].shape == (1, WORDS)


def test_the_dynamic_candidate_is_no_further_off_and_no_larger_than_that_of_onnxruntime(folder):
    scheme, calibration = read_target("cpu").scheme, Calibration(description="", ranges="minmax", samples=16)
    spec = CandidateSpec("int8", "dynamic")
    quantize.run(spec, folder / "reader.onnx", folder / "calibration.npz", scheme, calibration, folder)
    quantize_dynamic(folder / "reader.onnx", folder / "ort.onnx", per_channel=True, reduce_range=scheme.reduce_range)
    with np.load(folder / "samples.npz") as samples:
        feeds = [{name: samples[name][i : i + 1] for name in ("tokens", "mask")} for i in range(48)]
    exact, ours, theirs = (
        _outputs(path, feeds)
        for path in (folder / "reader.onnx", folder / "int8-dynamic" / "deploy.onnx", folder / "ort.onnx")
    )
    assert np.square(ours - exact).mean() <= 1.02 * np.square(theirs - exact).mean()
    assert (folder / "int8-dynamic" / "deploy.onnx").stat().st_size <= 1.02 * (folder / "ort.onnx").stat().st_size
    kinds = [node.op_type for node in onnx.load(folder / "int8-dynamic" / "deploy.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 7
    assert "GRU" in kinds, "ONNX Runtime has none of integers"


def _outputs(path, feeds):
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["words"], feed)[0] for feed in feeds])
