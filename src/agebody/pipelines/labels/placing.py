"""Place the people of one image in one space by a depth map (DTO)."""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age import AgeCurve, parse_ages
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.crowd import HeightPrior, is_far, mask_depths, place_people, refine_crowd, rescale, rest_height
from agebody.crowd.depths import MaskDepths
from agebody.crowd.height_prior import SEXES
from agebody.crowd.placement import DISPARITY_MIN_SLOPE, Placement
from agebody.crowd.refine import Refined
from agebody.crowd.rescaling import Rescaled
from agebody.draw import render
from agebody.files import read_flag
from agebody.losses import part_vertices
from agebody.parameters import BodyParameters
from agebody.pipelines.labels.fitting import replace_bodies
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels

MIN_SHARE = 1 / 400
"""Share of the image that a person must cover to be placed (DTO's code)."""
CHILD_YEARS = 15.0
"""Age below which DTO has classes of children; the mean of others moves half-way to the fitted stature."""
OFFSET_SD = 0.1
"""Standard deviation of the age offset of a fit, where no age is given."""
MAX_STATURE = 2.1
"""Largest plausible stature [m], as in `place_people`."""
MAX_METRES = 1000.0
"""Maps in metres with a larger median over a person are refused."""
FAR_DISPARITY = 0.02
"""Reciprocal of Depth Anything V2's relative disparity beyond which a person is far (DTO)."""


class PlacedLabels(NamedTuple):
    """The P people of one image after placing."""

    labels: Labels
    """With the new bodies and places, and new flags."""
    placement: Placement
    written: Rescaled
    depths: MaskDepths
    prior: HeightPrior
    height: Float[Tensor, " P"]
    """Stature before [m]."""
    far: Bool[Tensor, " P"]
    refined: Refined | None
    """None if people were not refined."""


def place_labels(
    body: BodyModel,
    labels: Labels,
    depth: Float[np.ndarray, "H W"],
    *,
    masks: Bool[np.ndarray, "P H W"] | None = None,
    years: Float[np.ndarray, " P"] | None = None,
    sex: Int[np.ndarray, " P"] | None = None,
    disparity: bool = False,
    metric: bool = False,
    refine: bool = False,
) -> PlacedLabels:
    """Place the people of one image by its depth map and their statures.

    A map in metres places each person alone, at the depth that it shows. Any other map needs two people.
    Poses stay as they are. An unknown age is that of the age offset of the fit, with a standard deviation of
    ``OFFSET_SD``.

    Args:
        body: the layer that the labels were made with.
        labels: all people of one image.
        depth: numbers that grow away from the camera, of the whole image on a grid of any size; NaN, infinite
            or negative where unknown.
        masks: pixels of each person; by default those in which the body is nearest.
        years: age per person, NaN where unknown.
        sex: 0 neutral or unknown, 1 female, 2 male.
        disparity: whether the map is the reciprocal of Depth Anything V2's relative disparity.
        metric: whether the map is in metres; people who would be taller than 2.1 m are not placed.
        refine: then place people on the ground and reduce overlaps (`refine_crowd`).

    Raises:
        ImportError: embreex is missing; install ``agebody[render]``.
    """
    _check(body, labels, depth, masks, years, sex)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(body.device, body.dtype)

    parameters = labels.parameters(body)
    camera = labels.camera().to(body.device, body.dtype)
    with torch.no_grad():
        vertices = body(parameters).vertices
        rendered, covered = _rendered(body, vertices, camera, labels.image_sizes[0], depth.shape)
        shown = torch.from_numpy(covered if masks is None else masks).to(body.device)
        seen = mask_depths(tensor(depth), tensor(rendered), shown)
        weights = (seen.pixels >= MIN_SHARE * depth.size).to(body.dtype)
        height = rest_height(body, parameters.betas, parameters.age_offset)
        prior, child = _prior(
            body,
            parameters,
            height,
            torch.full_like(height, torch.nan) if years is None else tensor(years),
            torch.zeros_like(height, dtype=torch.long) if sex is None else tensor(sex).long(),
        )
        z = torch.where(weights > 0, seen.rendered_depth, tensor(labels.depth))
        width, tall = labels.image_sizes[0].tolist()
        far = is_far(z, camera.focal[:, 1], (width, tall))
        if read_flag("disparity", disparity):
            far |= seen.depth > FAR_DISPARITY
        if read_flag("metric", metric):
            placement = _at_depth(seen.depth, z, height, prior, weights > 0)
        else:
            placement = place_people(
                seen.depth,
                z,
                height,
                prior,
                weights=weights,
                far=far,
                spread=seen.spread,
                body_slope=seen.slope,
                body_correlation=seen.correlation,
                low_depth=seen.low_depth,
                low_rendered_depth=torch.where(weights > 0, seen.low_rendered_depth, z),
                min_slope=DISPARITY_MIN_SLOPE if disparity else 0.0,
            )
        written = rescale(body, parameters, placement.scale, camera, child=child)
        refined = None
        if read_flag("refine", refine) and len(labels) > 1:
            refined = _refined(body, written.parameters, camera, prior, written.height)
            written = rescale(body, written.parameters, refined.scale, camera, root=refined.new_root)
        changed = replace_bodies(body, labels, written.parameters, camera)
    return PlacedLabels(flag_labels(changed), placement, written, seen, prior, height, far, refined)


def _at_depth(
    depth: Tensor, rendered_depth: Tensor, height: Tensor, prior: HeightPrior, present: Tensor
) -> Placement:
    """Return people at the depths of a map in metres: the line of slope 1 through 0."""
    if present.any() and (median := float(depth[present].median())) > MAX_METRES:
        raise ValueError(f"depth: expected metres, got {median:g} on people; divide millimetres by 1000")
    scale = depth / rendered_depth
    placed = present & (scale > 0) & (height * scale <= MAX_STATURE)
    scale = torch.where(placed, scale, 1)
    deviations = ((height * scale - prior.mean) / prior.sd).abs()[placed]
    on_line = torch.stack((placed.sum(), torch.zeros_like(placed.sum())))
    return Placement(
        depth=rendered_depth * scale,
        scale=scale,
        height=height * scale,
        placed=placed,
        slope=(on_line > 0).to(depth),
        shift=torch.zeros_like(on_line).to(depth),
        bounded=torch.zeros_like(on_line, dtype=torch.bool),
        people=on_line,
        deviation=deviations.mean(),
    )


def _check(
    body: BodyModel,
    labels: Labels,
    depth: np.ndarray,
    masks: np.ndarray | None,
    years: np.ndarray | None,
    sex: np.ndarray | None,
) -> None:
    count = len(labels)
    if body.asset.metadata.name != labels.body:
        expected = f"{labels.body!r}, with which the labels were made"
        raise ValueError(f"body: expected {expected}, got {body.asset.metadata.name!r}")
    if len(np.unique(labels.image_ids)) != 1:
        raise ValueError(f"labels: expected people of one image, got {len(np.unique(labels.image_ids))}")
    if depth.ndim != 2 or not depth.size:
        raise ValueError(f"depth: expected shape (H, W), got {depth.shape}")
    if masks is not None and (masks.shape != (count, *depth.shape) or masks.dtype != bool):
        expected = (count, *depth.shape)
        raise ValueError(f"masks: expected booleans of shape {expected}, got {masks.dtype} {masks.shape}")
    for name, values in (("years", years), ("sex", sex)):
        if values is not None and values.shape != (count,):
            raise ValueError(f"{name}: expected shape ({count},), got {values.shape}")
    parse_ages(years=years)
    if sex is not None and not np.isin(sex, range(len(SEXES))).all():
        raise ValueError(f"sex: expected indices into {SEXES}")


def _prior(
    body: BodyModel, parameters: BodyParameters, height: Tensor, years: Tensor, sex: Tensor
) -> tuple[HeightPrior, Tensor]:
    """Return the prior of everyone's stature, and who is a child."""
    guess, doubt = torch.full_like(years, 19.0), torch.zeros_like(years)
    if body.age_anchors:
        curve = AgeCurve.from_asset(body.asset)
        guess = curve.offset_to_years(parameters.age_offset)
        older, younger = (curve.offset_to_years(parameters.age_offset + way * OFFSET_SD) for way in (-1, 1))
        doubt = (older - younger) / 2
    unknown = years.isnan()
    years = torch.where(unknown, guess, years)
    child = years < CHILD_YEARS
    prior = HeightPrior.of_age(years, sex=sex, years_sd=torch.where(unknown, doubt, 0))
    return prior.towards(height, share=torch.where(child, 0.0, 0.5)), child


def _rendered(
    body: BodyModel, vertices: Tensor, camera: Camera, size: np.ndarray, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "P H W"], Bool[np.ndarray, "P H W"]]:
    """Return the depth of each body alone, and the pixels in which it is nearest."""
    height, width = shape
    stretch = camera.focal.new_tensor((width / float(size[0]), height / float(size[1])))
    depths = []
    for i, person in enumerate(vertices):
        lens = camera.map(itemgetter(i)).resized(stretch)
        picture = render(person, body.faces, lens, size=(width, height), background=None, light_rays=0)
        depths.append(picture.depth.astype(np.float64))
    each = np.stack(depths)
    nearest = each.argmin(0) == np.arange(len(each))[:, None, None]
    return each, nearest & np.isfinite(each)


def _refined(
    body: BodyModel, parameters: BodyParameters, camera: Camera, prior: HeightPrior, height: Tensor
) -> Refined:
    """Place people on the ground and reduce overlaps, with free sizes."""
    posed = body(parameters)
    points = body.keypoints("smpl24", parameters)
    soles = part_vertices(body.asset, "feet", facing=(0, -1, 0))
    return refine_crowd(
        points,
        camera.map(itemgetter(0)),
        posed.joints[:, 0],
        feet=posed.vertices[:, soles],
        pixel_weights=(points[..., 2] > 0).to(points),  # of people on both sides of the camera
        height=height,
        prior=prior,
        vertices=posed.vertices,
        faces=body.faces,
    )
