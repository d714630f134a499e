"""The pixels of a photograph that may show people, with a margin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage

from agebody.pipelines.release.options import RegionRule
from agebody.pipelines.release.photos import Box, Person, Pixels, Region, ReleaseError, load_mask

MIN_GROWTH = 8
"""Least growth of a region [pixels]."""
TRACE = 17
"""Further growth on each side against compression traces [pixels]: one block of JPEG, and one pixel more."""
STEPS = 16
"""Steps per longer side of a box, at least half as many, to which its sides are rounded outward."""
MIN_FILLED = 0.5
"""Share of a person's box that the box around the mask in it must fill; else it is the mask of another."""
MIN_COVERED = 0.8
"""Share of a person's keypoints that must lie in the grown mask; a few may be guesses beside it."""


def person_region(
    person: Person,
    size: tuple[int, int],
    *,
    mesh_box: Box | None,
    outline: Bool[np.ndarray, "H W"] | None,
    rule: RegionRule,
    margin: float,
    dilation: float,
) -> Bool[np.ndarray, "H W"]:
    """Return the pixels to hide for one person.

    A fitted body covers neither hair nor clothes nor what a person holds, and a fit may be wrong. So a mesh
    adds to what is hidden, and never decides alone unless the rule is "mesh".

    What is hidden can be seen, so the mesh, of which ``outline`` is the pixels, is that of the body that is
    released, with its shape generalized, and boxes are joined and rounded.

    Margins are as in `write_release`; the dilation is a share of the mask's longer side if that is larger.

    Raises:
        ReleaseError: the place of the person is unknown, or outside the photograph.
    """
    mask = None if person.mask is None else load_mask(person.mask, size, empty=False)
    if rule == "mask":
        return _mask_alone(person, mask, outline, dilation)
    boxes = [] if mesh_box is None else [mesh_box]
    region = np.zeros((size[1], size[0]), bool)
    if mask is not None and rule == "box":
        boxes.append(box_of(mask))
    elif mask is not None:
        region = _grown_mask(person, mask, outline, dilation)
        boxes = []
    if person.box is not None:
        boxes.append(person.box)
    elif mask is None and rule != "mesh":
        raise ReleaseError(
            "a person with neither a box nor a mask: if the fit is wrong the person would be visible; "
            'give boxes or masks, or choose the region "mesh" to rely on the fits'
        )
    if boxes:
        left, top, right, bottom = np.array(boxes, dtype=float).T
        joined = float(left.min()), float(top.min()), float(right.max()), float(bottom.max())
        region |= hide_box(joined, size, margin)
    if person.box is not None and not fill_box(person.box, size, 1).any():
        raise ReleaseError(f"a person whose box {tuple(person.box)} is not in the picture of {size} pixels")
    if not region.any():
        raise ReleaseError("a person without a box, a mask or a fit inside the picture")
    return region


def _grown_mask(
    person: Person, mask: Bool[np.ndarray, "H W"], outline: Bool[np.ndarray, "H W"] | None, dilation: float
) -> Bool[np.ndarray, "H W"]:
    seen = mask if outline is None else mask | outline
    side = max(longer_side(box) for box in (box_of(mask), person.box) if box is not None)
    return grow(seen, max(MIN_GROWTH, dilation * side))


def _mask_alone(
    person: Person,
    mask: Bool[np.ndarray, "H W"] | None,
    outline: Bool[np.ndarray, "H W"] | None,
    dilation: float,
) -> Bool[np.ndarray, "H W"]:
    """Grow the mask, or raise ReleaseError if it is missing or cannot be complete."""
    if mask is None:
        raise ReleaseError('a person without a mask; the region "mask" needs one for everybody')
    if person.box is not None:
        x0, y0, x1, y1 = person.box
        size = (mask.shape[1], mask.shape[0])
        inside = mask & fill_box(person.box, size, 0)
        filled = 0.0
        if inside.any():
            left, top, right, bottom = box_of(inside)
            filled = (right - left) * (bottom - top)
        visible = max(min(x1, size[0]) - max(x0, 0), 0) * max(min(y1, size[1]) - max(y0, 0), 0)
        if filled == 0 or filled < MIN_FILLED * visible:
            raise ReleaseError(
                f"a person whose mask fills too little of the box {tuple(person.box)} to be complete; "
                'the region "auto" hides the box, too'
            )
    region = _grown_mask(person, mask, outline, dilation)
    if person.points is not None and len(person.points):
        column, row = np.floor(np.asarray(person.points, np.float64)).astype(int).T
        seen = (column >= 0) & (column < region.shape[1]) & (row >= 0) & (row < region.shape[0])
        if seen.any() and np.mean(region[row[seen], column[seen]]) < MIN_COVERED:
            raise ReleaseError(
                "a person with keypoints outside the mask, which cannot be complete; "
                'the region "auto" hides the box, too'
            )
    return region


def other_region(
    other: Region, size: tuple[int, int], *, margin: float, dilation: float
) -> Bool[np.ndarray, "H W"]:
    """Return the pixels to hide for a box or a mask alone; arguments as for `person_region`.

    Raises:
        ReleaseError: the box is outside the photograph, or the mask has another size or is empty.
    """
    if _is_box(other):
        x0, y0, x1, y1 = (float(value) for value in other)
        if x0 >= size[0] or y0 >= size[1] or x1 < 0 or y1 < 0:
            raise ReleaseError(
                f"a box to hide, {(x0, y0, x1, y1)}, is not in the picture of {size} pixels: "
                "is it of another picture, or of another size?"
            )
        return hide_box((x0, y0, x1, y1), size, margin)
    mask = load_mask(other, size, empty=False)
    return grow(mask, max(MIN_GROWTH, dilation * longer_side(box_of(mask))))


def _is_box(region: Region) -> TypeGuard[Sequence[float]]:
    if isinstance(region, np.ndarray):
        return region.dtype != np.bool_ and region.shape == (4,)
    return isinstance(region, (tuple, list)) and len(region) == 4


def hide_box(box: Box, size: tuple[int, int], margin: float) -> Bool[np.ndarray, "H W"]:
    """Return the pixels of a box that has grown by a share of its longer side and to the next whole steps.

    Steps are powers of two [pixels], so that the region reveals the sides of the box only to a step.
    """
    side = longer_side(box)
    step = 2.0 ** np.ceil(np.log2(max(side / STEPS, 1)))
    by = max(MIN_GROWTH, margin * side)
    low = [np.floor((value - by) / step) * step for value in box[:2]]
    high = [np.ceil((value + by) / step) * step for value in box[2:]]
    return fill_box((low[0], low[1], high[0], high[1]), size, 0)


def fill_box(box: Box, size: tuple[int, int], margin: float) -> Bool[np.ndarray, "H W"]:
    """Return the pixels that a box touches after growing by a margin [pixels] on each side.

    Raises:
        ReleaseError: the corners are not finite, or the second is left of or above the first.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 <= x1 and y0 <= y1):
        raise ReleaseError(f"box: expected corners x0 <= x1, y0 <= y1 [pixels], got {tuple(box)}")
    inside = np.zeros((size[1], size[0]), bool)
    left, top = (int(np.floor(max(low - margin, 0))) for low in (x0, y0))
    right, bottom = (int(np.ceil(max(high + margin, 0))) for high in (x1, y1))
    inside[top:bottom, left:right] = True
    return inside


def grow(region: Bool[np.ndarray, "H W"], radius: float) -> Bool[np.ndarray, "H W"]:
    """Return all pixels within a distance [pixels] of a region, centre to centre."""
    if not region.any():
        return region
    near: Float[np.ndarray, "H W"] = ndimage.distance_transform_edt(~region)  # pyright: ignore[reportAssignmentType]
    return near <= radius


def cover_blocks(
    region: Bool[np.ndarray, "H W"], blocks: Int[np.ndarray, "H W"] | None
) -> Bool[np.ndarray, "H W"]:
    """Grow a region to whole blocks of a JPEG and one pixel more.

    Every pixel of a block depends on every other through its quantised cosine transform, and decoders
    interpolate colour across the border of a block.
    """
    if blocks is None or not region.any():
        return region
    touched = np.zeros(int(blocks.max()) + 1, bool)
    touched[blocks[region]] = True
    return ndimage.binary_dilation(touched[blocks], np.ones((3, 3), bool))


def cover_traces(region: Bool[np.ndarray, "H W"], pixels: Pixels) -> Bool[np.ndarray, "H W"]:
    """Grow a region over all pixels that may hold traces of it.

    Whatever the format, the picture may have been a JPEG before, which spreads traces of each pixel over a
    block of up to 16 pixels, and one pixel more.
    """
    covered = ndimage.maximum_filter(region.astype(np.uint8), 2 * TRACE + 1, mode="constant") > 0
    for _ in range(1 + pixels.rings):
        region = cover_blocks(region, pixels.blocks)
    return covered | region


def add_stored(region: Bool[np.ndarray, "H W"], turn: Image.Transpose | None) -> Bool[np.ndarray, "H W"]:
    """Add the same region as a place in the picture as it is stored."""
    if turn is None:
        return region
    return region | (np.asarray(Image.fromarray(region.astype(np.uint8)).transpose(turn)) > 0)


def box_of(mask: Bool[np.ndarray, "H W"]) -> Box:
    """Return the box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def longer_side(box: Box) -> float:
    """Return the longer side of a box [pixels]."""
    return max(box[2] - box[0], box[3] - box[1])
