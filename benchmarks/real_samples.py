"""What each real network is given, prepared as its own package prepares it: arrays by the names of its inputs.

Every function takes the part of the samples (``"calibration"`` or ``"test"``: no voice, picture, file or module of the
standard library is in both), how many, and the float network, and returns the samples ``[count, ...]`` with their
``labels`` or ``texts`` where these are known by construction.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from real_packages import magika_types, minilm_tokenizer, openwakeword_embedding, openwakeword_melspectrogram
from real_pictures import crops, lines, pages, scenes
from real_sounds import VOICES, music, noise, speak, stream
from real_texts import files_by_type, sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Array = np.ndarray[Any, Any]
    Maker = Callable[[str, int, Path], dict[str, Array]]

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Sampling rates in Hz, of speech and of music.
SPEECH_RATE, MUSIC_RATE = 16000, 22050


def open_network(model: Path | bytes) -> Any:
    """Open a network in ONNX Runtime, with one thread and without its warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _channels_first(images: Iterator[Array], mean: tuple[float, ...], deviation: tuple[float, ...]) -> Array:
    pixels = np.stack([*images]).astype(np.float32) / 255
    scaled = (pixels - np.float32(mean)) / np.float32(deviation)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def _every(sound: Array, count: int, length: int) -> Array:
    """Return stretches of a sound at equal distances: float32 [count, length]."""
    starts = np.linspace(0, len(sound) - length, count).astype(int)
    return np.stack([sound[start : start + length] for start in starts])


def voice_activity(part: str, count: int, model: Path) -> dict[str, Array]:
    """Return chunks of 32 ms with the 4 ms before them, and the state that the float network has reached by then.

    Of each ten chunks one is taken, so that a minute and more of speech is heard.
    """
    stride, chunk, context = 10, 512, 64
    network = open_network(model)
    sound = np.concatenate([np.zeros(context, np.float32), stream(part, SPEECH_RATE, (count * stride + 1) * 0.032)])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(SPEECH_RATE)
    inputs, states = [], []
    for index in range(count * stride):
        heard = sound[None, index * chunk : (index + 1) * chunk + context]
        if index % stride == stride // 2:
            inputs.append(heard[0])
            states.append(state)
        state = network.run(["stateN"], {"input": heard, "state": state, "sr": rate})[0]
    return {"input": np.stack(inputs), "state": np.stack(states), "sr": np.full(count, SPEECH_RATE)}


def file_types(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return the first and last 1024 bytes of files without the white space around them, 256 where there is none."""
    types, tokens = magika_types(), 1024
    found = files_by_type()
    chosen = found[:count] if part == "calibration" else found[-count:]
    rows = np.full((count, 2 * tokens), 256, np.int32)
    for row, (file, _) in zip(rows, chosen, strict=True):
        content = file.read_bytes()
        first, last = content[:4096].lstrip()[:tokens], content[-4096:].rstrip()[-tokens:]
        row[: len(first)] = list(first)
        row[len(row) - len(last) :] = list(last)
    return {"bytes": rows, "labels": np.array([types.index(kind) for _, kind in chosen])}


def notes(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return almost two seconds of plucked strings at 22.05 kHz."""
    length = 2 * MUSIC_RATE - 256
    return {"serving_default_input_2:0": music(part, MUSIC_RATE, length / MUSIC_RATE, count)[..., None]}


def face_scenes(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return pictures with faces as red, green and blue from 0 to 255, channels first."""
    return {"input.1": np.stack([*scenes(part, count, 256, 320)]).transpose(0, 3, 1, 2).astype(np.float32)}


def nsfw_images(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return photographs as blue, green and red without their means, saved as JPEG before."""
    from PIL import Image

    rows = []
    for pixels in crops(part, count, 224, 224):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG")
        rows.append(np.asarray(Image.open(file), np.float32)[:, :, ::-1] - np.float32([104, 117, 123]))
    return {"input:0": np.stack(rows)}


def _spectrograms(part: str, count: int, frames: int) -> Array:
    """Return log mel spectrograms of speech as openWakeWord has them: float32 [count, frames, 32]."""
    network = open_network(openwakeword_melspectrogram())
    length = 160 * frames + 480
    sound = _every(stream(part, SPEECH_RATE, max(60, count)), count, length) * 32767
    found = [network.run(None, {"input": row[None]})[0].reshape(-1, 32)[:frames] for row in np.round(sound)]
    return np.stack(found).astype(np.float32) / 10 + 2


def speech_frames(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return spectrograms of 0.76 s of speech, as openWakeWord's embedding takes them."""
    return {"input_1": _spectrograms(part, count, 76)[..., None]}


def wake_words(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return embeddings of 2 s of sound that ends in the wake word in every second sample, and is other speech else."""
    mel, embed = open_network(openwakeword_melspectrogram()), open_network(openwakeword_embedding())
    random, voices, frames = np.random.default_rng(6 + len(part)), VOICES[part], 76 + 15 * 8
    length = 160 * frames + 480
    others = _every(stream(part, SPEECH_RATE, 60), count, length)
    rows = []
    for index, other in enumerate(others):
        sound = other
        if index % 2:
            word = speak("Alexa", voices[index // 2 % len(voices)], int(random.integers(110, 180)), SPEECH_RATE)
            loudness = random.uniform(0.1, 0.6) / np.abs(word).max()
            sound = 10 ** (-random.uniform(30, 60) / 20) * noise(length, random)
            after = int(random.uniform(0, 0.2) * SPEECH_RATE)
            end = length - after
            start = max(0, end - len(word))
            sound[start:end] += loudness * word[-(end - start) :]
        spectrogram = mel.run(None, {"input": np.round(sound[None] * 32767)})[0].reshape(-1, 32) / 10 + 2
        windows = np.stack([spectrogram[start : start + 76] for start in range(0, 16 * 8, 8)])[..., None]
        rows.append(embed.run(None, {"input_1": windows})[0].reshape(16, 96))
    return {"onnx::Flatten_0": np.stack(rows).astype(np.float32)}


def speech_seconds(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return seconds of speech as whole numbers of 16 bits, as openWakeWord's spectrogram takes them."""
    return {"input": np.round(_every(stream(part, SPEECH_RATE, max(60, count)), count, 16000) * 32767)}


def calls(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return 9.01 s of speech, of many loudnesses and under many noises."""
    return {"input_1": _every(stream(part, SPEECH_RATE, 5 * count), count, 144160)}


def pitches(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return seconds of speech, and of plucked strings in every second sample, with the widest range of pitch."""
    audio = _every(stream(part, SPEECH_RATE, 2 * count), count, SPEECH_RATE)
    audio[1::2] = music(part, SPEECH_RATE, 1, len(audio[1::2]))
    return {"audio": audio, "fmin": np.full(count, 46.875, np.float32), "fmax": np.full(count, 2093.75, np.float32)}


def text_pages(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return photographs with printed lines of text on them."""
    images = (image for image, _ in pages(part, count, 320, 480))
    return {"x": _channels_first(images, (0.5,) * 3, (0.5,) * 3)}


def text_lines(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return printed lines of text, with what they say."""
    images, said = zip(*lines(part, count, 48, 320), strict=True)
    return {"x": _channels_first(iter(images), (0.5,) * 3, (0.5,) * 3), "texts": np.array(said)}


def turned_lines(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return printed lines of text, every second one upside down, which is its label."""
    images = (image[:: (-1) ** index, :: (-1) ** index] for index, (image, _) in enumerate(lines(part, count, 48, 192)))
    return {"x": _channels_first(images, (0.5,) * 3, (0.5,) * 3), "labels": np.arange(count) % 2}


def photographs(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return photographs scaled by ImageNet's mean and deviation."""
    return {"input_image": _channels_first(crops(part, count, 224, 224), IMAGENET_MEAN, IMAGENET_DEVIATION)}


def lite_photographs(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return photographs scaled as EfficientNet-Lite has them: pixels less 127, over 128."""
    pixels = np.stack([*crops(part, count, 224, 224)]).transpose(0, 3, 1, 2).astype(np.float32)
    return {"image": (pixels - 127) / 128}


def encoded_sentences(part: str, count: int, _model: Path) -> dict[str, Array]:
    """Return sentences as word pieces, the shorter ones padded and masked."""
    tokenizer, length = minilm_tokenizer(), 64
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(sentences(part)[:count]))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(row, key) for row in encoded], np.int64) for name, key in columns.items()}
