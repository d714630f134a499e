"""Pose priors: a normal distribution of poses, and a mixture of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.container import PathLike
from agebody.assets.prior_files import Gaussian, Mixture, read_prior, write_prior
from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    read_count,
    read_nonnegative,
    read_rotations,
    read_share,
    reduce,
)
from agebody.engine.batched import product
from agebody.engine.exact import ExactBuffers
from agebody.files import read_flag
from agebody.losses.densities import fit_mixture, half_log_determinants, shrunk_covariance
from agebody.losses.prior_arrays import (
    angle_indices,
    check_covariances,
    common_joints,
    read_array,
    read_names,
    read_samples,
    whiten,
)

ArrayLike = np.ndarray | Tensor
Arrays = TypeVar("Arrays", Gaussian, Mixture)
Prior = TypeVar("Prior", bound="_PosePrior")
BODY_JOINTS = SMPL_JOINT_NAMES[1:]
"""The joints of SMPL's ``body_pose``."""


class _PosePrior(ExactBuffers, Generic[Arrays]):
    """What pose priors share: the joints that they read, buffers, precision, files."""

    joint_names: tuple[str, ...]
    """The joints of the poses that it is given."""
    arrays: Arrays
    """What it was made of, in float64, for the joints that it knows."""
    columns: Tensor
    """Indices of the angles that the prior knows, in the flat pose of ``joint_names``."""
    _made_of: ClassVar[type[Any]]

    def __init__(
        self,
        arrays: Arrays,
        tables: dict[str, np.ndarray],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        for array in arrays[:-1]:
            array.flags.writeable = False
        self.arrays = arrays
        self.keep(tables, dtype, device)
        self._set_joints(arrays.joint_names)

    @classmethod
    def from_file(
        cls: type[Prior], path: PathLike, *, joint_names: Sequence[str] | None = None, **options: Any
    ) -> Prior:
        """Read a prior: SMPLify's ``gmm_08.pkl`` or SMIL's ``smil_pose_prior.pkl``, or a file of `save`.

        No code in a pickle is run.

        Args:
            path: the file.
            joint_names: see `for_joints`; the file's joints if None.
            options: keyword arguments of the class.

        Raises:
            AssetError: the file is missing, damaged, hostile or of another kind; the message names it, what
                it is, and what to do.
        """
        arrays: Any = read_prior(path, cls._made_of)
        try:
            prior = cls(*arrays, **options)
        except ValueError as error:
            raise AssetError(f"{path}: {error}") from error
        return prior if joint_names is None else prior.for_joints(joint_names)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the prior as a safetensors file, atomically; `from_file` reads it.

        Raises:
            FileExistsError: the file exists and `overwrite` is False.
        """
        write_prior(self.arrays, path, overwrite=overwrite)

    def _set_joints(self, joint_names: tuple[str, ...]) -> None:
        columns = angle_indices(joint_names, self.arrays.joint_names)
        self.joint_names = joint_names
        self.keep({"columns": np.asarray(columns)}, self.dtype, self._like.device)

    @property
    def _like(self) -> Tensor:
        """A tensor of the prior's dtype and device."""
        return getattr(self, next(iter(self.exact)))

    @abstractmethod
    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Return the energy of each pose, given by the angles that the prior knows."""

    @abstractmethod
    def for_joints(self: Prior, joint_names: Sequence[str]) -> Prior:
        """Return the same prior for poses of other joints."""

    def forward(
        self, body_pose: Float[Tensor, "*pose"], *, weights: Weights = None, reduction: Reduction = "mean"
    ) -> Float[Tensor, "*left"]:
        """Return the energy of poses.

        Args:
            body_pose: (*batch, J, 3) or flat (*batch, 3 J), axis-angle vectors of ``joint_names`` [rad].
            weights: broadcast to (*batch).
            reduction: "none" gives (*batch).
        """
        pose = self.select_angles(body_pose)
        weights = expand_weights(weights, pose.shape[:-1])
        return reduce(self.energies(apply_mask(pose, weights, 1)), weights, reduction)

    def select_angles(self, body_pose: Tensor) -> Float[Tensor, "*batch D"]:
        """Return the angles that the prior knows."""
        pose = read_rotations("body_pose", body_pose, "axis_angle", len(self.joint_names), self._like)
        return pose.flatten(-2).index_select(-1, self.columns)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{len(self.joint_names)} joints, of which it knows {len(self.arrays.joint_names)}"


class MahalanobisPrior(_PosePrior[Gaussian]):
    """One normal distribution of poses, as SMIL's (Hesse et al., MICCAI 2018): E = |(pose - mean) factor|^2.

    With ``factor @ factor.T`` the inverse of the covariance, E is the squared Mahalanobis distance from the
    mean; there is no factor 1/2. The arrays are non-persistent buffers: ``state_dict()`` is empty, so that a
    checkpoint contains no licensed data.

    Args:
        mean: (3 J), or (J, 3) [rad].
        factor: (3 J, R), a factor of the precision.
        joint_names: the J joints.
        dtype: torch.float32 or torch.float64; the arrays are kept in float64 and cast from it.
        device: of the prior.
    """

    mean: Tensor
    factor: Tensor
    _made_of = Gaussian

    def __init__(
        self,
        mean: ArrayLike,
        factor: ArrayLike,
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        names = read_names(joint_names)
        size = 3 * len(names)
        mean = read_array("mean", mean, (size,))
        factor = read_array("factor", factor, (size, None))
        super().__init__(Gaussian(mean, factor, names), {"mean": mean, "factor": factor}, dtype, device)

    @classmethod
    def from_moments(
        cls, mean: ArrayLike, covariance: ArrayLike, joint_names: Sequence[str] = BODY_JOINTS, **options: Any
    ) -> MahalanobisPrior:
        """Make the prior of a mean (3 J) and a covariance (3 J, 3 J); options as of the class."""
        size = 3 * len(tuple(joint_names))
        covariance = read_array("covariance", covariance, (size, size))
        check_covariances("covariance", covariance[None])
        return cls(mean, whiten(covariance).T, joint_names, **options)

    @classmethod
    def from_poses(
        cls,
        poses: Float[Tensor, "*pose"],
        joint_names: Sequence[str] = BODY_JOINTS,
        *,
        regularization: float | None = None,
        **options: Any,
    ) -> MahalanobisPrior:
        """Fit the prior to sample poses: their mean, and their covariance shrunk towards a scaled identity.

        Args:
            poses: (*samples, J, 3) or flat (*samples, 3 J), axis-angle vectors [rad].
            joint_names: their J joints.
            regularization: how far the covariance is shrunk, from 0 to 1; None estimates the best share
                (Ledoit and Wolf 2004), so that fewer poses than dimensions are enough.
            options: ``dtype`` and ``device``, as of the class.
        """
        samples = read_samples(poses, joint_names, least=2)
        if regularization is not None:
            read_share("regularization", regularization)
        covariance = shrunk_covariance(samples, regularization=regularization)
        check_covariances("poses: their covariance", covariance[None])
        return cls(samples.mean(0), whiten(covariance).T, joint_names, **options)

    def for_joints(self, joint_names: Sequence[str]) -> MahalanobisPrior:
        """Return the same prior for poses of other joints; see `MaxMixturePrior.for_joints`."""
        names, kept, rows = common_joints(self.arrays.joint_names, joint_names)
        mean, factor, known = self.arrays
        if len(kept) < len(known):
            precision = factor @ factor.T
            check_covariances("for_joints: the precision", precision[None])
            whitening = whiten(precision)
            covariance = (whitening.T @ whitening)[np.ix_(rows, rows)]
            factor = whiten(covariance).T
        else:
            factor = factor[rows]
        prior = MahalanobisPrior(mean[rows], factor, kept, dtype=self.dtype, device=self.mean.device)
        prior._set_joints(names)
        return prior

    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Return squared Mahalanobis distances, given the angles that the prior knows."""
        return self._whiten(pose).square().sum(-1)

    def residuals(self, body_pose: Float[Tensor, "*pose"]) -> Float[Tensor, "*batch R"]:
        """Return (pose - mean) factor, for least squares: its squares sum to a pose's energy."""
        return self._whiten(self.select_angles(body_pose))

    def _whiten(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch R"]:
        return product(pose - self.mean, self.factor)


class MaxMixturePrior(_PosePrior[Mixture]):
    """A mixture of normal distributions of poses, as SMPLify's (Bogo et al., ECCV 2016, eq. 6).

    The energy is that of the component of least energy:

        E = min_k (pose - mean_k)^T covariance_k^-1 (pose - mean_k) / 2 + c_k
        c_k = -log(weight_k min_j sqrt|covariance_j| / ((2 pi)^(D/2) sqrt|covariance_k|))

    With the smallest determinant, no c_k is negative. The arrays are non-persistent buffers, as those of
    `MahalanobisPrior`.

    Args:
        means: (K, 3 J) [rad].
        covariances: (K, 3 J, 3 J).
        weights: (K), positive, of sum 1.
        joint_names: the J joints.
        soft: sum the components' probabilities instead of taking the largest: E = -log sum_k exp(-E_k), which
            is the negative log-likelihood of the mixture up to a constant, and smooth.
        dtype: torch.float32 or torch.float64; the arrays are kept in float64 and cast from it.
        device: of the prior.
    """

    soft: bool
    means: Tensor
    whitenings: Tensor
    """(K, D, D): inverse Cholesky factors of the covariances."""
    constants: Tensor
    """(K): c_k, none negative."""
    _made_of = Mixture

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
        names = read_names(joint_names)
        size = 3 * len(names)
        means = read_array("means", means, (None, size))
        covariances = read_array("covariances", covariances, (len(means), size, size))
        check_covariances("covariances", covariances)
        weights = read_array("weights", weights, (len(means),))
        if not (weights > 0).all() or abs(weights.sum() - 1) > 1e-3:
            raise ValueError(f"weights: expected positive shares that sum to 1, got {weights.tolist()}")
        halves = half_log_determinants(covariances)
        tables = {
            "means": means,
            "whitenings": np.stack([whiten(covariance) for covariance in covariances]),
            "constants": size / 2 * math.log(2 * math.pi) + halves - halves.min() - np.log(weights),
        }
        super().__init__(Mixture(means, covariances, weights, names), tables, dtype, device)
        self.soft = read_flag("soft", soft)

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
        **options: Any,
    ) -> MaxMixturePrior:
        """Fit the mixture to sample poses by expectation maximisation from clusters; deterministic.

        Args:
            poses: (*samples, J, 3) or flat (*samples, 3 J), axis-angle vectors [rad].
            components: K.
            joint_names: their J joints.
            regularization: d, how far each covariance is shrunk towards the mean variance s of all poses,
                from 0 to 1: (1 - d) S_k + d s I.
            iterations: largest number of iterations.
            tolerance: converged when the mean log-likelihood of a pose increases by less.
            seed: of the initial clusters.
            options: ``soft``, ``dtype`` and ``device``, as of the class.
        """
        read_count("components", components, least=1)
        read_count("iterations", iterations, least=1)
        read_count("seed", seed)
        read_nonnegative("tolerance", tolerance)
        read_share("regularization", regularization)
        samples = read_samples(poses, joint_names, least=max(components, 2))
        try:
            fitted = fit_mixture(
                samples,
                components,
                regularization=regularization,
                iterations=iterations,
                tolerance=tolerance,
                seed=seed,
            )
        except np.linalg.LinAlgError:
            raise ValueError(
                f"poses: {len(samples)} are too few for {components} covariances of {samples.shape[1]} "
                f"angles; give more, fewer components, or more regularization than {regularization}"
            ) from None
        return cls(*fitted, joint_names, **options)

    def for_joints(self, joint_names: Sequence[str]) -> MaxMixturePrior:
        """Return the same prior for poses of other joints, such as ``body.asset.joint_names[1:]``.

        Joints that the prior does not know are left free; it is integrated over those that it knows and the
        pose lacks (its marginal distribution).
        """
        names, kept, rows = common_joints(self.arrays.joint_names, joint_names)
        means, covariances, weights, _ = self.arrays
        parts = means[:, rows], covariances[:, rows[:, None], rows], weights
        prior = MaxMixturePrior(*parts, kept, soft=self.soft, dtype=self.dtype, device=self.means.device)
        prior._set_joints(names)
        return prior

    def energies(self, pose: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Return energies of the cheapest components, or of all, given the angles that the prior knows."""
        _, energies = self.evaluate_components(pose)
        return -torch.logsumexp(-energies, -1) if self.soft else energies.amin(-1)

    def residuals(self, body_pose: Float[Tensor, "*pose"]) -> Float[Tensor, "*batch R"]:
        """Return residuals for least squares, whose squares sum to a pose's energy.

        They are the whitened distances from the chosen component's mean, over sqrt(2), and last the root of
        its constant, whose derivative is zero.
        """
        if self.soft:
            raise ValueError("soft: a soft mixture has no residuals; make the prior with soft=False")
        whitened, energies = self.evaluate_components(self.select_angles(body_pose))
        chosen = energies.argmin(-1, keepdim=True)
        distances = whitened.take_along_dim(chosen[..., None], -2).squeeze(-2)
        constant = self.constants.expand(energies.shape).take_along_dim(chosen, -1)
        return torch.cat((distances / math.sqrt(2), constant.sqrt()), -1)

    def evaluate_components(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Return whitened distances (*batch, K, D) from each mean, and energies (*batch, K)."""
        centred = pose.reshape(-1, pose.shape[-1]) - self.means[:, None]
        whitened = product(centred, self.whitenings.mT).movedim(0, -2)
        whitened = whitened.reshape(*pose.shape[:-1], *whitened.shape[-2:])
        return whitened, whitened.square().sum(-1) / 2 + self.constants

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{len(self.arrays.means)} components, {super().extra_repr()}, soft={self.soft}"
