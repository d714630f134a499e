"""Train the lifter that comes with agebody on people of the free bodies, with simulated detection errors.

Deterministic: the same options give the same weights on the same machine. One round is a set of new people on
both bodies, each observed several times with different errors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from provenance import provenance
from safetensors import safe_open
from torch import Tensor, nn

import agebody
from agebody.age import AGE_CLASSES, AgeCurve, age_class
from agebody.body import BodyModel
from agebody.cameras import box_around
from agebody.engine.kinematics import KinematicTree
from agebody.fitting.observed import Observed, read_observed
from agebody.keypoints import LAYOUTS
from agebody.measure import stature
from agebody.metrics import mpjpe, pa_mpjpe
from agebody.nets import lifter as nets
from agebody.people import People, observe, random_people
from agebody.people.observations import Observations
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle, to_matrix

BODIES = {"mannequin": agebody.mannequin, "anny": agebody.anny_body}
VALIDATION_SEED = 20_000
"""Below the held-out seeds of `fitting_accuracy`, above those of training."""
MISTAKES: tuple[dict[str, float], ...] = (
    {"occluders": 0.1, "dropped": 0.03, "swapped": 0.03, "borrowed": 0.03, "stray": 0.005},
    {"occluders": 0.4, "dropped": 0.1, "swapped": 0.1, "borrowed": 0.1, "stray": 0.03},
)
NOISE = (0.002, 0.03)
"""Least and greatest noise of a person, as shares of the larger side of the box around their points.

The points of a public detector on photographs are off by 0.026 of that side in the median, and one in ten by
0.084, annotators' own errors included; the latter comes from `MISTAKES` and the spread between points.
"""
LIMBS = 0.2
"""Share of people of whom a limb, or both arms or legs, is not found, or guessed where another person has it.

So detectors report hidden legs: a plausible place, and little confidence.
"""
POSTURES_OF_OTHERS = 0.3
"""Share of people whose posture does not follow from their age."""
GROUPS = (  # which points there are, and how often
    (0.5, lambda name: name in LAYOUTS["coco17"].names),
    (0.2, lambda name: name in LAYOUTS["openpose25"].names and name not in ("neck", "pelvis")),
    (0.15, lambda name: name in LAYOUTS["smpl24"].names),
    (0.15, lambda name: True),
)


class Batch(NamedTuple):
    """Inputs of the network, and the truth."""

    features: Tensor
    rotations: Tensor
    """(B, 24, 3, 3), the root's in the axes of the view."""
    rest_joints: Tensor
    tall: Tensor
    """Stature of a person of mean shape of the age [m]."""
    place: Tensor
    lengths: Tensor
    wrong: Tensor
    """(B, K) of points that were found: 1 where they are of another place; NaN of others."""


def balanced_years(curve: AgeCurve, count: int, generator: torch.Generator) -> Tensor:
    """Return ages of which each age class has the same share, uniform in years within it."""
    high = torch.tensor([float(curve.offset_to_years(kind.low)) for kind in AGE_CLASSES])
    low = torch.tensor([float(curve.offset_to_years(kind.high)) for kind in AGE_CLASSES])
    high[0], low[-1] = 80.0, 0.0
    which = torch.randint(len(AGE_CLASSES), (count,), generator=generator)
    return low[which] + (high - low)[which] * torch.rand(count, generator=generator)


def draw_people(
    body: BodyModel, count: int, seed: int, *, unmatched: float = POSTURES_OF_OTHERS, **options: Any
) -> People:
    """Return people of every age; a share of them takes the postures of another age."""
    generator = torch.Generator().manual_seed(seed)
    curve = AgeCurve.from_asset(body.asset)
    years, other = (balanced_years(curve, count, generator) for _ in range(2))
    swap = torch.rand(count, generator=generator) < unmatched
    postures = torch.where(swap, other, years)
    return random_people(body, count, ages=years, seed=seed, posture_years=postures, **options)


def see(body: BodyModel, people: People, seed: int, mistakes: dict[str, float]) -> Observations:
    """Return simulated detections of `nets.POINTS`: `observe`, with the noise of real detectors."""
    generator = torch.Generator().manual_seed(seed)
    count, number = len(people.years), len(nets.POINTS)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    exact = people.camera.project(body.keypoints(nets.POINTS, people.parameters)).pixels
    low, high = box_around(exact).split(2, -1)
    share = torch.exp(uniform(math.log(NOISE[0]), math.log(NOISE[1]), count, 1))
    spread = torch.exp(0.5 * torch.randn(count, number, generator=generator))
    guessed = torch.rand(count, number, generator=generator) < uniform(0, 0.4, count, 1)
    noise = (high - low).amax(-1, keepdim=True) * share * torch.where(guessed, 3.0, spread)
    seen = observe(body, people, layout=nets.POINTS, seed=seed, noise=noise, **mistakes)
    of_limb = [
        [side in name and any(part in name for part in parts) for name in nets.POINTS.names]
        for parts in (("elbow", "wrist", "hand"), ("knee", "ankle", "foot", "heel", "toe"))
        for side in ("left", "right", "")
    ]
    which = torch.randint(len(of_limb), (count,), generator=generator)
    lost, guess = (
        torch.tensor(of_limb)[which] & (uniform(0, 1, count, 1) < LIMBS),
        uniform(0, 1, count, 1) < 0.5,
    )
    theirs = ((exact - low[:, None]) / (high - low)[:, None]).roll(1, 0)  # another person's, within the box
    other = low[:, None] + theirs * (high - low)[:, None]
    sure = torch.where(guess & (seen.weights > 0), uniform(0.1, 0.5, count, number), 0)
    seen = seen._replace(
        keypoints=torch.where((lost & guess)[..., None], other, seen.keypoints),
        weights=torch.where(lost, sure, seen.weights),
        wrong=seen.wrong | (lost & guess),
    )
    weights = torch.where(guessed, seen.weights * uniform(0.4, 0.7, count, number), seen.weights)
    weights = weights ** torch.exp(uniform(-1, 1, count, 1))  # detectors differ in what they call sure
    shares = torch.tensor([share for share, _ in GROUPS])
    kept = torch.tensor([[chosen(name) for name in nets.POINTS.names] for _, chosen in GROUPS])
    group = torch.multinomial(shares, count, replacement=True, generator=generator)
    return seen._replace(weights=torch.where(kept[group], weights, 0))


def know(body: BodyModel, people: People, seen: Observations, seed: int) -> Observed:
    """Return the observations with known values: for most people none, for others age or depth."""
    generator = torch.Generator().manual_seed(seed)
    count = len(people.years)
    kind, far = torch.rand(2, count, generator=generator)
    kinds = torch.where(kind < 0.25, age_class(people.parameters.age_offset), -1)
    years = torch.where((kind > 0.25) & (kind < 0.4), people.years, torch.nan)
    depth = torch.where(far < 0.2, seen.depth, torch.nan)
    points = nets.POINTS
    return read_observed(
        body,
        seen.keypoints,
        people.camera,
        points,
        seen.weights,
        1.0,
        (None, kinds, years),
        depth,
        0.01,
    )


def make_batch(body: BodyModel, people: People, seed: int, mistakes: dict[str, float]) -> Batch:
    with torch.no_grad():
        seen = see(body, people, seed, mistakes)
        given = know(body, people, seen, seed)
        told = torch.rand(len(people.years), 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        size = torch.where(told, people.size, torch.nan)
        features, view = nets.lifter_features(body, given, size)
        rest = body.keypoints(
            "smpl24", betas=people.parameters.betas, age_offset=people.parameters.age_offset
        )
        rotations = axis_angle_to_matrix(
            torch.cat((people.parameters.global_orient[:, None], people.parameters.body_pose), 1)
        )
        rotations[:, 0] = view.rotation @ rotations[:, 0]
        pelvis = (view.rotation @ (rest[:, 0] + people.parameters.transl)[..., None])[..., 0]
        across = pelvis[:, :2] / pelvis[:, 2:] / view.scale[:, None]
        place = torch.cat((across, (pelvis[:, 2:] * view.scale[:, None]).log()), -1)
        tall = AgeCurve.from_asset(body.asset).offset_to_stature(people.parameters.age_offset)
        lengths = nets.bone_lengths(rest).log() - tall.log()[:, None]
        wrong = torch.where(seen.weights > 0, seen.wrong.float(), torch.nan)
        return Batch(features, rotations, rest, tall, place, lengths, wrong)


def turned(rest_joints: Tensor, rotations: Tensor, tree: KinematicTree) -> Tensor:
    """Return posed joints about the root."""
    posed = tree(rotations, rest_joints)[0][..., 3]
    return posed - posed[:, :1]


def residuals(found: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Return errors by read-out: those that have a standard deviation of their own."""
    rotations = to_matrix(found["pose"].unflatten(-1, (-1, 6)), "rotation_6d")
    return {
        "pose": matrix_to_axis_angle((rotations.mT @ batch.rotations).detach()),
        "growth": found["growth"] - batch.tall.log()[:, None],
        "place": found["place"] - batch.place,
        "lengths": found["lengths"] - batch.lengths,
    }


def objective(found: dict[str, Tensor], batch: Batch, tree: KinematicTree) -> dict[str, Tensor]:
    """Return terms of the loss, means over the batch.

    Joints and rotations determine the pose; its standard deviations are learned beside them, from detached
    errors. Size, place and lengths are normal with their standard deviations.
    """
    rotations = to_matrix(found["pose"].unflatten(-1, (-1, 6)), "rotation_6d")
    ours, theirs = (turned(batch.rest_joints, each, tree) for each in (rotations, batch.rotations))
    errors = residuals(found, batch)
    terms = {
        "joints": ((ours - theirs).norm(dim=-1).mean(-1) / batch.tall).mean(),
        "rotations": (rotations - batch.rotations).square().sum((-2, -1)).mean(),
    }
    for name, error in errors.items():
        log_sd = found[f"log_sd_{name}"]
        if name == "pose":
            error = error.square().mean(-1).sqrt()
        scaled = error * torch.exp(-log_sd)
        terms[name] = (
            nn.functional.huber_loss(scaled, torch.zeros_like(scaled), "none", 3.0) + log_sd
        ).mean()
    known = ~batch.wrong.isnan()
    target = batch.wrong.nan_to_num(0)
    trust = nn.functional.binary_cross_entropy_with_logits(found["trust"], 1 - target, reduction="none")
    terms["trust"] = trust[known].mean()
    return terms


LOSS_WEIGHTS = {
    "joints": 20.0,
    "rotations": 0.3,
    "pose": 0.1,
    "growth": 0.2,
    "place": 0.3,
    "lengths": 0.1,
    "trust": 0.5,
}


def batches(
    bodies: dict[str, BodyModel], rounds: range, people: int, observed: int, size: int, seed: int
) -> Iterator[Batch]:
    """Yield batches of ``size``: each round, ``people`` new ones on every body, observed several times."""
    for i in rounds:
        drawn = [
            (
                body,
                draw_people(body, people, 2 * i + which, truncated=0.15, pose_sd=(1.0, 1.0, 1.5)[i % 3]),
            )
            for which, body in enumerate(bodies.values())
        ]
        for j in range(observed):
            number = seed + i * observed + j
            made = [make_batch(*each, number, MISTAKES[(i + j) % 2]) for each in drawn]
            whole = Batch(*(torch.cat(parts) for parts in zip(*made, strict=True)))
            order = torch.randperm(len(whole.features), generator=torch.Generator().manual_seed(number))
            for rows in order.split(size):
                yield Batch(*(part[rows] for part in whole))


def train(
    bodies: dict[str, BodyModel],
    *,
    rounds: int,
    first: int = 0,
    start: nets.Lifter | None = None,
    people: int = 4096,
    observed: int = 8,
    size: int = 512,
    rate: float = 2e-3,
    width: int = 512,
    blocks: int = 3,
    seed: int = 0,
    say: bool = True,
) -> tuple[nets.Lifter, list[float]]:
    """Return a trained lifter, and the mean loss of each round.

    With ``start`` this one is trained further, on the people of the rounds from ``first`` on.
    """
    torch.manual_seed(seed)
    net = nets.Lifter(width=width, blocks=blocks) if start is None else start.train()
    net.sd_factor.fill_(1.0)
    tree = KinematicTree(next(iter(bodies.values())).asset.parents.tolist())
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    in_round = observed * math.ceil(len(bodies) * people / size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=rounds * in_round, pct_start=0.05, cycle_momentum=False
    )
    exact = first + rounds - math.ceil(rounds / 8)  # before, products of 16 bits, which are faster
    history: list[float] = []
    begin, since = time.perf_counter(), 0.0
    steps = batches(bodies, range(first, first + rounds), people, observed, size, seed)
    for number in range(first, first + rounds):
        losses: list[dict[str, float]] = []
        for batch in itertools.islice(steps, in_round):
            before = time.perf_counter()
            torch.set_float32_matmul_precision("medium" if number < exact else "highest")
            terms = objective(net(batch.features), batch, tree)
            loss = torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append({name: float(term.detach()) for name, term in {"loss": loss, **terms}.items()})
            torch.set_float32_matmul_precision("highest")  # of the people
            since += time.perf_counter() - before
        means = {name: sum(each[name] for each in losses) / len(losses) for name in losses[0]}
        history.append(means["loss"])
        if say:
            print(
                f"{number:4d} {time.perf_counter() - begin:6.0f} s ({since:.0f} s of steps)",
                *(f"{name} {value:.3f}" for name, value in means.items()),
                flush=True,
            )
    return net.eval(), history


def calibrate(net: nets.Lifter, bodies: dict[str, BodyModel], count: int = 4096) -> dict[str, float]:
    """Set factors by which the standard deviations fit people that were not trained on.

    Returns:
        The root mean squares of error over standard deviation before, by read-out.
    """
    made = [
        make_batch(body, draw_people(body, count, VALIDATION_SEED, truncated=0.15), VALIDATION_SEED, mistakes)
        for body in bodies.values()
        for mistakes in MISTAKES
    ]
    whole = Batch(*(torch.cat(parts) for parts in zip(*made, strict=True)))
    with torch.no_grad():
        found = net(whole.features)
    errors = residuals(found, whole)
    factors, before = [], {}
    for name, error in errors.items():
        z = error if name != "pose" else error.square().mean(-1).sqrt()
        z = z * torch.exp(-found[f"log_sd_{name}"])
        # Of the middle 95 %: wrong minima have errors that no standard deviation describes.
        each = z.square()
        each = each.clamp(max=each.quantile(0.99, dim=0)).mean(0).sqrt()
        factors.append(each)
        before[name] = float(each.mean())
    net.sd_factor.copy_(torch.cat(factors))
    scaled = errors["lengths"] * torch.exp(-found["log_sd_lengths"])
    net.correlation.copy_(torch.corrcoef(scaled.T))
    return before


def evaluate(
    net: nets.Lifter, body: BodyModel, people: People, seen: Observations, **known: Any
) -> dict[str, Any]:
    """Return errors of estimates by age class [mm, %]."""
    found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size, **known)
    with torch.no_grad():
        ours, theirs = (body.keypoints("smpl24", each) for each in (found.parameters, people.parameters))
        ours, theirs = ours.double(), theirs.double()
        tall = [stature(body.shape(each).rest_vertices) for each in (found.parameters, people.parameters)]
    values = {
        "mpjpe": 1e3 * mpjpe(ours, theirs, layout="smpl24", reduction="none"),
        "pa_mpjpe": 1e3 * pa_mpjpe(ours, theirs, reduction="none"),
        "stature": 100 * (tall[0] / tall[1] - 1).abs(),
    }
    kinds = age_class(people.parameters.age_offset)
    return {
        name: [float(value.mean()), *(float(value[kinds == k].mean()) for k in range(len(AGE_CLASSES)))]
        for name, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--start", type=Path, help="weights to train further, instead of new ones")
    parser.add_argument("--first", type=int, default=0, help="number of the first round, whose people differ")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--people", type=int, default=4096, help="new ones on each body in each round")
    parser.add_argument("--observed", type=int, default=8, help="times that they are observed")
    parser.add_argument("--width", type=int, default=608)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("build/lifter.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bodies: dict[str, BodyModel] = {name: agebody.SMPLA(make()) for name, make in BODIES.items()}
    begin = time.perf_counter()
    names = ("rounds", "first", "rate", "people", "observed", "width", "blocks", "seed")
    recipe = {name: getattr(options, name) for name in names}
    start, before_it = None, {}
    if options.start is not None:
        start = nets.Lifter.load(options.start)
        recipe |= {"width": start.width, "blocks": start.blocks}
        with safe_open(options.start, "pt") as file:
            before_it = {f"start_{name}": value for name, value in file.metadata().items()}
    net, history = train(bodies, **recipe, start=start)
    seconds = time.perf_counter() - begin
    before = calibrate(net, bodies)
    print("error over standard deviation before calibration:", before)
    about = provenance(torch.device("cpu"))
    net.save(
        options.output,
        {
            "script": "benchmarks/train_lifter.py",
            **before_it,
            **{name: str(value) for name, value in recipe.items()},
            "commit": str(about["commit"]),
            "uncommitted_changes": str(about["uncommitted_changes"]),
            "date": str(about["date"]),
            "torch": torch.__version__,
            "seconds": f"{seconds:.0f}",
            "last_loss": f"{history[-1]:.4f}",
            "data": "random_people on the mannequin and on Anny, seen through observe; no picture, no person",
        },
    )
    net = nets.Lifter.load(options.output)
    for name, body in bodies.items():
        people = random_people(body, 2000, seed=VALIDATION_SEED + 1)
        for title, mistakes in (("2 px", {}), ("mistakes", MISTAKES[1])):
            seen = observe(body, people, seed=VALIDATION_SEED + 1, noise=2.0, **mistakes)
            for cue, known in (
                ("nothing", {}),
                ("class", {"age_class": age_class(people.parameters.age_offset)}),
            ):
                print(name, title, cue)
                for metric, values in evaluate(net, body, people, seen, **known).items():
                    print(f"   {metric:9}", *(f"{value:6.1f}" for value in values))


if __name__ == "__main__":
    main()
