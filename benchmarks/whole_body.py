"""A body of the size of SMPL-X: vertices, their gradients, and the 133 points of COCO-WholeBody."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Session, attempt
from peers import reason
from torch import Tensor

import agebody
from agebody.assets.asset import HAND_JOINTS, SMPL_JOINT_NAMES, SMPL_PARENTS
from agebody.pipelines.bench import (
    blend_products,
    compare,
    forward_and_gradient,
    num_coefficients,
    sample_arguments,
)

BATCHES = {"cpu": (1, 16, 64, 256), "cuda": (1, 64, 1024, 4096)}
LAYOUT = "coco133"
NUM_VERTICES, NUM_FACES = 10475, 20908
HAND_VERTICES = 46
"""Of each finger joint; with the palm's, a hand of SMPL-X has 778."""
FACE_JOINTS = {"jaw": (0, -0.04, 0.05), "left_eye": (0.03, 0.05, 0.07), "right_eye": (-0.03, 0.05, 0.07)}


def main() -> None:
    session = Session("whole_body", __doc__, batches=BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        file = write_body(Path(folder) / "SMPLX_NEUTRAL.npz")
        session.asset = agebody.load_asset(file)
        body = agebody.SMPLX(session.asset, device=session.device)
        forwards: dict[str, Callable[..., Tensor]] = {
            f"agebody {body.backend}": lambda **given: body(**given).vertices
        }
        try:
            forwards["smplx"] = load_peer(file, session.device)
        except ImportError as error:
            session.absent["smplx"] = reason(error)
    exact = agebody.SMPLX(session.asset, device=session.device, dtype=torch.float64, backend="torch")
    for name, forward in forwards.items():
        session.answers[name] = compare(forward, exact)
    count = num_coefficients(exact)
    points = {
        name: partial(body.keypoints, LAYOUT) if name.startswith("agebody") else forward
        for name, forward in forwards.items()
    }
    for batch in session.batches:
        sizes = {"num_betas": body.num_coefficients, "num_joints": body.num_joints}
        given = sample_arguments(batch, **sizes, device=session.device)
        weights = torch.randn(batch, body.num_vertices, 3, device=session.device)
        product, products = blend_products(count, body.num_vertices, batch, device=session.device)
        subjects: dict[str, dict[str, Callable[[], Any]]] = {
            "forward": {name: partial(f, **given) for name, f in forwards.items()} | {"product": product},
            "forward + backward": {
                name: partial(forward_and_gradient, f, given, weights) for name, f in forwards.items()
            }
            | {"product": products},
            LAYOUT: {name: partial(f, **given) for name, f in points.items()},
        }
        for which, functions in subjects.items():
            with torch.set_grad_enabled("backward" in which):
                for name, function in functions.items():
                    failure = attempt(function)
                    if failure is not None and name.startswith("agebody"):
                        raise SystemExit(f"{name}, {which}: {failure}")
                session.time(batch, functions, which=which)
    session.finish()


def load_peer(file: Path, device: torch.device) -> Callable[..., Tensor]:
    """Return smplx's SMPL-X from betas with expression, and from one pose of all joints, to vertices."""
    import smplx

    names = (
        "betas",
        "expression",
        "global_orient",
        "transl",
        "body_pose",
        "jaw_pose",
        "leye_pose",
        "reye_pose",
    )
    created = (*names, "left_hand_pose", "right_hand_pose")
    with contextlib.redirect_stdout(io.StringIO()):
        layer = smplx.SMPLX(
            str(file), use_pca=False, flat_hand_mean=True, **{f"create_{name}": False for name in created}
        )
    layer = layer.to(device)
    parts = dict(zip(created[4:], (63, 3, 3, 3, 45, 45), strict=True))

    def forward(betas: Tensor, body_pose: Tensor, **given: Tensor) -> Tensor:
        pose = dict(zip(parts, body_pose.split(list(parts.values()), -1), strict=True))
        return layer(betas=betas[:, :10], expression=betas[:, 10:], **pose, **given).vertices

    return forward


def write_body(path: Path) -> Path:
    """Write a random body of SMPL-X's size and structure.

    As in published bodies, consecutive vertices are neighbours, so that few joints move a run of them, and
    the pose blend shapes of the fingers, which SMPL-X takes from MANO, move the hand alone.
    """
    rng = np.random.default_rng(0)
    mannequin = agebody.mannequin()
    places = list((mannequin.joint_regressor @ mannequin.template)[:22])
    names, parents = list(SMPL_JOINT_NAMES[:22]), list(SMPL_PARENTS[:22])
    for name, shift in FACE_JOINTS.items():
        names.append(name)
        parents.append(names.index("head"))
        places.append(places[names.index("head")] + shift)
    for side, sign in (("left", 1), ("right", -1)):
        wrist = names.index(f"{side}_wrist")
        for k, name in enumerate(HAND_JOINTS[f"{side}_hand"]):
            parents.append(len(names) - 1 if k % 3 else wrist)
            names.append(name)
            places.append(places[wrist] + sign * np.array([0.08 + 0.02 * (k % 3), 0, 0.02 * (k // 3) - 0.04]))
    num_joints = len(names)
    is_finger = np.arange(num_joints) >= 25
    per_joint = np.where(is_finger, HAND_VERTICES, (NUM_VERTICES - 30 * HAND_VERTICES) // 25)
    per_joint[0] += NUM_VERTICES - per_joint.sum()
    owner = np.repeat(np.arange(num_joints), per_joint)
    weights = np.zeros((NUM_VERTICES, num_joints), np.float32)
    vertex = np.arange(NUM_VERTICES)
    above = np.maximum(np.array(parents), 0)
    for share, joint in ((0.6, owner), (0.3, above[owner]), (0.1, above[above[owner]])):
        np.add.at(weights, (vertex, joint), np.float32(share))
    spread = np.where(is_finger, 0.01, 0.05)[owner, None]
    template = np.array(places)[owner] + spread * rng.normal(size=(NUM_VERTICES, 3))
    regressor = np.zeros((num_joints, NUM_VERTICES))
    regressor[owner, vertex] = 1 / per_joint[owner]
    correctives = 0.001 * rng.normal(size=(NUM_VERTICES, 3, num_joints - 1, 9)).astype(np.float32)
    for first in (25, 40):
        own = weights[:, first : first + 15].any(1) | (owner == parents[first])
        correctives[~own, :, first - 1 : first + 14] = 0
    faces = (np.arange(NUM_FACES) % (NUM_VERTICES - 2))[:, None] + [0, 1, 2]
    on_head = np.flatnonzero(np.isin(owner[faces[: NUM_VERTICES - 2]], [15, 22]).all(1))
    np.savez(
        path,
        v_template=template,
        f=faces,
        shapedirs=0.01 * rng.normal(size=(NUM_VERTICES, 3, 20)),
        posedirs=correctives.reshape(NUM_VERTICES, 3, -1),
        J_regressor=regressor,
        weights=weights,
        kintree_table=np.stack([np.array(parents), np.arange(num_joints)]),
        lmk_faces_idx=rng.choice(on_head, 51),
        lmk_bary_coords=rng.dirichlet(np.ones(3), 51),
        dynamic_lmk_faces_idx=rng.choice(on_head, (79, 17)),
        dynamic_lmk_bary_coords=rng.dirichlet(np.ones(3), (79, 17)),
        **{f"hands_components{side}": np.eye(45) for side in "lr"},
        **{f"hands_mean{side}": np.zeros(45) for side in "lr"},
    )
    return path


if __name__ == "__main__":
    main()
