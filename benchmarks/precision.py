"""16-bit pose correctives: speed, and error against float64 over everyday and extreme poses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Session
from peers import reason
from torch import Tensor

import agebody
from agebody.pipelines.bench import POSE_SD, sample_arguments

BATCHES = {"cpu": (64, 256), "cuda": (1024, 4096, 16384)}
ERROR_BODIES = 256
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
POSES = (f"{POSE_SD} rad a joint", "1 rad a joint", "180° at every joint")


def posed(poses: str, device: torch.device) -> dict[str, Tensor]:
    """Return test bodies: rotation vectors with random axes, and random or largest angles."""
    given = sample_arguments(ERROR_BODIES, device=device)
    pose = given["body_pose"].unflatten(-1, (-1, 3))
    if poses == POSES[1]:
        pose = pose / POSE_SD
    elif poses == POSES[2]:
        pose = math.pi * torch.nn.functional.normalize(pose, dim=-1)
    # No translation: it would only add its own rounding, the same for every layer.
    return given | {"body_pose": pose.flatten(-2), "transl": torch.zeros_like(given["transl"])}


def layers(session: Session) -> dict[str, Callable[..., Tensor]]:
    """Return smplx and agebody in float32, and agebody with 16-bit correctives."""
    names = ["smplx", "agebody torch", "agebody warp"]
    found = {contender.name: contender.forward for contender in session.contenders(names)}
    given = posed(POSES[0], session.device)
    for backend in ("torch", "warp"):
        for label, dtype in DTYPES.items():
            name = f"agebody {backend} {label}"
            try:
                layer = agebody.SMPL(
                    session.asset, device=session.device, backend=backend, corrective_dtype=dtype
                )
                layer(**given)
            except Exception as error:
                session.absent[name] = reason(error)
            else:
                found[name] = lambda layer=layer, **given: layer(**given).vertices
    return found


def errors(session: Session, contenders: dict[str, Callable[..., Tensor]]) -> list[dict[str, Any]]:
    """Return the distances of vertices from those of the float64 layer."""
    found = []
    for poses in POSES:
        given = posed(poses, session.device)
        truth = session.exact(**{name: value.double() for name, value in given.items()}).vertices
        for name, forward in contenders.items():
            error = 1e3 * (forward(**given).double() - truth).norm(dim=-1)
            sizes = {"largest_mm": float(error.max()), "mean_mm": float(error.mean())}
            found.append({"contender": name, "poses": poses, "bodies": ERROR_BODIES, **sizes})
    return found


def main() -> None:
    session = Session("precision", __doc__, batches=BATCHES)
    contenders = layers(session)
    with torch.no_grad():
        session.extra["errors"] = errors(session, contenders)
        for batch in session.batches:
            given = sample_arguments(batch, device=session.device)
            session.time(batch, {name: partial(forward, **given) for name, forward in contenders.items()})
    session.finish()


if __name__ == "__main__":
    main()
