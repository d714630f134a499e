"""Depth order of people: DTO compared with the layout of single-person fits, on images with known truth.

Every image has people of all ages on one ground in front of one camera. Their bodies are rendered to a depth
map and to instance masks. Inputs of a method:

- the depth map in an unknown unit and from an unknown origin, each person off by 5 % (SD) of the true depth;
- bodies as single-person fits leave them: of the right pose, at the wrong size, in the same pixels.

The paper publishes no noise; these are the numbers of this file. DTO uses only the ratio of a body's stature
to its depth, which does not depend on a wrong size, so it gives equal results for both kinds of fits.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import save_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

import agebody
from agebody import BodyParameters
from agebody.age import AGE_CLASSES, AgeCurve, age_class, median_stature, stature_sd
from agebody.age.growth import ADULT_YEARS
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.crowd import (
    HeightPrior,
    height_class,
    mask_depths,
    place_people,
    refine_crowd,
    rest_height,
)
from agebody.crowd.depths import MaskDepths
from agebody.draw import render
from agebody.losses import part_vertices
from agebody.metrics import depth_relations
from agebody.people import pose
from agebody.pipelines.evaluate.bootstrap import ratio_intervals

SEED = 20_000
"""First held-out seed: tests, examples and tuning use smaller ones."""
WIDTH, HEIGHT, FOCAL, EYE = 320, 240, 300.0, 1.5
"""Size of the images and focal length [pixels], and height of the camera [m]."""
MOST = 6
"""Largest number of people per image; the least is two."""
DEPTH_NOISE = 0.05
"""SD of the depth of each person in the depth map, as a share of the depth."""
ADULT_SIZE = (1.70, 0.07)
"""Mean and SD of the statures that a network for adults predicts for everybody [m]."""
SIZE_NOISE = 0.10
"""SD of the statures that a network for all ages predicts, as a share."""
YEARS_NOISE = 2.0
"""Largest SD of known ages, which is a tenth of the age for the young [years]."""
THRESHOLD = 0.2
"""Threshold of PCDR [m]."""
RESAMPLES = 2000
RESULTS = Path(__file__).parent / "results" / "crowd" / "cpu.json"


class Truth(NamedTuple):
    """People of I images, up to P in each."""

    years: Tensor
    there: Tensor
    sex: Tensor
    height: Tensor
    age_offset: Tensor
    root: Tensor
    points: Tensor
    soles: Tensor
    depths: MaskDepths
    """Depths of the true map within the true bodies; slopes are 1."""


def sample(body: BodyModel, images: int, seed: int) -> Truth:
    """Sample people who stand on the ground, evenly over the age classes."""
    r = np.random.default_rng(seed)
    count = r.integers(2, MOST + 1, images)
    there = np.arange(MOST) < count[:, None]
    kinds = r.integers(0, len(AGE_CLASSES), there.shape)
    curve = AgeCurve.from_asset(body.asset)
    edges = [(curve.offset_to_years(max(k.low, 0.0)), curve.offset_to_years(k.high)) for k in AGE_CLASSES]
    high, low = (np.array([edge[i] for edge in edges])[kinds] for i in (0, 1))
    years = np.where(kinds == 0, r.uniform(ADULT_YEARS, 60, kinds.shape), r.uniform(low, high))
    sex = r.integers(1, 3, kinds.shape)
    names = np.array(["neutral", "female", "male"])[sex]
    chosen = np.empty(kinds.shape)
    for name in ("female", "male"):
        rows = names == name
        chosen[rows] = median_stature(years[rows], sex=name) + r.normal(size=rows.sum()) * stature_sd(
            years[rows], sex=name
        )
    z = r.uniform(2.5, 8.0, (images, 1)) + r.normal(0, 1.2, kinds.shape)
    z = np.clip(z, 1.8, 12.0)
    x = r.uniform(-0.42, 0.42, kinds.shape) * z * WIDTH / FOCAL
    everyday = np.array(["standing", "at ease", "hand on hip", "walking", "waving", "sitting"])
    poses = np.stack([pose(name, body.asset.joint_names) for name in everyday])
    which = r.integers(0, len(everyday) - 1, kinds.shape)
    which[years < 1.2] = len(everyday) - 1  # who cannot stand yet, sits
    heading = r.uniform(-1.2, 1.2, kinds.shape)
    return _pose(body, years, there, sex, chosen, np.stack((x, z), -1), poses[which], heading, curve)


def _pose(body, years, there, sex, height, places, angles, heading, curve) -> Truth:
    def t(array):
        return torch.from_numpy(np.asarray(array)).to(body.dtype)

    def flat(tensor):
        return tensor.flatten(0, 1)

    half = 0.5 * flat(t(heading))
    # Upright before a camera whose y axis points down, and turned: half a turn about one axis.
    turn = math.pi * torch.stack((half.cos(), torch.zeros_like(half), half.sin()), -1)
    people = BodyParameters.zeros(body, there.size)._replace(
        global_orient=turn, body_pose=flat(t(angles))[:, 1:], age_offset=flat(t(curve.years_to_offset(years)))
    )
    people = people._replace(transl=people.transl + people.transl.new_tensor((0, 0, 5.0)))
    camera = Camera(
        people.transl.new_tensor((FOCAL, FOCAL)), people.transl.new_tensor((WIDTH / 2, HEIGHT / 2))
    )
    people = _of_height(body, people, flat(t(height)))
    soles = part_vertices(body.asset, "feet", facing=(0, -1, 0))
    low = torch.cat(
        [
            body(people.map(lambda p, r=rows: p[r])).vertices[..., 1].amax(-1)
            for rows in torch.arange(there.size).split(64)
        ]
    )
    x, z = flat(t(places)).unbind(-1)
    people = people._replace(transl=torch.stack((x, EYE - low, z), -1))
    parts = []
    for image in range(len(there)):
        rows = slice(image * MOST, (image + 1) * MOST)
        posed = body(people.map(lambda p, r=rows: p[r]))
        points = body.keypoints("coco17", people.map(lambda p, r=rows: p[r]))
        drawn = [
            render(v, body.faces, camera, size=(WIDTH, HEIGHT), light_rays=0, background=None).depth
            if here
            else np.full((HEIGHT, WIDTH), np.inf)
            for v, here in zip(posed.vertices, there[image], strict=True)
        ]
        each = torch.from_numpy(np.stack(drawn)).to(body.dtype)
        nearest, who = each.min(0)
        masks = (who == torch.arange(MOST)[:, None, None]) & each.isfinite()
        parts.append(
            (posed.joints[:, 0], points, posed.vertices[:, soles], *mask_depths(nearest, each, masks))
        )
    root, points, feet, *depths = (torch.stack(part) for part in zip(*parts, strict=True))
    measured = MaskDepths(*depths)
    # DTO's code requires as many pixels.
    seen = torch.from_numpy(there) & (measured.pixels >= WIDTH * HEIGHT / 400)
    height = rest_height(body, people.betas, people.age_offset)
    shape = there.shape
    return Truth(
        t(years),
        seen,
        torch.from_numpy(sex),
        height.reshape(shape),
        people.age_offset.reshape(shape),
        root,
        points,
        feet,
        measured,
    )


def _of_height(body: BodyModel, people: BodyParameters, height: Tensor) -> BodyParameters:
    """Give bodies these statures by the first beta alone; the age offset stays that of the age."""
    first = torch.zeros_like(people.betas)
    first[:, 0] = 1
    for _ in range(4):  # Newton's method on a nearly linear function
        now = rest_height(body, people.betas, people.age_offset)
        slope = rest_height(body, people.betas + first, people.age_offset) - now
        people = people._replace(betas=people.betas + first * ((height - now) / slope)[:, None])
    return people


class Result(NamedTuple):
    """Depths of the people of all images by one method."""

    name: str
    depth: Tensor
    placed: Tensor | None = None
    """True for people placed by DTO; None for fits alone."""
    in_one_plane: Tensor | None = None
    """True for placed people in images decided by the rule for people in one plane or by the least slope."""


def compare(truth: Truth, body: BodyModel, seed: int) -> list[Result]:
    """Run all methods on the same images."""
    g = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(truth.years.shape, generator=g, dtype=truth.height.dtype)

    z, h, there = truth.depths.depth, truth.height, truth.there.to(truth.height.dtype)
    unit = torch.rand(len(z), 1, generator=g, dtype=z.dtype) * 5 + 0.2
    origin = torch.rand(len(z), 1, generator=g, dtype=z.dtype) * 4 - 2

    def affine(depth):
        return (depth + origin) / unit

    noisy = z * (1 + DEPTH_NOISE * normal())
    adult = (ADULT_SIZE[0] + ADULT_SIZE[1] * normal()) / h
    aware = torch.exp(SIZE_NOISE * normal())
    known = (truth.years + normal() * torch.clamp(truth.years / 10, max=YEARS_NOISE)).clamp(min=0)
    curve = AgeCurve.from_asset(body.asset)
    by_years = HeightPrior.of_age(known, sex=truth.sex, years_sd=torch.clamp(known / 10, max=YEARS_NOISE))
    by_class = HeightPrior.of_class(height_class(truth.years, sex=truth.sex), dtype=z.dtype)
    anybody = HeightPrior.of_class(torch.zeros_like(truth.sex), dtype=z.dtype)
    offsets = curve.years_to_offset(truth.years)
    by_offset = HeightPrior.of_age_offset(offsets + 0.1 * normal(), curve)

    def dto(name: str, size: Tensor, prior: HeightPrior, depth: Tensor = noisy) -> Result:
        found = place_people(
            affine(depth), z * size, h * size, prior, weights=there, spread=truth.depths.spread / unit
        )
        return Result(name, found.depth, found.placed, found.placed & found.bounded[:, :1])  # nobody is far

    refined = _refined(truth, aware, by_years, dto("", aware, by_years).depth, z)
    return [
        Result("everybody of adult size", z * adult),
        dto("… and DTO, nothing known of people", adult, anybody),
        dto("… and DTO, class of age and sex known", adult, by_class),
        dto("… and DTO, age known", adult, by_years),
        Result("statures off by 10 %", z * aware),
        dto("… and DTO, age offset off by 0.1", aware, by_offset),
        Result("… and DTO, age known, refined on one ground", refined),
        dto("exact depths and statures, DTO", aware, HeightPrior(h, by_years.sd), z),
    ]


def _refined(truth: Truth, size: Tensor, prior: HeightPrior, placed: Tensor, z: Tensor) -> Tensor:
    """Place the DTO layout on one ground; people are scaled about the camera, so their pixels stay."""
    scale = torch.where(truth.there, placed / (z * size), 1) * size
    camera = Camera(z.new_tensor((FOCAL, FOCAL)), z.new_tensor((WIDTH / 2, HEIGHT / 2)))
    by = scale[..., None, None]
    found = refine_crowd(
        truth.points * by,
        camera,
        truth.root * scale[..., None],
        weights=truth.there.to(z),
        feet=truth.soles * by,
        height=truth.height * scale,
        prior=HeightPrior(prior.mean, prior.sd),
    )
    return placed + (found.new_root - found.root)[..., 2]


def table(truth: Truth, results: list[Result]) -> list[dict[str, Any]]:
    """Return PCDR with intervals by the age class of either person, and the depth errors."""
    kinds = age_class(truth.age_offset)
    rows = []
    z, there = truth.depths.depth, truth.there
    for name, depth, placed, in_one_plane in results:
        counts = {}
        for split, classes in (("all", None), ("class", kinds)):
            found = depth_relations(
                depth, z, weights=there, age_classes=classes, threshold=THRESHOLD, same_layer=THRESHOLD
            )
            right, pairs = (part.reshape(len(z), -1).numpy() for part in (found.right, found.pairs))
            low, high = ratio_intervals(right, pairs, resamples=RESAMPLES, seed=0)
            names = ["all"] if split == "all" else [kind.name for kind in AGE_CLASSES]
            for i, key in enumerate(names):
                counts[key] = [right[:, i].sum() / pairs[:, i].sum(), low[i], high[i], int(pairs[:, i].sum())]
        error = (depth - z).abs()
        off = error[there]
        by_placement = {}
        if placed is not None and in_one_plane is not None:
            by_placement = {
                key: {"people": int(some.sum()), "largest_depth_error_m": error[some].max().item()}
                for key, some in (
                    ("not_placed", there & ~placed),
                    ("placed", placed),
                    ("in_one_plane", in_one_plane),
                    ("placed_by_their_depths", placed & ~in_one_plane),
                )
                if some.any()
            }
        rows.append(
            {
                "method": name,
                "pcdr": counts,
                "median_depth_error_m": off.median().item(),
                "largest_depth_error_m": off.max().item(),
                "median_depth_error_share": (off / z[there]).median().item(),
                **by_placement,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--body", choices=("anny", "mannequin"), default="anny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asset = agebody.anny_body() if options.body == "anny" else agebody.mannequin()
    body = agebody.SMPLA(asset, dtype=torch.float64)
    with torch.no_grad():
        start = time.perf_counter()
        truth = sample(body, options.images, options.seed)
        print(
            f"{int(truth.there.sum())} people in {options.images} images, {time.perf_counter() - start:.0f} s"
        )
        rows = table(truth, compare(truth, body, options.seed + 1))
    seconds = _speed(truth)
    console = Console(width=140)
    shown = Table("method", "PCDR 0.2, all", *(kind.name for kind in AGE_CLASSES), "|dz| median")
    for row in rows:
        cells = [f"{100 * v:.1f} [{100 * a:.1f}, {100 * b:.1f}]" for v, a, b, _ in row["pcdr"].values()]
        shown.add_row(row["method"], *cells, f"{100 * row['median_depth_error_share']:.1f} %")
    console.print(shown)
    print(f"closed form: {1e6 * seconds:.1f} us an image")
    noise = {"depth": DEPTH_NOISE, "size": SIZE_NOISE, "adult_size": ADULT_SIZE, "years": YEARS_NOISE}
    given = {"absent": {}, "body": asset.metadata.name, "images": options.images, "seed": options.seed}
    given |= {"people": int(truth.there.sum()), "noise": noise}
    save_result(options.output, "crowd", **given, rows=rows, seconds_an_image=seconds)


def _speed(truth: Truth) -> float:
    """Return the time of the closed form per image, for a thousand images [s]."""
    index = torch.arange(1000) % len(truth.height)
    z, h = truth.depths.depth[index], truth.height[index]
    prior = HeightPrior(h * 1.02, 0.05 * h)

    def run() -> Any:
        return place_people(z, z, h, prior, weights=truth.there[index])

    run()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / 1000


if __name__ == "__main__":
    main()
