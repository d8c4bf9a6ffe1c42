"""Sounds that the audio networks are given: speech in several voices under noise, and plucked strings."""

from __future__ import annotations

import shutil
import subprocess
import wave
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from real_texts import sentences

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, Any]

#: Voices of espeak-ng by part of the samples: no voice speaks in both.
VOICES = {
    "calibration": ("en-us", "en-us+f2", "en-gb+m3", "de+f4", "fr+m1", "en-us+croak"),
    "test": ("en-gb", "en-gb+f3", "en-us+m7", "es+f1", "it+m4", "en-gb+whisper"),
}
#: Recordings of a human voice by Debian's alsa-utils, by part.
RECORDINGS = {
    "calibration": ("Front_Center", "Front_Left", "Rear_Center", "Side_Left"),
    "test": ("Front_Right", "Rear_Left", "Rear_Right", "Side_Right"),
}
_RECORDINGS_FOLDER = Path("/usr/share/sounds/alsa")
#: Words a minute, and decibels of speech over noise, that a clip's are drawn from.
_PACES, _NOISE_DB = (120, 200), (0, 40)
#: The open strings of a guitar in Hz, and how long a plucked one rings in seconds.
_STRINGS, _RING_S = (82.41, 110.0, 146.83, 196.0, 246.94, 329.63), 1.5


def speak(text: str, voice: str, pace: int, rate: int) -> Array:
    """Return a text spoken by espeak-ng: float32 [samples] in -1 to 1 at a rate in Hz."""
    if not (program := shutil.which("espeak-ng")):
        raise SystemExit("espeak-ng is not installed: it speaks what the audio networks hear (apt install espeak-ng)")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        subprocess.run([program, "-v", voice, "-s", str(pace), "-w", str(file), text], check=True)
        return read_wave(file, rate)


def read_wave(file: Path, rate: int) -> Array:
    """Return the first channel of 16-bit PCM at another rate: float32 [samples] in -1 to 1."""
    from scipy.signal import resample_poly

    with wave.open(str(file)) as opened:
        found, channels = opened.getframerate(), opened.getnchannels()
        pcm = np.frombuffer(opened.readframes(opened.getnframes()), np.int16)[::channels]
    shared = gcd(found, rate)
    sound: Array = resample_poly(pcm / 32768, rate // shared, found // shared).astype(np.float32)
    return sound


def utterances(part: str, rate: int, texts: Sequence[str]) -> list[Array]:
    """Return texts spoken by the voices of a part in turn, and its recordings: float32 [samples] each."""
    random = np.random.default_rng(len(part))
    voices = VOICES[part]
    spoken = [
        speak(text, voices[index % len(voices)], int(random.integers(*_PACES)), rate)
        for index, text in enumerate(texts)
    ]
    recorded = [_RECORDINGS_FOLDER / f"{name}.wav" for name in RECORDINGS[part]]
    if missing := [file for file in recorded if not file.is_file()]:
        raise SystemExit(f"{missing[0]} is missing: a recorded voice (apt install alsa-utils)")
    return spoken + [read_wave(file, rate) for file in recorded]


def noise(count: int, random: np.random.Generator) -> Array:
    """Return noise of unit power whose spectrum falls by a random slope, as a room's does: float32 [count]."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    coloured = np.fft.irfft(spectrum * frequency ** -random.uniform(0, 1), count)
    sound: Array = (coloured / coloured.std()).astype(np.float32)
    return sound


def stream(part: str, rate: int, seconds: float) -> Array:
    """Return speech with pauses, loud and soft, under noise that changes: float32 [samples] in -1 to 1."""
    random = np.random.default_rng(1 + len(part))
    texts = sentences(part)[:24]
    spoken = utterances(part, rate, texts)
    pieces, length = [], 0
    while length < seconds * rate:
        speech = spoken[random.integers(len(spoken))]
        before, after = (int(random.uniform(0.1, 1.5) * rate) for _ in range(2))
        piece = np.concatenate([np.zeros(before), speech, np.zeros(after)])
        loudness = 10 ** (random.uniform(-26, -6) / 20) / max(float(np.abs(speech).max()), 1e-6)
        power = float(np.sqrt((speech**2).mean())) * 10 ** (-random.uniform(*_NOISE_DB) / 20)
        pieces.append(loudness * (piece + power * noise(len(piece), random)))
        length += len(piece)
    sound: Array = np.concatenate(pieces)[: int(seconds * rate)].clip(-1, 1).astype(np.float32)
    return sound


def pluck(frequency: float, count: int, rate: int, random: np.random.Generator) -> Array:
    """Return a plucked string by Karplus and Strong (Computer Music Journal 7, 1983): float32 [count]."""
    from scipy.signal import lfilter

    period = round(rate / frequency)
    excited = np.zeros(count)
    excited[:period] = random.uniform(-1, 1, period)[:count]
    feedback = np.zeros(period + 2)
    decay = 10 ** (-3 / (frequency * _RING_S))  # down by 60 dB in that time
    feedback[0], feedback[period], feedback[period + 1] = 1, -decay / 2, -decay / 2
    sound: Array = lfilter([1.0], feedback, excited).astype(np.float32)
    return sound


def music(part: str, rate: int, seconds: float, count: int) -> Array:
    """Return clips of plucked strings, one to four at a time, under a little noise: float32 [count, samples]."""
    random = np.random.default_rng(2 + len(part))
    length = int(seconds * rate)
    clips = []
    for _ in range(count):
        clip = np.zeros(length, np.float32)
        for start in range(0, length, int(random.uniform(0.12, 0.6) * rate)):
            for string in random.choice(_STRINGS, random.integers(1, 5), replace=False):
                fret = int(random.integers(0, 13))
                clip[start:] += pluck(string * 2 ** (fret / 12), length - start, rate, random)
        loudness = 10 ** (random.uniform(-20, -3) / 20) / np.abs(clip).max()
        hiss = 10 ** (random.uniform(-70, -40) / 20)
        clips.append(loudness * clip + hiss * noise(length, random))
    return np.stack(clips).clip(-1, 1)
