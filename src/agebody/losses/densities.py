"""Normal distributions and mixtures of them, estimated from samples."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float


def shrunk_covariance(
    samples: Float[np.ndarray, "N D"], *, regularization: float | None = None
) -> Float[np.ndarray, "D D"]:
    """Return the covariance shrunk towards a multiple of the identity: (1 - d) S + d tr(S) / D I.

    Args:
        samples: one per row.
        regularization: d, from 0 to 1. None takes the d of least expected squared error, estimated from the
            samples (Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
            matrices", lemma 3.2 to 3.5).
    """
    count, size = samples.shape
    centred = samples - samples.mean(0)
    covariance = centred.T @ centred / count
    scale = float(np.trace(covariance)) / size
    share = regularization
    if share is None:
        dispersion = float(np.sum((covariance - scale * np.eye(size)) ** 2))
        error = float(np.sum(np.sum(centred**2, axis=1) ** 2) / count - np.sum(covariance**2)) / count
        share = min(error / dispersion, 1.0) if dispersion > 0 else 0.0
    return _towards_identity(covariance, share, scale)


def fit_mixture(
    samples: Float[np.ndarray, "N D"],
    components: int,
    *,
    regularization: float,
    iterations: int,
    tolerance: float,
    seed: int,
) -> tuple[Float[np.ndarray, "K D"], Float[np.ndarray, "K D D"], Float[np.ndarray, " K"]]:
    """Fit means, covariances and weights of a mixture of normal distributions by expectation maximisation.

    It starts from clusters (k-means++) and is deterministic; it ends when the mean log-likelihood of a sample
    increases by less than the tolerance. The regularization is d of `shrunk_covariance` for each component,
    towards the mean variance of all samples, of which there are at least as many as components.
    """
    from scipy.special import logsumexp  # here, as below, because it takes long to import

    spread = samples.var(0).mean()
    labels = _clusters(samples, components, seed)
    shares = np.eye(components)[labels]
    before = -math.inf
    for _ in range(iterations):
        means, covariances, weights = _moments(samples, shares, regularization, spread)
        joint = np.log(weights) + log_densities(samples, means, covariances)
        total: Any = logsumexp(joint, axis=1, keepdims=True)
        if total.mean() - before < tolerance:
            break
        before, shares = total.mean(), np.exp(joint - total)
    return means, covariances, weights  # pyright: ignore[reportPossiblyUnboundVariable]


def log_densities(
    samples: Float[np.ndarray, "N D"],
    means: Float[np.ndarray, "K D"],
    covariances: Float[np.ndarray, "K D D"],
) -> Float[np.ndarray, "N K"]:
    """Return the logarithm of each normal density at each sample."""
    from scipy.linalg import solve_triangular

    whitened = [
        solve_triangular(factor, (samples - mean).T, lower=True)
        for mean, factor in zip(means, np.linalg.cholesky(covariances), strict=True)
    ]
    squares = np.stack([np.sum(w**2, axis=0) for w in whitened], axis=1)
    return -squares / 2 - half_log_determinants(covariances) - samples.shape[1] / 2 * math.log(2 * math.pi)


def half_log_determinants(covariances: Float[np.ndarray, "K D D"]) -> Float[np.ndarray, " K"]:
    """Return the logarithm of the square root of each determinant, which itself would overflow or vanish."""
    factors = np.linalg.cholesky(covariances)
    return np.sum(np.log(np.diagonal(factors, axis1=1, axis2=2)), axis=1)


def _towards_identity(covariance: np.ndarray, share: float, scale: float) -> np.ndarray:
    return (1 - share) * covariance + share * scale * np.eye(len(covariance))


def _moments(
    samples: np.ndarray, shares: np.ndarray, regularization: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the moments of the samples, weighted by each component's responsibilities (the M step)."""
    counts = shares.sum(0) + np.finfo(float).tiny
    means = (shares.T @ samples) / counts[:, None]
    covariances = []
    for mean, share, count in zip(means, shares.T, counts, strict=True):
        centred = samples - mean
        covariance = (centred * share[:, None]).T @ centred / count
        covariances.append(_towards_identity(covariance, regularization, spread))
    return means, np.stack(covariances), counts / counts.sum()


def _clusters(samples: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the label of each sample; initial means are drawn far apart (Arthur and Vassilvitskii 2007)."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(seed)
    starts = [samples[rng.integers(len(samples))]]
    for _ in range(count - 1):
        squares = np.min([np.sum((samples - start) ** 2, axis=1) for start in starts], axis=0)
        total = squares.sum()
        starts.append(samples[rng.choice(len(samples), p=squares / total if total > 0 else None)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for a cluster without samples
        return kmeans2(samples, np.array(starts), minit="matrix", iter=30)[1]
