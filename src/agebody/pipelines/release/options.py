"""The choices that `write_release` offers, and what it counts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from agebody.checks import expect_choice, read_nonnegative, read_number
from agebody.keypoints import KeypointLayout

Background = Literal["blank", "inpaint", "none"]
"""What bodies are drawn over: the photograph with people's regions in its mean colour, the photograph with
people's regions painted from their surroundings, or nothing of the photograph at all."""

RegionRule = Literal["auto", "box", "mask", "mesh"]
"""What is hidden of a person, each enlarged (see `person_region`):

- ``"auto"``: the person's box and mask, and of the mesh the outline if there is a mask, else the box;
- ``"box"``: whole boxes, including that of the mask;
- ``"mask"``: the mask and the outline of the mesh, and no box; for masks that are known to be complete. A
  person whom the mask clearly does not show is refused;
- ``"mesh"``: as ``"auto"``, but a person with neither mask nor box is hidden by the box of the mesh alone.
"""

Shape = Literal["mean", "coarse", "exact"]
"""How much of a person's shape, which is biometric, is passed on (see `generalize`)."""

Unfitted = Literal["refuse", "drop", "blank"]
"""What happens to a photograph with a person who has no fit: an error; the photograph is left out; or the
person is hidden like all others, without a body in that place."""

ImageFormat = Literal["png", "jpg"]
"""Format of the pictures with backgrounds."""


@dataclass(frozen=True)
class Options:
    """The arguments of `write_release`, which describes them."""

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
        """Check the values."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                expect_choice(name, getattr(self, name), get_args(kind))
        for name in ("margin", "dilation"):
            read_nonnegative(name, getattr(self, name), "a share")
        read_number("fps", self.fps, "more than 0 and at most 1000", math.ulp(0), 1000)


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

    def add(self, other: Counts) -> None:
        """Add the counts of one picture."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)
