"""How a release is made, and what is counted meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from agebody.keypoints import KeypointLayout
from agebody.pipelines.release.backgrounds import Background
from agebody.pipelines.release.bodies import Shape
from agebody.pipelines.release.regions import RegionRule

Unfitted = Literal["refuse", "drop", "blank"]
"""What becomes of a photograph with a person who has no fit: an error; it is left out; the person is hidden
as all others are, and no body stands there."""

ImageFormat = Literal["png", "jpg"]
"""Of the pictures with backgrounds."""


@dataclass(frozen=True)
class Options:
    """The choices of `write_release`, which describes them.

    Raises:
        ValueError: a choice is none of those there are.
    """

    background: Background
    region: RegionRule
    margin: float
    dilation: float
    shape: Shape
    unfitted: Unfitted
    layout: KeypointLayout
    image_format: ImageFormat
    fps: float

    def __post_init__(self) -> None:
        """Look at the values."""
        kinds = {
            "background": Background, "region": RegionRule, "shape": Shape, "unfitted": Unfitted,
            "image_format": ImageFormat,
        }  # fmt: skip
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name}: expected one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        for name in ("margin", "dilation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a share of 0 or more, got {getattr(self, name)}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps: expected more than 0 and at most 1000, got {self.fps}")


@dataclass
class Counts:
    """What a manifest counts."""

    pictures: int = 0
    clips: int = 0
    bodies: int = 0
    people_hidden_without_body: int = 0
    people_out_of_view: int = 0
    photographs_left_out_without_people: int = 0
    photographs_left_out_unfitted: int = 0
    photographs_of_predicting_formats: int = 0
    photographs_hidden_both_ways_up: int = 0
