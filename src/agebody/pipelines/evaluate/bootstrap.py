"""Confidence intervals by bootstrap over images.

Whole images are drawn with replacement, because the people of one image, and the joints of one person, are
not independent.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""Confidence level."""

_AT_ONCE = 64


def resample(clusters: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "R clusters"]]:
    """Yield how often each resample draws each cluster, some resamples at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        draws = generator.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(draws.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def ratio_intervals(
    numerators: Float[np.ndarray, "clusters S"],
    denominators: Float[np.ndarray, "clusters S"],
    *,
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "2 S"]:
    """Return percentile intervals of ratios of sums over clusters (Efron 1979): lower and upper ends.

    All means, shares and rates over a data set are such ratios. Ends are NaN without resamples, and where
    fewer than two clusters contribute. Resamples to which none contributes are ignored.
    """
    ratios = [np.empty((0, numerators.shape[1]))]
    for counts in resample(len(numerators), resamples, seed):
        above, below = counts @ numerators, counts @ denominators
        ratios.append(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))
    return percentiles(np.concatenate(ratios), (denominators > 0).sum(0) > 1)


def percentiles(values: Float[np.ndarray, "R S"], enough: np.ndarray) -> Float[np.ndarray, "2 S"]:
    """Return the ends of the central interval of each column with a share ``LEVEL`` of the values.

    NaN are ignored; the ends are NaN where ``enough`` is false, or without values.
    """
    ends = np.full((2, values.shape[1]), np.nan)
    if len(values):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # columns of NaN alone stay NaN
            ends = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return np.where(enough, ends, np.nan)
