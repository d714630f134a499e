"""What synthetic images show, as one record that their shards state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from agebody.body import BodyModel
from agebody.keypoints import get_layout
from agebody.pipelines.labels.settings import describe_body


@dataclass(frozen=True)
class Recipe:
    """What synthetic images show; equal recipes and bodies give equal images."""

    count: int = 1000
    """Number of images."""
    people: tuple[int, int] = (1, 1)
    """Least and largest number of people per image."""
    size: tuple[int, int] = (256, 256)
    """Width and height of the images [pixels]."""
    seed: int = 0
    """Of the random numbers; each shard has its own, made of this and its number."""
    layout: str = "hmr2_44"
    """Of the keypoints. Training code of HMR2 gets those that it knows by name."""
    extent: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest stature as a share of the image's height, as in `random_people`."""
    truncated: float = 0.2
    """Share of people who are partly beyond a border of the image."""
    occluders: float = 0.2
    """Share of people who have a thing in front of them."""
    images_per_shard: int = 250

    def __post_init__(self) -> None:
        """Check the numbers."""
        least, most = self.people
        if not 1 <= least <= most <= 20:
            raise ValueError(f"people: expected two ascending numbers from 1 to 20, got {least}, {most}")
        for name in ("count", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not all(16 <= side <= 8192 for side in self.size):
            raise ValueError(f"size: expected sides from 16 to 8192 pixels, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        for name in ("truncated", "occluders"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if not 0 < self.extent[0] <= self.extent[1] < math.inf:
            raise ValueError(f"extent: expected two ascending numbers above 0, got {self.extent}")
        get_layout(self.layout)

    def describe(self, body: BodyModel) -> dict[str, Any]:
        """Return the recipe and the body as JSON values, which are equal for equal images."""
        stated = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"agebody": version("agebody"), **describe_body(body), **stated}
