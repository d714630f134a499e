"""One photograph of a release: its background without people, and the bodies in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from agebody.annotations.videos import load_opencv
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.draw import Picture
from agebody.draw.meshes import pixels_to_linear, to_srgb
from agebody.fitting.start import to_camera_space
from agebody.parameters import BodyParameters
from agebody.pipelines.release.bodies import Bodies, generalize, mesh_boxes, pose_bodies, view_bodies
from agebody.pipelines.release.options import Options
from agebody.pipelines.release.photos import Photo, ReleaseError, read_pixels
from agebody.pipelines.release.regions import add_stored, cover_traces, other_region, person_region

MAX_AREA = 2 * 89_478_485
"""Largest picture [pixels]: the largest that Pillow reads."""
GRAY = (128, 128, 128)
"""The colour of a photograph that is hidden completely."""
INPAINT_RADIUS = 5
"""Radius of the neighbourhood that a pixel is inpainted from [pixels]."""


class Scene(NamedTuple):
    """What is written of a photograph."""

    size: tuple[int, int]
    lens: Camera
    """The camera without rotation and translation."""
    bodies: Bodies
    """Of the people with a fit, in the order of the release."""
    background: UInt8[np.ndarray, "H W 3"] | None
    """The photograph with people's regions painted over; None if nothing of it is kept."""
    predicted: bool = False
    """Whether the format of the photograph may spread traces of people beyond their regions."""
    hidden_both_ways: bool = False
    """Whether regions are hidden both as places in the upright and as places in the stored picture."""


def make_scene(photo: Photo, numbers: Sequence[int], body: BodyModel, options: Options) -> Scene:
    """Make all that is released of one photograph, before it is written.

    What is hidden depends on boxes, masks and the bodies that are released, never on pixel values.
    There is a number per person, which gives a body its colour.
    """
    lens = photo.camera._replace(rotation=None, translation=None)
    colors = [
        number for person, number in zip(photo.people, numbers, strict=True) if person.parameters is not None
    ]
    fits = to_camera_space(body, _stack_fits(photo, body), photo.camera)
    released = generalize(body, fits, options.shape)
    if options.background == "none":
        size = photo.size or read_pixels(photo.path).size
        if size[0] * size[1] > MAX_AREA:
            raise ReleaseError(f"size: expected at most {MAX_AREA} pixels, got {size[0]} x {size[1]}")
        bodies = view_bodies(body, released, lens, size, layout=options.layout, colors=colors)
        return Scene(size, lens, bodies, None)
    pixels = read_pixels(photo.path, photo.size)
    bodies = view_bodies(body, released, lens, pixels.size, layout=options.layout, colors=colors)
    boxes = bodies.boxes
    if options.region == "mesh":  # without a box or mask, the fit is the only place to hide
        exact = mesh_boxes(pose_bodies(body, fits), lens)
        fitted = [person for person in photo.people if person.parameters is not None]
        alone = [person.box is None and person.mask is None for person in fitted]
        joined = np.concatenate([np.fmin(boxes, exact)[:, :2], np.fmax(boxes, exact)[:, 2:]], 1)
        boxes = np.where(np.array(alone, dtype=bool)[:, None], joined, boxes)
    region = _find_region(photo, boxes, bodies.picture, pixels.size, options)
    region = cover_traces(add_stored(region, pixels.other), pixels)
    paint = inpaint if options.background == "inpaint" else blank
    background = paint(pixels.rgb, region)
    return Scene(pixels.size, lens, bodies, background, pixels.predicted, pixels.other is not None)


def _find_region(
    photo: Photo, boxes: Float[np.ndarray, "N 4"], picture: Picture, size: tuple[int, int], options: Options
) -> Bool[np.ndarray, "H W"]:
    """Return the pixels to hide of a photograph; boxes and picture are those of the bodies."""
    region = np.zeros((size[1], size[0]), bool)
    grow = {"margin": options.margin, "dilation": options.dilation}
    index = 0
    for person in photo.people:
        mesh_box, outline = None, None
        if person.parameters is not None:
            mesh_box = None if np.isnan(boxes[index]).any() else tuple(boxes[index].tolist())
            outline = picture.instance == index
            index += 1
        region |= person_region(person, size, mesh_box=mesh_box, outline=outline, rule=options.region, **grow)
    for other in photo.hide:
        region |= other_region(other, size, **grow)
    return region


def _stack_fits(photo: Photo, body: BodyModel) -> BodyParameters:
    """Return the fits of all people with one."""
    like = BodyParameters.zeros(body, 1).map(lambda part: part[0])
    fits = [person.parameters for person in photo.people if person.parameters is not None]
    for fit in fits:
        for name, part, expected in zip(BodyParameters._fields, fit, like, strict=True):
            if part.shape != expected.shape:
                raise ReleaseError(
                    f"{name}: expected shape {tuple(expected.shape)}, as of the body, got {tuple(part.shape)}"
                )
            if not torch.isfinite(part).all():
                raise ReleaseError(f"{name}: expected finite numbers in a fit")
    if not fits:
        return BodyParameters.zeros(body, 0)
    stacked = [torch.stack(parts).to(body.device, body.dtype) for parts in zip(*fits, strict=True)]
    return BodyParameters(*stacked)


def blank(rgb: UInt8[np.ndarray, "H W 3"], region: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy whose region has the mean colour of all other pixels."""
    painted = rgb.copy()
    outside = rgb[~region]
    painted[region] = np.rint(outside.mean(0, dtype=np.float64)) if len(outside) else GRAY
    return painted


def inpaint(rgb: UInt8[np.ndarray, "H W 3"], region: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy whose region continues its surroundings (Telea, Journal of Graphics Tools 2004; OpenCV).

    The region is blanked first, so no detail of the method can carry over a pixel of a person.
    """
    cv2 = load_opencv("inpainting", "agebody[release]")
    blanked = blank(rgb, region)
    if not region.any() or region.all():
        return blanked
    return cv2.inpaint(blanked, region.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)


def compose(
    rgba: UInt8[np.ndarray, "H W 4"], background: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a picture with straight alpha over another, of which uncovered pixels stay bit for bit."""
    result = background.copy()
    edge = (rgba[..., 3] > 0) & (rgba[..., 3] < 255)
    result[rgba[..., 3] == 255] = rgba[rgba[..., 3] == 255][:, :3]
    alpha = rgba[edge][:, 3:] / 255
    light = alpha * pixels_to_linear(rgba[edge][:, :3]) + (1 - alpha) * pixels_to_linear(background[edge])
    result[edge] = np.rint(255 * to_srgb(light))
    return result
