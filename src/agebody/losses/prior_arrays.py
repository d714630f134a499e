"""Checks of the arrays and joint names that pose priors are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import check_finite, check_shape
from agebody.assets.prior_files import LARGEST
from agebody.checks import read_rotations, read_texts


def read_names(joint_names: Sequence[str]) -> tuple[str, ...]:
    """Return different names, at least one."""
    names = read_texts("joint_names", joint_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise ValueError("joint_names: expected at least one name, got none")
    if twice:
        raise ValueError(f"joint_names: expected different names, got {', '.join(twice)} twice")
    return names


def common_joints(
    known: tuple[str, ...], joint_names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Return all names, those of them that a prior knows, and the indices of their angles in the prior."""
    names = read_names(joint_names)
    kept = tuple(name for name in names if name in known)
    if not kept:
        raise ValueError(
            f"joint_names: the prior knows none of {', '.join(names)}; it knows {', '.join(known)}"
        )
    return names, kept, angle_indices(known, kept)


def angle_indices(all_names: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Return where in a flat pose of all joints the angles of some of them are."""
    starts = 3 * np.array([all_names.index(name) for name in names])
    return (starts[:, None] + np.arange(3)).ravel()


def read_array(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return a finite array in float64, as a copy; None in the shape stands for any size."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        got = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a tensor or array of floating point numbers, got {got}")
    if len(shape) == 1 and value.ndim == 2 and value.shape[1] == 3:
        value = value.ravel()
    check_shape(name, value.shape, shape)
    check_finite(name, value, most=LARGEST)
    return np.array(value, np.float64, order="C")


def check_covariances(name: str, matrices: Float[np.ndarray, "K D D"]) -> None:
    """Raise ValueError for a matrix that is not symmetric and positive definite."""
    for matrix in matrices:
        largest = np.abs(matrix).max(initial=0)
        if np.abs(matrix - matrix.T).max(initial=0) > 1e-6 * largest:  # files may hold float32
            raise ValueError(f"{name}: expected a symmetric matrix")
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise ValueError(f"{name}: expected a positive definite matrix, got a singular one") from None


def whiten(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """Return the inverse of the Cholesky factor: W with W covariance W^T the identity."""
    from scipy.linalg import solve_triangular  # here, because it takes long to import

    factor = np.linalg.cholesky(covariance)
    return solve_triangular(factor, np.eye(len(factor)), lower=True)


def read_samples(poses: Any, joint_names: Sequence[str], *, least: int) -> Float[np.ndarray, "N D"]:
    """Return poses in axis-angle as rows in float64, at least so many, which are not all the same."""
    if not isinstance(poses, Tensor):
        raise TypeError(f"poses: expected a torch.Tensor, got {type(poses).__name__}")
    if not poses.is_floating_point():
        raise TypeError(f"poses: expected a floating type, got {poses.dtype}")
    count = len(read_names(joint_names))
    samples = read_rotations("poses", poses, "axis_angle", count, poses).reshape(-1, 3 * count)
    array = samples.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError("poses: expected finite numbers; leave out poses with NaN")
    if len(array) < least or not np.ptp(array, axis=0).any():
        raise ValueError(f"poses: expected at least {least} that differ, got {len(array)}")
    return array
