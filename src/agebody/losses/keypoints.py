"""Losses of keypoints, in the image and in space."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from agebody.checks import Reduction, Weights, reduce, residual
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses.robust import Penalty, penalize


def reprojection_loss(
    pred: Float[Tensor, "*batch K 2"],
    target: Float[Tensor, "*batch K 2"],
    *,
    weights: Weights = None,
    penalty: Penalty = "l1",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w_k (p(x_k - x'_k) + p(y_k - y'_k))`` per keypoint k.

    The unit is that of the input: pixels for SMPLify, [-1/2, 1/2] over the crop for HMR2. HMR2 and SPIN
    weight by the confidence c; SMPLify-X by ``(w c)**2`` with a joint weight w: give the square as
    ``weights``.

    Args:
        pred: (*batch, K, 2) projected keypoints.
        target: (*batch, K, 2) detected or labelled keypoints.
        weights: confidences or a mask, broadcast to (*batch, K). Give weight 0 to points that cannot be
            projected because they are not in front of the camera.
        penalty: p, of each coordinate.
        reduction: over keypoints.
    """
    difference, weights = residual(pred, target, weights, 2)
    return reduce(penalize(difference, penalty).sum(-1), weights, reduction)


def keypoints_3d_loss(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: str | KeypointLayout | None = None,
    root: Sequence[str] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l1",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w_k (p(dx_k) + p(dy_k) + p(dz_k))`` per keypoint k, relative to the root if a layout is given.

    Both sets of points are moved so that their roots are at the origin. Where a point of the root has weight
    0, no other point of that person can be compared, and all of them have weight 0, too.

    HMR (CVPR 2018) and SPIN (ICCV 2019) square the coordinates and take the hips for root; HMR2 (ICCV 2023)
    takes their absolute value and the root of ``"hmr2_44"``.

    Args:
        pred: (*batch, K, 3) points [m].
        target: (*batch, K, 3) points [m].
        layout: of the points, or its name; None compares them in place.
        root: names of points of the layout whose mean is the root; the layout's own by default.
        weights: confidences or a mask, broadcast to (*batch, K).
        penalty: p, of each coordinate.
        reduction: over keypoints.
    """
    difference, weights = residual(pred, target, weights, 3)
    if layout is not None:
        roots = _roots(get_layout(layout), root, pred)
        difference = difference - sum(difference[..., i, :] for i in roots) / len(roots)
        weights = _with_root(weights, roots)
    elif root is not None:
        raise ValueError("root: expected None where no layout says what the points are called")
    return reduce(penalize(difference, penalty).sum(-1), weights, reduction)


def rooted_weights(
    weights: Tensor | None, points: Tensor, layout: str | KeypointLayout | None
) -> Tensor | None:
    """Return the weights (*batch, K) of `keypoints_3d_loss`: 0 for people without their root."""
    if weights is None or layout is None:
        return weights
    return _with_root(weights.expand(points.shape[:-1]), _roots(get_layout(layout), None, points))


def _with_root(weights: Tensor | None, roots: list[slice]) -> Tensor | None:
    if weights is not None:
        for i in roots:
            weights = weights * (weights[..., i] != 0)
    return weights


def _roots(layout: KeypointLayout, root: Sequence[str] | None, points: Tensor) -> list[slice]:
    """Return slices at the points of the root; a list of indices would be copied to the device."""
    if points.dim() < 2 or points.shape[-2] != len(layout):
        raise ValueError(
            f"pred: expected the {len(layout)} points of {layout.name!r}, shape (*batch, {len(layout)}, 3), "
            f"got {tuple(points.shape)}"
        )
    if root is None:
        indices = layout.root
    elif root and not isinstance(root, str) and all(name in layout.names for name in root):
        indices = [layout.names.index(name) for name in root]
    else:
        raise ValueError(f"root: expected names of points of {layout.name!r}, got {root!r}")
    return [slice(i, i + 1) for i in indices]
