"""Statistics that numpy lacks. A device has no scipy."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Array: TypeAlias = "NDArray[np.float64]"


def spearman(a: _Array, b: _Array) -> float | None:
    """Return Spearman's rank correlation of ``a`` [n] and ``b`` [n], ties at their mean rank.

    The correlation is None where one side is constant or empty.
    """
    if not len(a):
        return None
    ranks = [_average_ranks(a), _average_ranks(b)]
    if any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _average_ranks(values: _Array) -> _Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: _Array = ((last - counts + last - 1) / 2)[inverse]
    return ranks


def debiased_cka(x: _Array, y: _Array) -> float | None:
    """Return linear CKA of ``x`` [n, d1] and ``y`` [n, d2] from the unbiased HSIC of Song et al. (JMLR 2012, eq. 5).

    The biased estimator passes noise when features outnumber samples: 0.80 for independent features at d=128, n=32.
    CKA is None for fewer than 4 rows, for which it is not defined, and where one side does not vary.
    """
    if len(x) < 4:
        return None
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    scale = _hsic(k, k) * _hsic(m, m)
    return float(_hsic(k, m) / np.sqrt(scale)) if scale > 0 else None


def _hsic(k: _Array, m: _Array) -> float:
    n = len(k)
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(1))
    return float(total / (n * (n - 3)))


@cache
def t_quantile(confidence: float, freedom: int) -> float:
    """Return the quantile of Student's t for a probability ``confidence`` and ``freedom`` degrees of freedom.

    With t = sqrt(freedom) * tan(u) the density of u is cos(u)^(freedom - 1). Above 1000 degrees of freedom the quantile
    is the normal distribution's, which at 95 % is less than 0.1 % smaller.
    """
    if freedom > 1000:
        return NormalDist().inv_cdf(confidence)
    u = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(u) ** (freedom - 1)
    area = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(2 * confidence - 1, area / area[-1], u)))


def t_tail(t: float, freedom: int) -> float:
    """Return the probability that Student's t is as far from 0 as ``t``, on either side.

    The density is that of :func:`t_quantile`; the tail is summed by itself, so that small ones are not lost.
    """
    u = np.linspace(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, 2001)
    density = np.cos(u) ** (freedom - 1)
    tail = float((density[1:] + density[:-1]).sum() * (u[1] - u[0]) / 2)
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return min(tail / whole, 1.0)
