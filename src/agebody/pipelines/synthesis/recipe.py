"""The settings of synthetic images, as one record that their shards contain."""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.age import AGE_CLASSES, AgeCurve
from agebody.annotations.people import fail
from agebody.annotations.photographs import Photographs
from agebody.body import BodyModel
from agebody.checks import read_count, read_number, read_range, read_share, to_number
from agebody.files import read_flag
from agebody.keypoints import get_layout
from agebody.mesh.parts import PartMap
from agebody.people.sampling import class_years
from agebody.pipelines.labels.settings import describe_body

PARTS = {24: None, 7: 7, 6: 6}
"""Numbers of parts, and how `PartMap.from_joints` is told."""
_MOST_PEOPLE = 20
_AGES = re.compile(r"\s*([a-z]+|\d+(?:\.\d*)?\s*-\s*\d+(?:\.\d*)?)\s*(?:[:=]\s*(\d+(?:\.\d*)?))?\s*")


@dataclass(frozen=True)
class Recipe:
    """The settings of synthetic images; equal recipes and bodies give equal images."""

    count: int = 1000
    """Number of images."""
    people: tuple[int, int] = (1, 1)
    """Least and largest number of people per image."""
    size: tuple[int, int] = (256, 256)
    """Width and height of the images [pixels]."""
    seed: int = 0
    """Seed of the random numbers; that of a shard is made from this and its number."""
    ages: str = "balanced"
    """Age classes or ranges of years with their weights, such as ``"baby:2, kid:1, 20-60:1"``. "balanced" has
    equally many of each class."""
    matched: bool = False
    """Whether posture, and with it the view, is independent of age. Else babies lie and adults stand."""
    fov: tuple[float, float] = (35.0, 65.0)
    """Smallest and largest vertical field of view [degrees]."""
    extent: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest stature as a share of the image's height, as in `random_people`."""
    truncated: float = 0.2
    """Share of people who are partly beyond a border of the image."""
    occluders: float = 0.2
    """Share of people with an object in front of them."""
    backgrounds: str | None = None
    """A folder of photographs, which should show no people; None for abstract patterns."""
    layout: str = "hmr2_44"
    """Of the keypoints. The training code of HMR2 gets those that it knows by name."""
    parts: int = 24
    """Number of parts of the part maps: 24, one per joint, or 7 or 6, as of `PartMap.from_joints`."""
    images_per_shard: int = 250

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least, most in (("people", 1, _MOST_PEOPLE), ("fov", 1, 170), ("extent", 1e-3, 10)):
            what = f"numbers from {least:g} to {most}"
            _, high = read_range(name, getattr(self, name), what, least)
            read_number(name, high, f"two ascending {what}", most=most)
        for name in ("count", "images_per_shard"):
            read_count(name, getattr(self, name), least=1)
        if not isinstance(self.size, tuple) or not all(16 <= to_number(side) <= 8192 for side in self.size):
            raise ValueError(f"size: expected sides from 16 to 8192 pixels, got {reprlib.repr(self.size)}")
        read_count("seed", self.seed, 2**63 - 1)
        read_flag("matched", self.matched)
        for name in ("truncated", "occluders"):
            read_share(name, getattr(self, name))
        if read_count("parts", self.parts) not in PARTS:
            raise ValueError(f"parts: expected {', '.join(map(str, PARTS))}, got {self.parts}")
        get_layout(self.layout)
        read_ages(self.ages)

    def images(self, shard: int) -> int:
        """Return the number of images of a shard."""
        return min(self.images_per_shard, self.count - shard * self.images_per_shard)

    def photographs(self) -> list[Path]:
        """Return the photographs of the backgrounds."""
        if self.backgrounds is None:
            return []
        found = Photographs(Path(self.backgrounds))
        if not found.names:
            fail(Path(self.backgrounds), f"expected photographs, got {found.describe()}")
        return [found.folder / name for name in found.names]

    def part_map(self, body: BodyModel) -> PartMap:
        """Return the parts of a body."""
        return PartMap.from_joints(body.asset, PARTS[self.parts])

    def describe(self, body: BodyModel, shard: int) -> dict[str, Any]:
        """Return what a shard is made with as JSON values, which are equal for equal bytes."""
        stated = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        del stated["count"]
        if self.backgrounds is not None:
            names = [f"{path.name} {path.stat().st_size}" for path in self.photographs()]
            stated["backgrounds"] = hashlib.sha256("\n".join(names).encode()).hexdigest()
        return {"agebody": version("agebody"), **describe_body(body), **stated, "images": self.images(shard)}


def read_ages(text: str) -> list[tuple[str | tuple[float, float], float]]:
    """Return the classes and ranges [years] of a text, with their weights."""
    if text == "balanced":
        return [(kind.name, 1.0) for kind in AGE_CLASSES]
    found: list[tuple[str | tuple[float, float], float]] = []
    for part in text.split(","):
        match = _AGES.fullmatch(part)
        names = [kind.name for kind in AGE_CLASSES]
        what = match[1] if match else ""
        low, _, high = what.partition("-")
        given = (float(low), float(high)) if high else None
        if match is None or (given is None and what not in names) or (given and given[0] > given[1]):
            expected = f"balanced, or {', '.join(names)} or years such as 3-12, with weights such as baby:2"
            raise ValueError(f"ages: expected {expected}; got {text!r}")
        found.append((given or what, float(match[2] or 1)))
    if not math.fsum(weight for _, weight in found) > 0:
        raise ValueError(f"ages: expected a weight above 0, got {text!r}")
    return found


def draw_ages(
    text: str, body: BodyModel, count: int, rng: np.random.Generator
) -> Float[Tensor, " N"] | Literal["balanced"]:
    """Return ages [years] of random people; those of a body of one age are left to `random_people`."""
    if not body.age_anchors and text == "balanced":
        return "balanced"
    kinds = read_ages(text)
    known = {}
    if body.age_anchors:
        ranges = class_years(AgeCurve.from_asset(body.asset))
        known = {kind.name: years for kind, years in zip(AGE_CLASSES, ranges, strict=True)}
    elif any(isinstance(kind, str) for kind, _ in kinds):
        raise ValueError("ages: the body has one age; expected balanced, or a range of years from 19 on")
    weights = np.array([weight for _, weight in kinds])
    ranges = np.array([known[kind] if isinstance(kind, str) else kind for kind, _ in kinds])
    low, high = ranges[rng.choice(len(kinds), count, p=weights / weights.sum())].T
    return torch.from_numpy(rng.uniform(low, high))
