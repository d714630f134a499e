"""Fits to single views of a real adult, compared with points that four calibrated cameras triangulate.

Pictures and detector are the user's: unzip the wheel of ``pip download --no-deps pose2sim`` (BSD-3), and give
its folder ``Pose2Sim/Demo_SinglePerson`` and a detector, such as ``movenet:FILE.tflite``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fitting_accuracy import BODIES
from torch import Tensor

import agebody
from agebody.annotations import read_cameras
from agebody.annotations.views import find_views, join_views, view_frames
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.detect import detect_people, load_detector
from agebody.fitting import Fit, fit_keypoints, fit_sequence
from agebody.fitting.frames import AIONHMR
from agebody.fitting.start import triangulate
from agebody.keypoints import get_layout
from agebody.measure import stature
from agebody.metrics import pa_mpjpe
from agebody.nets import Lifter, fit_lifted
from agebody.pipelines.cli.fit import SPEED_SD

RATE = 60.0  # frames of these videos a second
ALIKE = 25.0  # [pixels] distance from a triangulated point within which a camera agrees with it
PARTS = ("nose", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
LIMBS = (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))


class Seen(NamedTuple):
    """One adult at T moments in V cameras."""

    keypoints: Tensor  # (T, V, K, 2) [pixels]
    weights: Tensor  # (T, V, K)
    camera: Camera  # (V)
    size: Tensor  # (V, 2) [pixels]
    layout: str


def detect(folder: Path, detector: str, every: int) -> Seen:
    """Return the person that the cameras see most often."""
    found, cameras = load_detector(detector), read_cameras(next(folder.glob("calibration/Calib*")))
    films = find_views(folder / "videos", cameras)
    each = {name: detect_people(found, film, exif=False, every=every) for name, film in films.items()}
    people, cameras = join_views(each, cameras)
    people = people.select(np.flatnonzero(people.tracks == np.bincount(people.tracks).argmax()))
    views, frames = view_frames(people, cameras.names)
    points = torch.zeros(int(frames.max()) + 1, len(cameras.names), len(people.layout), 3)
    points[frames, views] = torch.from_numpy(np.dstack((people.keypoints, people.weights))).float()
    camera, size = cameras.camera.map(lambda part: part.float()), torch.tensor(cameras.sizes)
    return Seen(points[..., :2], points[..., 2], camera, size, people.layout.name)


def find_points(seen: Seen) -> tuple[Tensor, Tensor]:
    """Return triangulated points (T, K, 3), and how many cameras agree with each of them (T, K)."""
    camera, weights = seen.camera.expand(*seen.weights.shape[:2]), seen.weights
    for _ in range(20):
        points = triangulate(seen.keypoints, weights, camera)[0]
        off = (camera.project(points[:, None]).pixels - seen.keypoints).norm(dim=-1)
        weights = seen.weights / (1 + (off / ALIKE).square()).square()  # Geman and McClure's
    alike = ((off < ALIKE) & (seen.weights > 0)).sum(1)
    return points, torch.where((seen.weights > 0).sum(1) >= 3, alike, 0)


def fits(body: BodyModel, seen: Seen, motion_sd: float) -> Iterator[tuple[str, Fit]]:
    """Yield fits with bodies flat over (T, V): of single views with the age class, and of all views."""
    moments, views = seen.weights.shape[:2]
    flat = seen.keypoints.flatten(0, 1), seen.camera.map(lambda part: torch.cat([part] * moments))
    known: dict[str, Any] = {"layout": seen.layout, "weights": seen.weights.flatten(0, 1)}
    known["age_class"] = torch.zeros(moments * views, dtype=torch.long)
    yield "one view, from nothing", fit_keypoints(body, *flat, **known)
    size = torch.cat([seen.size] * moments)
    yield "one view, from the lifter", fit_lifted(Lifter.load(), body, *flat, **known, size=size).fit
    given: dict[str, Any] = {"layout": seen.layout, "motion_sd": motion_sd}
    one = seen.keypoints.movedim(1, 0), seen.camera.map(lambda part: part[:, None])
    told = {"weights": seen.weights.movedim(1, 0), "age_class": known["age_class"][:views]}
    size = seen.size[:, None].expand(-1, moments, -1)
    lens, adult = one[1].expand(views, moments), known["age_class"].view(views, moments)
    known = {"layout": seen.layout, "weights": told["weights"], "age_class": adult, "size": size}
    estimate = Lifter.load().estimate(body, one[0], lens, **known)
    starts: dict[str, dict[str, Any]] = {
        "nothing": {},
        "the lifter": {"start": estimate.parameters, "stages": AIONHMR[1:]},
    }
    for name, start in starts.items():
        fit = fit_sequence(body, *one, **given, **told, **start)
        bodies = fit.parameters.map(lambda part: part.movedim(0, 1).flatten(0, 1))
        fit = fit._replace(parameters=bodies, error=fit.error.T.flatten())
        yield f"one view over time, from {name}", fit
    fit = fit_sequence(body, seen.keypoints, seen.camera, weights=seen.weights, views=True, **given)
    bodies = fit.parameters.map(lambda part: part.repeat_interleave(views, 0))
    yield "four views over time", fit._replace(parameters=bodies, error=fit.error.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("detector")
    parser.add_argument("--every", type=int, default=5, help="every n-th frame alone")
    options = parser.parse_args()
    seen = detect(options.folder, options.detector, options.every)
    names = get_layout(seen.layout).names
    parts = [name for name in get_layout("coco17").names if name.split("_")[-1] in PARTS]
    chosen = [names.index(name) for name in parts]  # not the middle of the hips, which no detector gives
    ends = [[names.index(f"{side}_{end}") for end in limb] for side in ("left", "right") for limb in LIMBS]
    truth, alike = find_points(seen)
    rows = ((alike[:, chosen] >= 2).all(-1)[:, None] & (seen.weights.sum(-1) > 0)).flatten()
    truth = truth[:, chosen].repeat_interleave(seen.weights.shape[1], 0)[rows]
    print(f"{len(truth)} views, {len(chosen)} points")
    for kind, make in BODIES.items():
        for name, fit in fits(body := agebody.SMPLA(make()), seen, SPEED_SD * options.every / RATE):
            with torch.no_grad():
                bodies = fit.parameters.map(lambda part: part[rows])
                points, tall = body.keypoints(seen.layout, bodies), stature(body.shape(bodies).rest_vertices)
            limbs, sd = points[:, ends].diff(dim=-2).norm(dim=-1), fit.standard_errors.stature
            print(f"{kind}, {name}: PA-MPJPE {1e3 * pa_mpjpe(points[:, chosen], truth):.0f} mm", end=", ")
            print(f"{fit.error[rows].nanmedian():.1f} px, stature {tall.mean():.2f} m", end=", ")
            print(f"sd {sd[sd.isfinite()].mean():.2f} m", end=", ")
            print(f"limbs {100 * (limbs.std(0) / limbs.mean(0)).mean():.1f} %", flush=True)


if __name__ == "__main__":
    main()
