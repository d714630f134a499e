"""Mesh-pose interaction: 64 markers against 431 vertices, parallel against sequential, bands on and off.

Every variant sees the same sequences of random people: noisy joints of each frame in the image, and, in place
of an image network's features, a fixed random projection of pose, shape and age with as much noise as signal.
This compares the variants, not their results on real images. Errors are of the middle frame of unseen people,
relative to the pelvis.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from provenance import save_result
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.body import BodyModel
from agebody.cameras import box_around, to_crop
from agebody.mesh import MarkerSet
from agebody.metrics import mpjpe, pa_mpjpe
from agebody.nets import MeshPoseInteraction
from agebody.parameters import BodyParameters
from agebody.people import random_people
from agebody.rotations import axis_angle_to_matrix, from_matrix, matrix_to_axis_angle

RESULT = Path(__file__).parent / "results" / "interaction" / "interaction_cpu.json"
FRAMES, FEATURES, WIDTH = 8, 64, 32
SPAN = 0.5
"""Share of the way from one random pose to another that a clip covers."""
NOISE_PX = 0.01
"""Noise of a joint as a share of the larger side of the person's box."""
UNSEEN_SEED = 30_000
VARIANTS: dict[str, tuple[int, dict[str, bool]]] = {
    "64 markers, parallel, bands": (64, {}),
    "64 markers, sequential, bands": (64, {"parallel": False}),
    "64 markers, parallel, no bands": (64, {"bands": False}),
    "431 vertices, parallel, bands": (431, {}),
    "431 vertices, parallel, no bands (as PMCE)": (431, {"bands": False}),
}


class Clips(NamedTuple):
    features: Tensor
    joints_2d: Tensor
    joints: Tensor
    vertices: Tensor
    classes: Tensor

    def select(self, rows: Tensor) -> Clips:
        return Clips(*(part[rows] for part in self))


def clips(body: BodyModel, count: int, seed: int) -> Clips:
    """Return random people who move from one pose towards another."""
    people = random_people(body, count, seed=seed)
    goal = random_people(body, count, seed=seed + 1, ages=people.years).parameters
    given, gen = people.parameters, torch.Generator().manual_seed(seed)
    first, last = (
        axis_angle_to_matrix(torch.cat((p.global_orient[:, None], p.body_pose), 1)) for p in (given, goal)
    )
    last[:, 0] = first[:, 0]  # people turn and move their limbs, but stay before their camera
    way = matrix_to_axis_angle(first.mT @ last)
    steps = SPAN * (torch.linspace(-0.5, 0.5, FRAMES) + 0.5 * torch.rand(count, 1, generator=gen) + 0.5)
    rotations = first[:, None] @ axis_angle_to_matrix(steps[..., None, None] * way[:, None])
    pose = matrix_to_axis_angle(rotations)

    def each(part: Tensor) -> Tensor:
        return part[:, None].expand(-1, FRAMES, *part.shape[1:])

    moving = BodyParameters(
        pose[..., 0, :], pose[..., 1:, :], each(given.betas), each(given.age_offset), each(given.transl)
    )
    with torch.no_grad():
        joints = body.keypoints("smpl24", moving)
        middle = BodyParameters(*(part[:, FRAMES // 2] for part in moving))
        mesh = torch.cat(
            [body(middle.map(lambda part, i=i: part[i : i + 64])).vertices for i in range(0, count, 64)]
        )
    pixels = people.camera.map(lambda part: part[:, None]).project(joints).pixels
    box = box_around(pixels.flatten(1, 2))
    pixels = to_crop(pixels, box[:, None], limit=1.0)
    pixels = pixels + 2 * NOISE_PX * torch.randn(pixels.shape, generator=gen)
    known = torch.cat(
        (from_matrix(rotations, "rotation_6d").flatten(-2), moving.betas, moving.age_offset[..., None]), -1
    )
    mixing = torch.randn(known.shape[-1], FEATURES, generator=torch.Generator().manual_seed(0))
    features = known @ mixing / known.shape[-1] ** 0.5
    features = features + features.std() * torch.randn(features.shape, generator=gen)
    root = joints[..., :1, :]
    return Clips(
        features, pixels, joints - root, mesh - root[:, FRAMES // 2], age_class(people.parameters.age_offset)
    )


def train(network: MeshPoseInteraction, data: Clips, steps: int, batch: int, seed: int) -> None:
    """Minimise L1 distances of vertices, joints and lifted joints with AdamW and a cosine schedule."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    gen = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        part = data.select(torch.randint(len(data.joints), (batch,), generator=gen))
        made = network(part.features, part.joints_2d)
        loss = (made.vertices - part.vertices).abs().mean() + (made.lifted - part.joints).abs().mean()
        loss = loss + (made.joints - part.joints[:, FRAMES // 2]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def errors(network: MeshPoseInteraction, data: Clips) -> dict[str, Any]:
    """Return mean errors of unseen people [mm]."""
    with torch.no_grad():
        made = network.eval()(data.features, data.joints_2d)
    truth = data.joints[:, FRAMES // 2]
    found = {
        "mpjpe": mpjpe(made.joints, truth, layout="smpl24", reduction="none"),
        "pa_mpjpe": pa_mpjpe(made.joints, truth, reduction="none"),
        "pve": (made.vertices - data.vertices).norm(dim=-1).mean(-1),
    }
    return {name: 1000 * float(value.mean()) for name, value in found.items()} | {
        "pve_by_class": {
            group.name: 1000 * float(found["pve"][data.classes == i].mean())
            for i, group in enumerate(AGE_CLASSES)
        }
    }


def flops(network: MeshPoseInteraction, data: Clips) -> dict[str, int]:
    """Return the operations of one clip, multiplications and additions counted apart, and of the mesh."""

    def counted(function: Any, *given: Tensor) -> int:
        # Only attention as plain products is counted on the CPU.
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
            function(*given)
        return counter.get_total_flops()

    one = data.select(torch.arange(1))
    markers = network.markers
    return {
        "flop": counted(network, one.features, one.joints_2d),
        "flop_mesh": counted(markers.to_vertices, torch.zeros(1, len(markers), 3)),
        "parameters": sum(part.numel() for part in network.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    body = agebody.SMPLA(agebody.mannequin())
    shown = random_people(body, 200, seed=1).parameters
    sets = {count: MarkerSet.learn(body, shown, count) for count in {count for count, _ in VARIANTS.values()}}
    data, unseen = clips(body, options.people, 2), clips(body, 200, UNSEEN_SEED)
    settings = {name: getattr(options, name) for name in ("people", "steps", "batch")}
    settings |= {"body": repr(body.asset), "frames": FRAMES, "features": FEATURES, "width": WIDTH, "depth": 1}
    rows: list[dict[str, Any]] = []
    mean = unseen._replace(vertices=unseen.vertices - data.vertices.mean(0))
    rows.append({"variant": "mean mesh", "pve": 1000 * float(mean.vertices.norm(dim=-1).mean())})
    for seed in range(options.seeds):
        for name, (count, choice) in VARIANTS.items():
            torch.manual_seed(seed)
            network = MeshPoseInteraction(
                body, sets[count], features=FEATURES, frames=FRAMES, width=WIDTH, depth=1, **choice
            )
            start = time.perf_counter()
            train(network, data, options.steps, options.batch, seed)
            seconds = time.perf_counter() - start
            row = {"variant": name, "seed": seed, "train_s": seconds}
            rows.append(row | errors(network, unseen) | flops(network, unseen))
            print(json.dumps(rows[-1]), flush=True)
            # What there is, if the rest is interrupted.
            save_result(options.output, "interaction", **settings, rows=rows)


if __name__ == "__main__":
    main()
