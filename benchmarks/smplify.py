"""Other fits, through smplx: SPIN's SMPLify, and the schedule of SLAHMR that AionHMR adopted.

Reimplemented after their public code (nkolot/SPIN, smplify/smplify.py and losses.py; gioxatz/aionhmr,
aionhmr-a/src/optim and confs/optim.yaml) with their steps, weights and rules for stopping. Differences, and
in whose favour:

- *Body*: an SMPL-sized file with a kid template, eleven coefficients, through ``smplx.SMPL(age="kid")``: for
  SPIN, which knows adults only, more freedom to fit; for SLAHMR, which uses SMPL-H, fewer joints to compute.
- *Points*: COCO's 17 as rows of a matrix over the vertices that smplx returns; SPIN has 49 that come so.
- *Priors*: the published mixture cannot be shared. SPIN's is `MaxMixturePrior` with as many components, made
  of poses of the kind that is fitted, which a user does not have. SLAHMR's VPoser is replaced by the normal
  distribution of the same poses, which costs less than decoding a latent vector.
- *Start*: both start from a network's prediction: here the truth, rotated by 15 degrees, each joint by
  10 more (SD of each component), with the mean shape and the age offset of the true age class; the depth
  follows from the torso, as in SMPLify.
- *Crop*: SPIN works on crops of 224 pixels, for which its weights are made, with a focal length of 5000; here
  the crop's focal length is the true one.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.assets.asset import BodyAsset
from agebody.assets.io import export_smpl
from agebody.body import BodyModel
from agebody.cameras import Camera, box_around, square_box, to_crop, torso_translation
from agebody.keypoints import LAYOUTS
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.people import People, random_people
from agebody.people.observations import Observations

LAYOUT = "coco17"
CROP = 224
SIGMA = 100.0
"""Scale of the Geman-McClure cost in both [pixels]."""
TORSO = [
    LAYOUTS[LAYOUT].names.index(f"{side}_{joint}")
    for joint in ("hip", "shoulder")
    for side in ("right", "left")
]
BENT = (52, 55, 9, 12)
"""Elbows and knees among the 69 angles of the pose, and their signs of hyperextension."""
BENT_SIGNS = (1.0, -1.0, -1.0, -1.0)
PRIOR_SEED = 9_000
"""Seed of the people whose poses make the priors; neither of tests nor held out."""


class Person(NamedTuple):
    """Arguments of smplx for B people; the last beta is the age offset."""

    global_orient: Tensor
    body_pose: Tensor
    betas: Tensor
    transl: Tensor


class Peer:
    """smplx's SMPL-A, its points, and the priors.

    Args:
        asset: an SMPL-sized body with one infant.
        folder: where its files go.
    """

    def __init__(self, asset: BodyAsset, folder: Path) -> None:
        import smplx

        file, kid = folder / "SMPL_NEUTRAL.pkl", folder / "smpl_kid_template.npy"
        export_smpl(asset, file, overwrite=True)
        assert asset.age_templates is not None
        np.save(kid, asset.age_templates[-1])
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning about 10 betas
            self.layer: Any = smplx.SMPL(
                str(file),
                age="kid",
                kid_template_path=str(kid),
                num_betas=10,
                create_betas=False,
                create_body_pose=False,
                create_global_orient=False,
                create_transl=False,
            )
        rows = LAYOUTS[LAYOUT].resolve(asset)[1]
        self.regressor = torch.from_numpy(rows.toarray()).float()
        body = agebody.SMPLA(asset)
        poses = random_people(body, 1000, seed=PRIOR_SEED).parameters.body_pose
        self.mixture = MaxMixturePrior.from_poses(poses, 8)
        self.normal = MahalanobisPrior.from_poses(poses)

    def points(self, person: Person) -> Tensor:
        """(B, 17, 3), in camera coordinates."""
        return self.regressor @ self.layer(**person._asdict()).vertices


def network_start(body: BodyModel, peer: Peer, people: People, seen: Observations, seed: int = 0) -> Person:
    """Return the simulated prediction of a good network; see above."""
    generator = torch.Generator().manual_seed(seed)
    matrix, vector = agebody.rotations.axis_angle_to_matrix, agebody.rotations.matrix_to_axis_angle

    def shaken(rotations: Tensor, degrees: float) -> Tensor:
        turn = math.radians(degrees) * torch.randn(rotations.shape, generator=generator)
        return vector(matrix(rotations) @ matrix(turn))

    mids = torch.tensor([kind.mid for kind in AGE_CLASSES])
    offset = mids[age_class(people.parameters.age_offset)]
    betas = torch.cat((torch.zeros(len(offset), 10), offset[:, None]), 1)
    pose = shaken(people.parameters.body_pose, 10).flatten(1)
    start = Person(shaken(people.parameters.global_orient, 15), pose, betas, torch.zeros(len(offset), 3))
    with torch.no_grad():
        points = peer.points(start)
    transl = torso_translation(points, seen.keypoints, people.camera, layout=LAYOUT, weights=seen.weights)
    return start._replace(transl=transl)


def spin(peer: Peer, seen: Observations, camera: Camera, start: Person, steps: int = 100) -> Person:
    """Run SPIN's SMPLify: ``steps`` of Adam for translation and orientation, then for all but translation."""
    box = square_box(box_around(seen.keypoints, weights=seen.weights), scale=1.2)
    lens = camera.cropped(box, size=(CROP, CROP))
    target = to_crop(seen.keypoints, box, size=(CROP, CROP))
    confidence = seen.weights
    orient, transl = (part.clone().requires_grad_() for part in (start.global_orient, start.transl))

    def pixels(person: Person) -> Tensor:
        points = peer.points(person)
        return lens.focal[:, None] * points[..., :2] / points[..., 2:] + lens.center[:, None]

    optimizer = torch.optim.Adam([orient, transl], lr=1e-2)
    depth = start.transl[:, 2]
    for _ in range(steps):
        person = start._replace(global_orient=orient, transl=transl)
        torso = (pixels(person) - target)[:, TORSO].square().sum((1, 2))
        loss = (torso + 100.0**2 * (transl[:, 2] - depth) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    orient, transl = orient.detach().requires_grad_(), transl.detach()
    pose, betas = (part.clone().requires_grad_() for part in (start.body_pose, start.betas))
    signs = torch.tensor(BENT_SIGNS)
    optimizer = torch.optim.Adam([pose, betas, orient], lr=1e-2)
    for _ in range(steps):
        person = Person(orient, pose, betas, transl)
        data = confidence.square() * _gmof(pixels(person) - target).sum(-1)
        bent = torch.exp(pose[:, BENT] * signs).square().sum(-1)
        prior = 4.78**2 * peer.mixture(pose, reduction="none") + 15.2**2 * bent
        loss = (data.sum(-1) + prior + 5.0**2 * betas.square().sum(-1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Person(orient.detach(), pose.detach(), betas.detach(), transl)


def slahmr(
    peer: Peer, seen: Observations, camera: Camera, start: Person, *, root: int = 30, smooth: int = 60
) -> Person:
    """Run SLAHMR's first stages on single frames, with all people in one problem like those of a video.

    Each outer iteration is a step of L-BFGS (lr 1, 20 inner iterations, strong Wolfe). It ends early by
    SLAHMR's own rules. Smoothness over time has nothing to act on in single frames.
    """
    orient, pose, betas, transl = (part.clone().requires_grad_() for part in start)

    def data() -> Tensor:
        points = peer.points(Person(orient, pose, betas, transl))
        pixels = camera.focal[:, None] * points[..., :2] / points[..., 2:] + camera.center[:, None]
        return 0.001 * (seen.weights.square()[..., None] * _gmof(pixels - seen.keypoints)).sum()

    def whole() -> Tensor:
        return data() + 0.04 * peer.normal(pose, reduction="sum") + 0.05 * betas.square().sum()

    _outer(data, [transl, orient], root)
    _outer(whole, [transl, orient, betas, pose], smooth)
    return Person(*(part.detach() for part in (orient, pose, betas, transl)))


def _outer(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    optimizer = torch.optim.LBFGS(parameters, max_iter=20, lr=1.0, line_search_fn="strong_wolfe")
    latest = math.inf

    def closure() -> Tensor:
        nonlocal latest
        optimizer.zero_grad()
        value = loss()
        latest = float(value.detach())
        value.backward()
        return value

    before, updated = math.inf, 0
    for i in range(iterations):
        optimizer.step(closure)
        change = before - latest
        if math.isnan(latest) or (updated == i - 1 and change == 0):
            return
        if i - updated >= 20 or (change < 20 and i - updated > 5):
            updated = i
        before = latest


def _gmof(residual: Tensor) -> Tensor:
    squared = residual.square()
    return SIGMA**2 * squared / (SIGMA**2 + squared)
