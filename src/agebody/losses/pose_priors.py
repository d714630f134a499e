"""Pose priors with a state: a normal distribution of poses, and a mixture of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import solve_triangular
from torch import Tensor, nn

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.container import PathLike
from agebody.assets.prior_files import Gaussian, Mixture, read_gaussian, read_mixture, write_prior
from agebody.checks import Reduction, Weights, apply_mask, expand_weights, reduce
from agebody.engine.arguments import read_rotations
from agebody.engine.rowwise import own_precision
from agebody.losses.densities import fit_mixture, half_log_determinants, shrunk_covariance

ArrayLike = np.ndarray | Tensor
Arrays = TypeVar("Arrays", Gaussian, Mixture)
BODY_JOINTS = SMPL_JOINT_NAMES[1:]
"""The joints of SMPL's ``body_pose``."""


class _PosePrior(nn.Module, Generic[Arrays]):
    """What priors of a pose share: which joints they read, buffers, precision, files."""

    joint_names: tuple[str, ...]
    """The joints of the poses that it is given."""
    arrays: Arrays
    """What it was made of, in float64, for the joints that it knows."""
    columns: Tensor

    def __init__(
        self,
        arrays: Arrays,
        tables: dict[str, np.ndarray],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        _check_dtype(dtype)
        for array in arrays[:-1]:
            array.flags.writeable = False
        self.arrays = arrays
        self._tables = tables
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int64, device=device), persistent=False)
        self._read_joints(arrays.joint_names)
        for name, table in tables.items():
            buffer = torch.as_tensor(table.copy(), dtype=dtype, device=device)
            self.register_buffer(name, buffer, persistent=False)

    def _read_joints(self, joint_names: tuple[str, ...]) -> None:
        """Poses have these joints: where among their angles are those that the prior knows?"""
        columns = _angles(joint_names, self.arrays.joint_names)
        self.joint_names = joint_names
        self.columns = torch.as_tensor(columns, device=self.columns.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the prior; another precision is cast from float64 anew."""
        before, target = self.dtype, fn(torch.empty_like(self._like)).dtype
        _check_dtype(target)
        super()._apply(fn, recurse)
        if target != before:
            for name, table in self._tables.items():
                buffer = torch.as_tensor(table.copy(), dtype=target, device=self._like.device)
                setattr(self, name, buffer)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of poses and energies."""
        return self._like.dtype

    @property
    def _like(self) -> Tensor:
        """A tensor of the prior's dtype and device."""
        return getattr(self, next(iter(self._tables)))

    @abstractmethod
    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Energy of each pose, given by the angles of the joints that the prior knows."""

    def forward(
        self, body_pose: Float[Tensor, "*pose"], *, weights: Weights = None, reduction: Reduction = "mean"
    ) -> Float[Tensor, "*left"]:
        """Energy of poses.

        Args:
            body_pose: (*batch, J, 3) or flat (*batch, 3 J), axis-angle vectors of ``joint_names`` [rad].
            weights: broadcast to (*batch): one entry a body.
            reduction: "none" gives (*batch).

        Raises:
            TypeError, ValueError: the pose is of another dtype, device or shape.
        """
        pose = self.select_angles(body_pose)
        weights = expand_weights(weights, pose.shape[:-1])
        return reduce(self.energies(apply_mask(pose, weights, 1)), weights, reduction)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the prior as a safetensors file, which appears whole or not at all; `from_file` reads it.

        Raises:
            FileExistsError: the file is there and `overwrite` is False.
            FileNotFoundError, IsADirectoryError, PermissionError, OSError: it cannot be written there.
        """
        write_prior(self.arrays, path, overwrite=overwrite)

    def select_angles(self, body_pose: Tensor) -> Float[Tensor, "*batch D"]:
        """The angles that the prior knows."""
        pose = read_rotations("body_pose", body_pose, "axis_angle", len(self.joint_names), self._like)
        return pose.flatten(-2).index_select(-1, self.columns)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{len(self.joint_names)} joints, of which it knows {len(self.arrays.joint_names)}"


class MahalanobisPrior(_PosePrior[Gaussian]):
    """One normal distribution of poses, as SMIL's (Hesse et al., MICCAI 2018): E = |(pose - mean) factor|^2.

    With ``factor @ factor.T`` the inverse of the covariance, E is the squared Mahalanobis distance from the
    mean; there is no factor 1/2.

    Args:
        mean: (3 J), or (J, 3) [rad].
        factor: (3 J, R), a factor of the precision.
        joint_names: the J joints.
        dtype: torch.float32 or torch.float64; the arrays are kept in float64 and cast from it.
        device: where the prior lives.

    Raises:
        TypeError, ValueError: an array is not of floats, or of another shape, or not finite; a joint is
            named twice.

    The arrays are non-persistent buffers: ``state_dict()`` is empty, so that a checkpoint carries no licensed
    data.
    """

    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        mean: ArrayLike,
        factor: ArrayLike,
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        names = _names(joint_names)
        size = 3 * len(names)
        mean = _array("mean", mean, (size,))
        factor = _array("factor", factor, (size, None))
        super().__init__(Gaussian(mean, factor, names), {"mean": mean, "factor": factor}, dtype, device)

    @classmethod
    def from_moments(
        cls,
        mean: ArrayLike,
        covariance: ArrayLike,
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> MahalanobisPrior:
        """The prior of a mean (3 J) and a covariance (3 J, 3 J).

        Raises:
            TypeError, ValueError: as of the class; or the covariance is not symmetric and positive definite.
        """
        size = 3 * len(tuple(joint_names))
        covariance = _array("covariance", covariance, (size, size))
        _check_covariances("covariance", covariance[None])
        return cls(mean, _whitening(covariance).T, joint_names, dtype=dtype, device=device)

    @classmethod
    def from_file(
        cls,
        path: PathLike,
        *,
        joint_names: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> MahalanobisPrior:
        """SMIL's ``smil_pose_prior.pkl``, of which nothing is run, or a file of `save`.

        Args:
            path: the file.
            joint_names: see `for_joints`; the file's joints if None.
            dtype: as of the class.
            device: as of the class.

        Raises:
            AssetError: the file is missing, damaged, hostile or of another kind; the message names it, what
                it is, and what to do.
            ValueError: the file knows none of the joints.
        """
        arrays = read_gaussian(path)
        try:
            prior = cls(*arrays, dtype=dtype, device=device)
        except ValueError as error:
            raise AssetError(f"{path}: {error}") from error
        return prior if joint_names is None else prior.for_joints(joint_names)

    @classmethod
    def from_poses(
        cls,
        poses: Float[Tensor, "*pose"],
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        regularization: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> MahalanobisPrior:
        """The prior of sample poses: their mean, and their covariance drawn towards a scaled identity.

        Args:
            poses: (*samples, J, 3) or flat (*samples, 3 J), axis-angle vectors [rad].
            joint_names: their J joints.
            regularization: how far the covariance is drawn, from 0 to 1; None estimates what serves best
                (Ledoit and Wolf 2004), so that fewer poses than dimensions will do.
            dtype: as of the class.
            device: as of the class.

        Raises:
            TypeError, ValueError: the poses are not finite floats of this shape; there are fewer than two, or
                all are the same; or the covariance is singular, because there are too few poses for so little
                regularization.
        """
        samples = _samples(poses, joint_names, least=2)
        _check_share(regularization)
        covariance = shrunk_covariance(samples, regularization=regularization)
        _check_covariances("poses: their covariance", covariance[None])
        factor = _whitening(covariance).T
        return cls(samples.mean(0), factor, joint_names, dtype=dtype, device=device)

    def for_joints(self, joint_names: Sequence[str]) -> MahalanobisPrior:
        """The same prior for poses of other joints, such as ``body.asset.joint_names[1:]``.

        Joints that the prior does not know are left free; over those that it knows and the pose has not, it
        is integrated (the marginal distribution).

        Raises:
            ValueError: it knows none of the joints; a joint is named twice; or joints are to be left out and
                the precision is singular.
        """
        names, kept, rows = _common(self.arrays.joint_names, joint_names)
        mean, factor, known = self.arrays
        if len(kept) < len(known):
            precision = factor @ factor.T
            _check_covariances("for_joints: the precision", precision[None])
            whitening = _whitening(precision)
            covariance = (whitening.T @ whitening)[np.ix_(rows, rows)]
            factor = _whitening(covariance).T
        else:
            factor = factor[rows]
        prior = MahalanobisPrior(mean[rows], factor, kept, dtype=self.dtype, device=self.mean.device)
        prior._read_joints(names)
        return prior

    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Squared Mahalanobis distances; see `forward`."""
        return self._whiten(pose).square().sum(-1)

    def residuals(self, body_pose: Float[Tensor, "*pose"]) -> Float[Tensor, "*batch R"]:
        """(pose - mean) factor, for least squares: the squares of a pose's residuals sum to its energy."""
        return self._whiten(self.select_angles(body_pose))

    def _whiten(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch R"]:
        with own_precision(pose.device):
            return (pose - self.mean) @ self.factor


class MaxMixturePrior(_PosePrior[Mixture]):
    """A mixture of normal distributions of poses, as SMPLify's (Bogo et al., ECCV 2016, eq. 6).

    The energy is that of the component that costs least:

        E = min_k (pose - mean_k)^T covariance_k^-1 (pose - mean_k) / 2 + c_k
        c_k = -log(weight_k min_j sqrt|covariance_j| / ((2 pi)^(D/2) sqrt|covariance_k|))

    The smallest determinant is there so that no c_k is negative.

    Args:
        means: (K, 3 J) [rad].
        covariances: (K, 3 J, 3 J).
        weights: (K), positive, of sum 1.
        joint_names: the J joints.
        soft: sum the components' probabilities instead of taking the largest: E = -log sum_k exp(-E_k), which
            is the negative log-likelihood of the mixture up to a constant, and smooth.
        dtype: torch.float32 or torch.float64; the arrays are kept in float64 and cast from it.
        device: where the prior lives.

    Raises:
        TypeError, ValueError: an array is not of floats, or of another shape, or not finite; a covariance is
            not symmetric and positive definite; the weights are no shares; a joint is named twice.

    The arrays are non-persistent buffers: ``state_dict()`` is empty, so that a checkpoint carries no licensed
    data.
    """

    soft: bool
    means: Tensor
    whitenings: Tensor
    """(K, D, D): inverse Cholesky factors of the covariances."""
    constants: Tensor
    """(K): c_k, none negative."""

    def __init__(
        self,
        means: ArrayLike,
        covariances: ArrayLike,
        weights: ArrayLike,
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        soft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        names = _names(joint_names)
        size = 3 * len(names)
        means = _array("means", means, (None, size))
        covariances = _array("covariances", covariances, (len(means), size, size))
        _check_covariances("covariances", covariances)
        weights = _array("weights", weights, (len(means),))
        if not (weights > 0).all() or abs(weights.sum() - 1) > 1e-3:
            raise ValueError(f"weights: expected positive shares that sum to 1, got {weights.tolist()}")
        halves = half_log_determinants(covariances)
        tables = {
            "means": means,
            "whitenings": np.stack([_whitening(covariance) for covariance in covariances]),
            "constants": size / 2 * math.log(2 * math.pi) + halves - halves.min() - np.log(weights),
        }
        super().__init__(Mixture(means, covariances, weights, names), tables, dtype, device)
        self.soft = soft

    @classmethod
    def from_file(
        cls,
        path: PathLike,
        *,
        joint_names: Sequence[str] | None = None,
        soft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> MaxMixturePrior:
        """SMPLify's ``gmm_08.pkl``, of which nothing is run, or a file of `save`.

        Args:
            path: the file.
            joint_names: see `for_joints`; the file's joints if None.
            soft: as of the class.
            dtype: as of the class.
            device: as of the class.

        Raises:
            AssetError: the file is missing, damaged, hostile or of another kind; the message names it, what
                it is, and what to do.
            ValueError: the file knows none of the joints.
        """
        arrays = read_mixture(path)
        try:
            prior = cls(*arrays, soft=soft, dtype=dtype, device=device)
        except ValueError as error:
            raise AssetError(f"{path}: {error}") from error
        return prior if joint_names is None else prior.for_joints(joint_names)

    @classmethod
    def from_poses(
        cls,
        poses: Float[Tensor, "*pose"],
        components: int = 8,
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        regularization: float = 0.01,
        iterations: int = 100,
        tolerance: float = 1e-4,
        seed: int = 0,
        soft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> MaxMixturePrior:
        """The mixture of sample poses, by expectation maximisation from clusters; the same at every call.

        Args:
            poses: (*samples, J, 3) or flat (*samples, 3 J), axis-angle vectors [rad].
            components: K.
            joint_names: their J joints.
            regularization: how far each covariance is drawn towards the mean variance of all poses, in every
                direction alike, from 0 to 1: (1 - d) S_k + d s I.
            iterations: at most so many.
            tolerance: ends when the mean log-likelihood of a pose gains less.
            seed: of the clusters' start.
            soft: as of the class.
            dtype: as of the class.
            device: as of the class.

        Raises:
            TypeError, ValueError: the poses are not finite floats of this shape; there are fewer than
                components, or all are the same; an option is out of its range; or a covariance is singular,
                because there are too few poses for so little regularization.
        """
        if components < 1 or iterations < 1:
            raise ValueError(
                f"components, iterations: expected at least 1, got {components} and {iterations}"
            )
        _check_share(regularization)
        samples = _samples(poses, joint_names, least=max(components, 2))
        try:
            fitted = fit_mixture(
                samples, components,
                regularization=regularization, iterations=iterations, tolerance=tolerance, seed=seed,
            )  # fmt: skip
        except np.linalg.LinAlgError:
            raise ValueError(
                f"poses: {len(samples)} are too few for {components} covariances of {samples.shape[1]} "
                f"angles; give more, fewer components, or more regularization than {regularization}"
            ) from None
        return cls(*fitted, joint_names, soft=soft, dtype=dtype, device=device)

    def for_joints(self, joint_names: Sequence[str]) -> MaxMixturePrior:
        """The same prior for poses of other joints, such as ``body.asset.joint_names[1:]``.

        Joints that the prior does not know are left free; over those that it knows and the pose has not, it
        is integrated (the marginal distribution of each component).

        Raises:
            ValueError: it knows none of the joints, or a joint is named twice.
        """
        names, kept, rows = _common(self.arrays.joint_names, joint_names)
        means, covariances, weights, _ = self.arrays
        prior = MaxMixturePrior(
            means[:, rows], covariances[:, rows[:, None], rows], weights, kept,
            soft=self.soft, dtype=self.dtype, device=self.means.device,
        )  # fmt: skip
        prior._read_joints(names)
        return prior

    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Energy of the cheapest component, or of all of them together; see `forward`."""
        _, energies = self.evaluate_components(pose)
        return -torch.logsumexp(-energies, -1) if self.soft else energies.amin(-1)

    def residuals(self, body_pose: Float[Tensor, "*pose"]) -> Float[Tensor, "*batch R"]:
        """For least squares: the squares of a pose's residuals sum to its energy.

        They are the whitened distances from the chosen component's mean, over sqrt(2), and last the root of
        its constant, whose derivative is zero.

        Raises:
            ValueError: the mixture is soft, whose energy is no sum of squares.
        """
        if self.soft:
            raise ValueError("soft: a soft mixture has no residuals; make the prior with soft=False")
        whitened, energies = self.evaluate_components(self.select_angles(body_pose))
        chosen = energies.argmin(-1, keepdim=True)
        distances = whitened.take_along_dim(chosen[..., None], -2).squeeze(-2)
        constant = self.constants.expand(energies.shape).take_along_dim(chosen, -1)
        return torch.cat((distances / math.sqrt(2), constant.sqrt()), -1)

    def evaluate_components(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened distances (*batch, K, D) from each mean, and energies (*batch, K)."""
        with own_precision(pose.device):
            whitened = torch.einsum("kij,...kj->...ki", self.whitenings, pose[..., None, :] - self.means)
        return whitened, whitened.square().sum(-1) / 2 + self.constants

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{len(self.arrays.means)} components, {super().extra_repr()}, soft={self.soft}"


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")


def _names(joint_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(joint_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise ValueError("joint_names: expected at least one name, got none")
    if twice:
        raise ValueError(f"joint_names: expected different names, got {', '.join(twice)} twice")
    return names


def _common(
    known: tuple[str, ...], joint_names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """All names, those of them that are known, and the known ones' angles among a prior's."""
    names = _names(joint_names)
    kept = tuple(name for name in names if name in known)
    if not kept:
        raise ValueError(
            f"joint_names: the prior knows none of {', '.join(names)}; it knows {', '.join(known)}"
        )
    return names, kept, _angles(known, kept)


def _angles(all_names: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Where in a flat pose of all joints the angles of some of them are."""
    starts = 3 * np.array([all_names.index(name) for name in names])
    return (starts[:, None] + np.arange(3)).ravel()


def _array(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """A finite array in float64, of its own memory."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        got = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a tensor or array of floating point numbers, got {got}")
    if len(shape) == 1 and value.ndim == 2 and value.shape[1] == 3:
        value = value.ravel()
    if value.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, value.shape, strict=True)
    ):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(
            f"{name}: expected finite numbers, got {np.count_nonzero(~np.isfinite(value))} others"
        )
    return np.array(value, np.float64, order="C")


def _check_covariances(name: str, matrices: Float[np.ndarray, "K D D"]) -> None:
    for matrix in matrices:
        largest = np.abs(matrix).max(initial=0)
        if np.abs(matrix - matrix.T).max(initial=0) > 1e-6 * largest:  # files may hold float32
            raise ValueError(f"{name}: expected a symmetric matrix")
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise ValueError(f"{name}: expected a positive definite matrix, got a singular one") from None


def _whitening(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """The inverse of the Cholesky factor: W with W covariance W^T the identity."""
    factor = np.linalg.cholesky(covariance)
    return solve_triangular(factor, np.eye(len(factor)), lower=True)


def _check_share(regularization: float | None) -> None:
    if regularization is not None and not 0 <= regularization <= 1:
        raise ValueError(f"regularization: expected 0 to 1, got {regularization}")


def _samples(poses: Tensor, joint_names: Sequence[str], *, least: int) -> Float[np.ndarray, "N D"]:
    if not isinstance(poses, Tensor):
        raise TypeError(f"poses: expected a torch.Tensor, got {type(poses).__name__}")
    if not poses.is_floating_point():
        raise TypeError(f"poses: expected a floating type, got {poses.dtype}")
    count = len(_names(joint_names))
    samples = read_rotations("poses", poses, "axis_angle", count, poses).reshape(-1, 3 * count)
    array = samples.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError("poses: expected finite numbers; leave out poses with NaN")
    if len(array) < least or not np.ptp(array, axis=0).any():
        raise ValueError(f"poses: expected at least {least} that differ, got {len(array)}")
    return array
