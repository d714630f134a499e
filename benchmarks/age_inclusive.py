"""Test the claim that an age-inclusive body helps children without hurting adults: data, body, age cue.

Small lifters from 2D keypoints to bodies, which differ in the training people, the predicted body, and
whether the age class is an input. All see the same test people, once with the postures of their own ages and
once with those of other ages, in which posture is no cue of age. This is the lifter's setting: networks that
see pixels have other cues, and are not measured here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness import Session
from torch import Tensor, nn
from train_lifter import BODIES, draw_people

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.age.growth import ADULT_YEARS
from agebody.body import BodyModel
from agebody.fitting.observed import read_observed
from agebody.keypoints import get_layout
from agebody.losses import joint_limits
from agebody.measure import stature
from agebody.metrics import joint_limit_violations, mpjpe, pa_mpjpe
from agebody.nets.lifter import FEATURES, lifter_features
from agebody.people import People, observe, random_people
from agebody.rotations import axis_angle_to_matrix, to_matrix

SEEDS = (0, 1, 2)
PEOPLE, TEST, STEPS, BATCH = 4000, 600, 400, 128
TEST_SEED = 40_000
MISTAKES = {"dropped": 0.1}
HONEST, FREE = 0.02, 0.0002
"""Weights of the squared betas: with the first, 14 standard deviations cost more than any error of joints."""


class Arm(NamedTuple):
    """Training data and output of one network."""

    title: str
    adults: bool
    """Whether it is trained on adults alone."""
    inclusive: bool
    """Whether its body has an age offset; else it is the adult with betas."""
    shape: float
    """Weight of the squared betas."""
    cue: bool
    """Whether the age class is an input."""


ARMS = (
    Arm("adults; adult body", True, False, HONEST, False),
    Arm("every age; adult body", False, False, HONEST, False),
    Arm("every age; adult body, free betas", False, False, FREE, False),
    Arm("every age; age-inclusive body", False, True, HONEST, False),
    Arm("every age; adult body; class", False, False, HONEST, True),
    Arm("every age; age-inclusive body; class", False, True, HONEST, True),
)

MEAN = "mean pose, no network"
SPLITS = {"own postures": 0.0, "other postures": 1.0}
"""Test sets, and the share of people who take the posture of another age."""
METRICS = {
    "MPJPE mm": ("mpjpe", 0),
    "PA-MPJPE mm": ("pa_mpjpe", 0),
    "largest beta": ("beta", 1),
    "stature mm": ("stature", 0),
    "surface %": ("surface", 2),
    "beyond limits %": ("violations", 1),
}


class Data(NamedTuple):
    """Inputs of a network, and the truth in the axes of its view."""

    features: Tensor
    told: Tensor
    """Features with the age class."""
    rotations: Tensor
    joints: Tensor
    """About the root [m]."""
    age_offset: Tensor


def see(body: BodyModel, people: People, seed: int) -> Data:
    seen = observe(body, people, seed=seed, **MISTAKES)
    kinds = age_class(people.parameters.age_offset)
    layout = get_layout("coco17")
    made = [
        lifter_features(
            body,
            read_observed(
                body,
                seen.keypoints,
                people.camera,
                layout,
                seen.weights,
                1.0,
                (None, kind, None),
                None,
                0.01,
            ),
            people.size,
        )
        for kind in (None, kinds)
    ]
    features, view = made[0]
    rotations = axis_angle_to_matrix(
        torch.cat((people.parameters.global_orient[:, None], people.parameters.body_pose), 1)
    )
    rotations[:, 0] = view.rotation @ rotations[:, 0]
    joints = body.keypoints("smpl24", people.parameters)
    joints = (joints - joints[:, :1]) @ view.rotation.mT
    return Data(features, made[1][0], rotations, joints, people.parameters.age_offset)


class Network(nn.Module):
    """Two residual blocks of 256, as the lifter's, to rotations, betas and an age offset."""

    def __init__(self, betas: int) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 256)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
            for _ in range(2)
        )
        self.read = nn.Linear(256, 144 + betas + 1)
        nn.init.normal_(self.read.weight, std=1e-3)
        nn.init.zeros_(self.read.bias)
        self.betas = betas

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.embed(features)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        pose, betas, age = self.read(hidden).split((144, self.betas, 1), -1)
        pose = pose + pose.new_tensor([1.0, 0, 0, 0, 1, 0]).repeat(24)
        return to_matrix(pose.unflatten(-1, (24, 6)), "rotation_6d"), betas, age[:, 0]


def answer(body: BodyModel, arm: Arm, found: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    rotations, betas, age = found
    given = {"global_orient": rotations[:, 0], "body_pose": rotations[:, 1:], "betas": betas}
    return {**given, "age_offset": age if arm.inclusive else torch.zeros_like(age)}


def train(body: BodyModel, arm: Arm, data: Data, seed: int) -> Network:
    torch.manual_seed(seed)
    net = Network(body.num_betas)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=STEPS, pct_start=0.05, cycle_momentum=False
    )
    features = data.told if arm.cue else data.features
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(len(features), (BATCH,), generator=generator)
        found = net(features[rows])
        given = answer(body, arm, found)
        joints = body.keypoints("smpl24", **given)
        joints = joints - joints[:, :1]
        loss = 10 * (joints - data.joints[rows]).norm(dim=-1).mean()
        loss = loss + 0.3 * (found[0] - data.rotations[rows]).square().sum((-2, -1)).mean()
        loss = loss + arm.shape * given["betas"].square().sum(-1).mean()
        if arm.inclusive:
            loss = loss + 0.5 * (given["age_offset"] - data.age_offset[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


def errors(body: BodyModel, given: dict[str, Tensor], people: People, data: Data) -> dict[str, Tensor]:
    """Return errors per person [mm, %], and the share of joints beyond the ranges of motion [%]."""
    joints = body.keypoints("smpl24", **given)
    shaped = body.shape(betas=given["betas"], age_offset=given["age_offset"]).rest_vertices
    true = body.shape(people.parameters).rest_vertices
    tall = stature(true)
    mine, theirs = (rest - rest.mean(-2, keepdim=True) for rest in (shaped, true))
    scale = (mine * theirs).sum((-2, -1)) / mine.square().sum((-2, -1))
    surface = (scale[:, None, None] * mine - theirs).norm(dim=-1).mean(-1)
    limits = joint_limits(body.asset.joint_names[1:], age_offset=people.parameters.age_offset)
    return {
        "mpjpe": 1e3 * mpjpe(joints, data.joints, layout="smpl24", reduction="none"),
        "pa_mpjpe": 1e3 * pa_mpjpe(joints, data.joints, reduction="none"),
        "beta": given["betas"].abs().amax(-1),
        "stature": 1e3 * (stature(shaped) - tall).abs(),
        "surface": 100 * surface / tall,
        "violations": 100
        * joint_limit_violations(
            given["body_pose"], limits, pose_format="matrix", tolerance=0.01, reduction="none"
        ).mean(-1),
    }


def main() -> None:
    session = Session("age_inclusive", __doc__, batches={"cpu": (TEST,), "cuda": (TEST,)})
    seeds = SEEDS[:1] if session.options.quick else SEEDS
    for seed, (name, make) in itertools.product(seeds, BODIES.items()):
        body = agebody.SMPLA(make(), pose_format="matrix")
        with torch.no_grad():
            tests = {
                split: (
                    people := draw_people(body, TEST, TEST_SEED, unmatched=unmatched),
                    see(body, people, 1),
                )
                for split, unmatched in SPLITS.items()
            }
            every = see(body, random_people(body, PEOPLE, seed=seed), seed)
            grown = see(body, random_people(body, PEOPLE, seed=seed, ages=(ADULT_YEARS, 80.0)), seed)
        mean = _mean_rotations(every.rotations).expand(TEST, -1, -1, -1)
        shape = torch.zeros(TEST, body.num_betas)
        note(session, body, name, tests, MEAN, seed, lambda _, m=mean, s=shape: (m, s, s[:, 0]), ARMS[1])
        for arm in ARMS:
            start = time.perf_counter()
            net = train(body, arm, grown if arm.adults else every, seed)
            note(session, body, name, tests, arm.title, seed, net, arm)
            print(f"{name}, {arm.title}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    session.extra |= {"people": PEOPLE, "steps": STEPS, "batch_size": BATCH, "seeds": list(seeds)}
    session.finish()
    show(session.rows)


def _mean_rotations(rotations: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(rotations.mean(0))
    flip = torch.ones_like(u[:, 0])
    flip[:, 2] = torch.linalg.det(u @ v)
    return (u * flip[:, None]) @ v


def note(
    session: Session,
    body: BodyModel,
    name: str,
    tests: dict[str, tuple[People, Data]],
    title: str,
    seed: int,
    net: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    arm: Arm,
) -> None:
    """Record a row for each split and age class."""
    for split, (people, data) in tests.items():
        with torch.no_grad():
            given = answer(body, arm, net(data.told if arm.cue else data.features))
            values = errors(body, given, people, data)
        kinds = age_class(people.parameters.age_offset)
        for i, kind in enumerate(AGE_CLASSES):
            rows = kinds == i
            means = {metric: float(value[rows].mean()) for metric, value in values.items()}
            about = {"body": name, "split": split, "seed": seed, "which": kind.name}
            session.note(TEST, title, **about, people=int(rows.sum()), **means)


def show(rows: list[dict[str, Any]]) -> None:
    """Print Markdown tables of means over the seeds: adult / teen / kid / baby."""
    spreads = []
    for body, split in dict.fromkeys((row["body"], row["split"]) for row in rows):
        mine = [row for row in rows if (row["body"], row["split"]) == (body, split)]
        print(
            f"\n### {body}, {split}\n\n| network |",
            " | ".join(METRICS),
            "|\n| --- |",
            "--- | " * len(METRICS),
        )
        for title in dict.fromkeys(row["contender"] for row in mine):
            cells = []
            for metric, digits in METRICS.values():
                by_class = [
                    [row[metric] for row in mine if (row["contender"], row["which"]) == (title, kind.name)]
                    for kind in AGE_CLASSES
                ]
                cells.append(" / ".join(f"{sum(each) / len(each):.{digits}f}" for each in by_class))
                spreads += [max(each) - min(each) for each in by_class if metric == "mpjpe"]
            print(f"| {title} |", " | ".join(cells), "|")
    print(f"\nlargest difference of MPJPE between seeds: {max(spreads):.1f} mm")


if __name__ == "__main__":
    main()
