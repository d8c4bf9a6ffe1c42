import subprocess
import sys
import zlib

import numpy as np

from edgekd.tasks.data.words import word_tokens


def test_a_word_is_the_same_wherever_it_stands_and_however_it_is_written():
    np.testing.assert_array_equal(
        word_tokens("Red car, RED-house", 6, 512)[[0, 1, 2]], word_tokens("red car red", 3, 512)
    )


def test_an_id_is_what_the_description_tells_an_app():
    assert word_tokens("Tür", 1, 100)[0] == 1 + zlib.crc32("tür".encode()) % 99


def test_shorter_texts_are_filled_up_with_zeros_and_longer_ones_cut():
    assert word_tokens("", 3, 512).tolist() == [0, 0, 0]
    assert (word_tokens("a b c d", 3, 512) > 0).all()
    tokens = word_tokens(" ".join(map(str, range(5000))), 5000, 64)
    assert (tokens.min(), tokens.max()) == (1, 63)


def test_another_process_finds_the_same_ids():
    code = "from edgekd.tasks.data.words import word_tokens; print(word_tokens('some words', 3, 512).tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(word_tokens("some words", 3, 512).tolist())
