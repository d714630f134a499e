"""One photograph of a release: what is hidden, what is left, and the bodies before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.draw import Picture
from agebody.parameters import BodyParameters
from agebody.pipelines.release.arrange import Place
from agebody.pipelines.release.backgrounds import blank, inpaint
from agebody.pipelines.release.bodies import Bodies, draw, generalize, mesh_boxes, see, to_camera_space
from agebody.pipelines.release.options import Options
from agebody.pipelines.release.photos import ReleaseError, read_pixels
from agebody.pipelines.release.regions import both_ways, cover_traces, other_region, person_region


class Scene(NamedTuple):
    """What is written of a photograph."""

    size: tuple[int, int]
    lens: Camera
    """Without rotation and translation."""
    bodies: Bodies
    """Of the people who have a fit, in the order of the release."""
    background: UInt8[np.ndarray, "H W 3"] | None
    """What is left of the photograph."""
    predicted: bool
    """Whether the format of the photograph may spread traces beyond a region."""
    two_ways: bool
    """Whether what is hidden is hidden both as of the upright and as of the stored picture."""


def make_scene(place: Place, body: BodyModel, options: Options) -> Scene:
    """All that is released of one photograph, before it is written.

    What is hidden depends on boxes, masks and the fits as they are, never on a pixel.

    Raises:
        ReleaseError: it cannot be read, or does not suit its people.
        OSError: a file cannot be read.
    """
    photo = place.photo
    lens = photo.camera._replace(rotation=None, translation=None)
    with_body = [number for person, number in place.people if person.parameters is not None]
    fits = to_camera_space(body, _gather(place, body), photo.camera)
    released = generalize(body, fits, options.shape)
    if options.background == "none":
        size = photo.size or read_pixels(photo.path).size
        bodies = see(body, released, lens, size, layout=options.layout, colors=with_body)
        return Scene(size, lens, bodies, None, False, False)
    pixels = read_pixels(photo.path, photo.size)
    bodies = see(body, released, lens, pixels.size, layout=options.layout, colors=with_body)
    outlines: Picture | None = None
    if options.region != "box" and any(person.mask is not None for person, _ in place.people):
        outlines = bodies.picture if options.shape == "exact" else draw(body, fits, lens, pixels.size)
    boxes = mesh_boxes(body, fits, lens)
    listed = _region(place, boxes, outlines, pixels.size, options)
    region = cover_traces(both_ways(listed, pixels.other), pixels)
    paint = inpaint if options.background == "inpaint" else blank
    return Scene(
        pixels.size, lens, bodies, paint(pixels.rgb, region), pixels.predicted, pixels.other is not None
    )


def _region(
    place: Place,
    boxes: Float[np.ndarray, "N 4"],
    outlines: Picture | None,
    size: tuple[int, int],
    options: Options,
) -> Bool[np.ndarray, "H W"]:
    """Where anybody is; boxes and outlines are those of the fits."""
    region = np.zeros((size[1], size[0]), bool)
    index = 0
    for person, _ in place.people:
        mesh_box, outline = None, None
        if person.parameters is not None:
            box = boxes[index]
            mesh_box = None if np.isnan(box).any() else tuple(box.tolist())
            outline = None if outlines is None else outlines.instance == index
            index += 1
        region |= person_region(
            person, size, mesh_box=mesh_box, outline=outline, rule=options.region, margin=options.margin,
            dilation=options.dilation,
        )  # fmt: skip
    for other in place.photo.hide:
        region |= other_region(other, size, margin=options.margin, dilation=options.dilation)
    return region


def _gather(place: Place, body: BodyModel) -> BodyParameters:
    """The fits of all who have one.

    Raises:
        ReleaseError: they are not of this body, or not finite.
    """
    like = BodyParameters.zeros(body, 1).map(lambda part: part[0])
    fits = [person.parameters for person, _ in place.people if person.parameters is not None]
    for fit in fits:
        for name, part, expected in zip(BodyParameters._fields, fit, like, strict=True):
            if part.shape != expected.shape:
                raise ReleaseError(
                    f"{name}: expected shape {tuple(expected.shape)}, as of the body, got {tuple(part.shape)}"
                )
            if not torch.isfinite(part).all():
                raise ReleaseError(f"{name}: a fit that is not finite")
    if not fits:
        return BodyParameters.zeros(body, 0)
    return BodyParameters(*(torch.stack(parts).to(body._like) for parts in zip(*fits, strict=True)))
