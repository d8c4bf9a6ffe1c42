"""How figures are written, in the terminal, in Markdown and on pages alike."""

from __future__ import annotations

import math

#: An empty cell; a figure that could have been measured and was not is told in words instead.
NOTHING = "–"
WITHHELD = "withheld"


def withheld(samples: int) -> str:
    """Return why a quantile of so few inferences is withheld."""
    return f"{WITHHELD}: {samples} samples are too few for its 95 % interval"


def milliseconds(value: float) -> str:
    """Write a time in ms with about three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def spread(low: float, high: float) -> str:
    """Write a range of ms, e.g. ``"0.410–0.415"``."""
    return "–".join(dict.fromkeys((milliseconds(low), milliseconds(high))))


def size(count: int | None) -> str:
    """Write a number of bytes in the decimal units of budgets: kB and MB."""
    if count is None:
        return "not measured"
    if count < 999_500:
        return f"{count / 1e3:.{0 if count >= 99_950 else 1}f} kB"
    return f"{count / 1e6:.{0 if count >= 99_950_000 else 1 if count >= 9_995_000 else 2}f} MB"


def factor(value: float | None) -> str:
    """Write a ratio, e.g. ``"4.7×"``."""
    if value is None:
        return "not measured"
    return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}×"


def number(value: float | None, form: str = ".4f") -> str:
    """Write a figure; one that is not finite is "NaN", and what rounds to nothing has no minus."""
    if value is None:
        return NOTHING
    text = format(value, form)
    if not math.isfinite(value):
        return "NaN"
    return text if any(digit in text for digit in "123456789") else format(0.0, form)


def small(value: float | None) -> str:
    """Write a figure that may be tiny, or large: ``"0.0123"``, ``"3e-06"``, ``"1.23e+04"``."""
    if value is None or not math.isfinite(value):
        return number(value)
    size_of = abs(value)
    return f"{value:.0e}" if 0 < size_of < 5e-5 else f"{value:.3g}" if size_of >= 1000 else number(value)


def share(value: float) -> str:
    """Write a part of a whole as a percentage."""
    return format(value, ".0%") if value >= 0.0995 else percent(value)


def percent(value: float | None) -> str:
    """Write a part of a whole as a percentage with a decimal; what is more than nothing never reads 0.0%."""
    return f"{value * 100:.1g}%" if value is not None and 0 < value < 0.0005 else number(value, ".1%")


def rate(value: float) -> str:
    """Write a number of inferences per second, e.g. ``"32,706"``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def significant(value: float) -> str:
    """Write a figure with three significant digits."""
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a time as one would say it: ``"8.1 s"``, ``"45 s"``, ``"3 min 05 s"``, ``"1 h 02 min"``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
