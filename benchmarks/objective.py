"""Losses of a training step: COCO's points, projected, compared in 2D and 3D, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from harness import Session
from peers import LAYOUT
from torch import Tensor

from agebody.cameras import Camera
from agebody.losses import keypoints_3d_loss, reprojection_loss
from agebody.pipelines.bench import GRADIENT_TOLERANCE, sample_arguments

FOCAL, SIZE, DISTANCE = 1000.0, 512.0, 5.0
"""Focal length of the camera [pixels], and distance of people from it [m]."""
HIPS = (11, 12)

Target = tuple[Tensor, Tensor, Tensor]
"""Image points (B, 17, 2) [pixels], points (B, 17, 3) [m], and confidences (B, 17) of both."""
Losses = Callable[[Tensor, Target], Tensor]


def ours(points: Tensor, target: Target) -> Tensor:
    """Compute the losses as a user of agebody would."""
    image_points, space_points, confidences = target
    camera = Camera(points.new_tensor([FOCAL, FOCAL]), points.new_tensor([SIZE / 2, SIZE / 2]))
    projected = camera.project(points).pixels
    flat = reprojection_loss(projected / SIZE, image_points / SIZE, weights=confidences)
    return flat + keypoints_3d_loss(points, space_points, layout=LAYOUT, weights=confidences)


def theirs(points: Tensor, target: Target) -> Tensor:
    """Compute the losses in plain torch, as projects do around a body layer, without checks or safeguards."""
    image_points, space_points, confidences = target
    projected = FOCAL * points[..., :2] / points[..., 2:] + SIZE / 2
    flat = (confidences[..., None] * ((projected - image_points) / SIZE).abs()).sum()
    rooted = points - points[:, HIPS].mean(1, keepdim=True)
    expected = space_points - space_points[:, HIPS].mean(1, keepdim=True)
    space = (confidences[..., None] * (rooted - expected).abs()).sum()
    return (flat + space) / confidences.sum()


def step(
    keypoints: Callable[..., Tensor], losses: Losses, target: Target, given: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of the losses with respect to betas, pose and translation."""
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    return torch.autograd.grad(losses(keypoints(**leaves), target), list(leaves.values()))


def sample_target(batch: int, device: torch.device) -> Target:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(batch, 17, *shape, generator=generator).to(device)

    return SIZE * draw(2), draw(3), 0.1 + draw()


def main() -> None:
    session = Session("objective", __doc__)
    contenders = {
        c.name: (c.keypoints, ours if c.name.startswith("agebody") else theirs) for c in session.contenders()
    }
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        given["transl"] = given["transl"] + given["transl"].new_tensor([0, 0, DISTANCE])
        target = sample_target(batch, session.device)
        exact = step(
            partial(session.exact.keypoints, LAYOUT),
            theirs,
            tuple(t.double() for t in target),
            {name: value.double() for name, value in given.items()},
        )
        for name, (keypoints, losses) in contenders.items():
            for found, expected in zip(step(keypoints, losses, target, given), exact, strict=True):
                error = float((found - expected).abs().max() / expected.abs().max())
                if not error <= GRADIENT_TOLERANCE:
                    raise SystemExit(f"{name}: gradients differ by {error:.3g} of the largest")
        session.time(
            batch,
            {
                name: partial(step, keypoints, losses, target, given)
                for name, (keypoints, losses) in contenders.items()
            },
        )
    session.finish()


if __name__ == "__main__":
    main()
