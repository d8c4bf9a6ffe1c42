"""Text as token ids, without a vocabulary: a word's id is a hash of it."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def word_tokens(text: str, length: int, buckets: int) -> NDArray[np.int64]:
    """Return a text as token ids, int64 [length].

    A word is a run of letters, digits and underscores, in lower case. Its id is one more than the CRC-32 of its UTF-8
    bytes modulo ``buckets - 1``, so no vocabulary is kept, and an app in any language finds the same ids. Two words may
    share an id. Words beyond ``length`` are left out; 0 fills up what is shorter.
    """
    words = _WORD.findall(text.lower())[:length]
    tokens = np.zeros(length, np.int64)
    tokens[: len(words)] = [1 + zlib.crc32(word.encode()) % (buckets - 1) for word in words]
    return tokens


def told_tokens(buckets: int) -> str:
    """Return in words what an app must feed."""
    return (
        f"ids of the text's words in lower case: 1 + CRC-32 of the UTF-8 bytes modulo {buckets - 1}, and 0 to fill up; "
        "edgekd.word_tokens"
    )
