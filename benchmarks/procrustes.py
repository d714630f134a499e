"""PA-MPJPE of a batch: agebody, roma, a batched SVD in torch, and a NumPy loop over people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Session
from peers import reason
from torch import Tensor

from agebody.metrics import pa_mpjpe
from agebody.pipelines.bench import sample_arguments

BATCHES = {"cpu": (64, 1024, 16384, 65536), "cuda": (64, 1024, 16384, 65536)}
NOISE = 0.05
"""SD of the predicted joints [m]."""
TOLERANCE = 1e-5
"""[m] Rounding of sums of 24 products in float32, for bodies of 2 m."""
GRADIENT_TOLERANCE = 1e-4
"""Relative to the length of a person's gradient."""

PerPerson = Callable[[Tensor, Tensor], Any]
"""(B, 24, 3) predicted and true joints [m] -> (B,) errors [m]."""


def ours(pred: Tensor, target: Tensor) -> Tensor:
    return pa_mpjpe(pred, target, reduction="none")


def roma_registration(pred: Tensor, target: Tensor) -> Tensor:
    import roma

    rotation, shift, scale = roma.rigid_points_registration(pred, target, compute_scaling=True)
    aligned = scale[:, None, None] * pred @ rotation.mT + shift[:, None]
    return (aligned - target).norm(dim=-1).mean(-1)


def torch_svd(pred: Tensor, target: Tensor) -> Tensor:
    """Compute PA-MPJPE as projects do in torch."""
    pred_center, target_center = pred.mean(1, keepdim=True), target.mean(1, keepdim=True)
    x, y = pred - pred_center, target - target_center
    u, s, vh = torch.linalg.svd(y.mT @ x)
    signs = torch.ones_like(s)
    signs[:, 2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = (u * signs[:, None]) @ vh
    scale = (s * signs).sum(-1) / (x * x).sum((-2, -1))
    aligned = scale[:, None, None] * x @ rotation.mT + target_center
    return (aligned - target).norm(dim=-1).mean(-1)


def numpy_loop(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Compute PA-MPJPE one person after the other, as evaluation scripts since SPIN do."""
    errors = []
    for points, truth in zip(pred, target, strict=True):
        x, y = points - points.mean(0), truth - truth.mean(0)
        u, s, vh = np.linalg.svd(y.T @ x)
        signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vh))])
        rotation = (u * signs) @ vh
        scale = (s * signs).sum() / (x**2).sum()
        errors.append(np.sqrt(((scale * x @ rotation.T - y) ** 2).sum(1)).mean())
    return np.array(errors)


BATCHED: dict[str, PerPerson] = {"agebody": ours, "roma": roma_registration, "torch SVD": torch_svd}
LOOP = "NumPy loop"


def gradient(metric: PerPerson, pred: Tensor, target: Tensor) -> Tensor:
    leaf = pred.detach().requires_grad_()
    return torch.autograd.grad(metric(leaf, target).sum(), leaf)[0]


def people(session: Session, batch: int) -> tuple[Tensor, Tensor]:
    """Return joints of bodies, and the same rotated and scaled, with noise."""
    given = sample_arguments(batch)
    body = session.exact.to("cpu")
    target = body.keypoints("smpl24", **{name: value.double() for name, value in given.items()})
    generator = torch.Generator().manual_seed(batch)
    noise = NOISE * torch.randn(target.shape, generator=generator, dtype=target.dtype)
    pred = 0.9 * target.flip(-1) * target.new_tensor([1, 1, -1]) + noise + 1
    return pred, target


def check(metric: PerPerson, pred: Tensor, target: Tensor, truth: np.ndarray, slope: Tensor) -> None:
    error = float(np.abs(metric(pred, target).double().numpy(force=True) - truth).max())
    if not error <= TOLERANCE:
        raise ValueError(f"wrong answer: {error:.2g} m")
    # Of each person as a whole: rounding turns the gradient of a joint that is aligned almost exactly.
    errors = (gradient(metric, pred, target).cpu() - slope).flatten(1).norm(dim=1)
    error = float((errors / slope.flatten(1).norm(dim=1)).max())
    if not error <= GRADIENT_TOLERANCE:
        raise ValueError(f"wrong gradient: {error:.2g} of its length")


def main() -> None:
    session = Session("procrustes", __doc__, batches=BATCHES)
    exact = people(session, 64)
    truth, slope = numpy_loop(*(x.numpy() for x in exact)), gradient(torch_svd, *exact)
    metrics: dict[str, PerPerson] = {}
    for name, metric in BATCHED.items():
        try:
            check(metric, *(x.to(session.device, torch.float32) for x in exact), truth, slope)
        except Exception as error:
            session.absent[name] = reason(error)
            if name == "agebody":
                raise
        else:
            metrics[name] = metric
    for batch in session.batches:
        given = [x.to(session.device, torch.float32) for x in people(session, batch)]
        arrays = [x.numpy(force=True) for x in given]
        with torch.no_grad():
            found = {name: partial(metric, *given) for name, metric in metrics.items()}
            session.time(batch, found | {LOOP: partial(numpy_loop, *arrays)}, which="error")
        session.time(
            batch,
            {name: partial(gradient, metric, *given) for name, metric in metrics.items()},
            which="error + gradient",
        )
    session.finish()


if __name__ == "__main__":
    main()
