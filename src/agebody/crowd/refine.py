"""Joint refinement of the people of an image: depth order, ground and overlaps, at the same pixels."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age.values import TALLEST
from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import (
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_dtype,
    expect_integers,
    expect_numbers,
    expect_values,
    flatten,
    read_positive,
)
from agebody.crowd.height_prior import HeightPrior, is_stature
from agebody.crowd.scene import MOVES, TILTS, Deviations, Scene, move
from agebody.engine.batched import own_precision
from agebody.engine.trees import unflatten
from agebody.mesh.closest import order_faces
from agebody.mesh.search import check_mesh
from agebody.optim.least_squares import Solution, minimize

RELEASE = 4.5
"""Cost of releasing a person from the ground, and of a second level: three standard deviations."""
NEGLIGIBLE = 1e-6
"""Cost of an image in which nobody has to move: less than rounding, it cannot be reduced further."""
RESOLVED = 0.01
"""Depth of penetration that counts as resolved [m]."""
SAME_PLACE = 0.05
"""Mean distance of the same vertices of two people below which they are in one place [m]. No vertex is deep
inside then, but bodies that are not the same one have more between them, also newborns."""
GAPS = (0.1, 0.2, 0.3, 0.45)
"""Changes of the distance in depth of two people that are tried where they penetrate each other [m]."""


class Refined(NamedTuple):
    """Refined places of people. `apply` moves their points."""

    root: Float[Tensor, "*images P 3"]
    """Root of each person before [m]."""
    new_root: Float[Tensor, "*images P 3"]
    """Root of each person after [m]."""
    scale: Float[Tensor, "*images P"]
    """Of each person about the root; 1 if sizes were not free."""
    normal: Float[Tensor, "*images 3"]
    """Of the ground, away from it; the up direction without feet."""
    offset: Float[Tensor, "*images"]
    """Height of the ground along its normal [m]; 0 without feet."""
    step: Float[Tensor, "*images"]
    """Height of the second level above the ground [m]; 0 if there is one level."""
    level: Int[Tensor, "*images P"]
    """0 for people on the ground, 1 for those on its second level, -1 for those released from it."""
    penetration: Float[Tensor, "*images P P"] | None
    """Remaining depth of the deepest vertex of person i in person j [m]; None without vertices."""
    terms: dict[str, Float[Tensor, "*images"]]
    """Final cost of each term."""
    cost: Float[Tensor, "*images"]
    converged: Bool[Tensor, "*images"]
    """Also false where penetrations deeper than ``RESOLVED``, a centimetre, remain, or people in one place,
    such as one who was detected twice."""
    iterations: Int[Tensor, "*images"]
    stop: Int[Tensor, "*images"]
    """An `agebody.optim.least_squares.Stop` per image."""

    @property
    def held(self) -> Bool[Tensor, "*images P"]:
        """Whether each person is constrained to the ground."""
        return self.level >= 0

    def apply(self, points: Float[Tensor, "*images P N 3"]) -> Float[Tensor, "*images P N 3"]:
        """Move points of each person, such as vertices [m]."""
        return move(points, self.root, self.new_root, self.scale)


def refine_crowd(
    points: Float[Tensor, "*images P K 3"],
    camera: Camera,
    root: Float[Tensor, "*images P 3"],
    *,
    weights: Weights = None,
    pixels: Float[Tensor, "*images P K 2"] | None = None,
    pixel_weights: Float[Tensor, "*images P K"] | None = None,
    layer: Int[Tensor, "*images P"] | None = None,
    feet: Float[Tensor, "*images P S 3"] | None = None,
    up: tuple[float, float, float] = (0.0, -1.0, 0.0),
    height: Float[Tensor, "*images P"] | None = None,
    prior: HeightPrior | None = None,
    vertices: Float[Tensor, "*images P V 3"] | None = None,
    faces: Int[Tensor, "F 3"] | None = None,
    deviations: Deviations | None = None,
    max_iterations: int = 50,
) -> Refined:
    """Move the people of each image along the rays of their roots and a little sideways.

    The terms depend on what is given:

    - ``pixels``: keypoints project to ``pixels``, or to where they were (always);
    - ``depth``: people stay at their depth (always);
    - ``order`` (``layer``): people of a nearer layer are ``LAYER_MARGIN`` nearer, people of one layer at most
      that far apart in depth;
    - ``ground`` (``feet``): the lowest points of people lie on one plane, which is a variable, or on two
      levels with the same normal. People whose ground term would exceed three standard deviations, such as
      those who jump or sit, are released; see ``held`` and ``level`` of the result;
    - ``height`` (``height``, ``prior``): sizes become variables and follow their prior. Size and depth
      together change no pixel;
    - ``overlap`` (``vertices``, ``faces``): people do not penetrate one another.

    All images are solved in one batch, each until it has converged. Overlaps are searched on the meshes at
    every evaluation, which takes most of the time. Where people still penetrate one another, both orders in
    depth are tried, and the cheaper solution is kept. The cost is never above that of the start. Poses do not
    change, and all terms are soft, so some overlap may remain: see ``penetration`` of the result.

    Args:
        points: keypoints, in camera coordinates [m].
        camera: intrinsics; its batch broadcasts to the images.
        root: the point about which a person is scaled, such as the pelvis [m].
        weights: broadcast to the people; people of weight 0 are ignored, even NaN.
        pixels: observed keypoints; the projections of ``points`` if None.
        pixel_weights: confidences of the keypoints.
        layer: depth layers, smaller is nearer; negative if unknown.
        feet: points on which a person may stand, such as those of the soles, or all vertices [m].
        up: approximate direction away from the ground; of any length above 0.
        height: stature in the rest pose [m].
        prior: of statures.
        vertices: meshes, in camera coordinates [m].
        faces: counter-clockwise from outside.
        deviations: standard deviations of the terms; the default ones if None.
        max_iterations: per image and solution.
    """
    expect_camera(camera, posed=False, of_fit=True)
    points = expect("points", points, None, None, 3)
    images, keypoints = points.shape[:-3], points.shape[-2]
    given = {
        "root": (root, (3,)),
        "height": (height, ()),
        "layer": (layer, ()),
        "feet": (feet, (None, 3)),
        "pixels": (pixels, (keypoints, 2)),
        "pixel_weights": (pixel_weights, (keypoints,)),
        "vertices": (vertices, (None, 3)),
    }
    for name, (tensor, entry) in given.items():
        if tensor is None:
            continue
        if name == "layer":
            expect_integers(name, tensor)
        else:
            expect_dtype(name, expect(name, tensor, *entry), points, "that of points")
        if tensor.shape[: tensor.dim() - len(entry)] != points.shape[:-2]:
            shape = ", ".join(map(str, (*points.shape[:-2], *("any" if n is None else n for n in entry))))
            raise ValueError(f"{name}: expected shape ({shape}), got {tuple(tensor.shape)}")
    for name, value, kind in (("prior", prior, HeightPrior), ("deviations", deviations, Deviations)):
        if not isinstance(value, kind | None):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    if (height is None) != (prior is None):
        raise ValueError("height, prior: expected both or neither")
    if (vertices is None) != (faces is None):
        raise ValueError("vertices, faces: expected both or neither")
    direction = expect_numbers("up", up, points)
    if direction.shape != (3,) or not direction.isfinite().all() or not direction.any():
        raise ValueError(f"up: expected a direction (x, y, z) of length above 0, got {up}")
    weights = expand_weights(weights, points.shape[:-2])
    if feet is not None and not feet.shape[-2]:
        raise ValueError(f"feet: expected at least one point of each person, got {tuple(feet.shape)}")
    sds = deviations or Deviations()
    for name, sd in sds._asdict().items():
        read_positive(f"deviations.{name}", sd, "a standard deviation", finite=False)
    share = torch.ones_like(points[..., 0, 0]) if weights is None else weights.to(points.dtype)

    def flat(tensor: Tensor) -> Tensor:
        """Return (count, P, ...), zero for people of weight 0."""
        masked = apply_mask(tensor.detach(), share, tensor.dim() - share.dim())
        return flatten(masked, images, masked.dim() - len(images))

    start, origin, there = flat(points), flat(root), flat(share)
    lens = camera.map(lambda part: part.detach().expand(*images, -1).reshape(len(start), part.shape[-1]))
    seen = lens.project(start.flatten(1, 2)).pixels.unflatten(1, start.shape[1:3])
    confidence = there[..., None].expand(seen.shape[:-1])
    if pixel_weights is not None:
        confidence = confidence * flat(pixel_weights)
    if pixels is not None:
        seen = torch.where((confidence != 0)[..., None], flat(pixels), seen)
    scene = Scene(
        points=start,
        root=origin,
        share=there,
        seen=apply_mask(seen, confidence, 1),
        confidence=confidence,
        camera=lens,
        layer=None if layer is None else torch.where(there != 0, flat(layer), -1),
        feet=None if feet is None else flat(feet),
        up=direction / direction.norm(),
        height=None if height is None else flat(height),
        prior=None if prior is None else HeightPrior(*map(flat, prior)),
        vertices=None if vertices is None else flat(vertices),
        faces=None if vertices is None or faces is None else order_faces(*check_mesh(flat(vertices), faces)),
        deviations=sds,
        level=torch.full_like(there, -1, dtype=torch.long),
    )
    used, absent = confidence != 0, there == 0
    ahead, weight = "finite places in front of the camera", "finite numbers of 0 or more"
    low, high = (torch.where(used[..., None], start, end) for end in (torch.inf, -torch.inf))
    metres = (high.amax(2) - low.amin(2)).amax(-1) <= TALLEST if start.shape[2] else ~absent
    checks = {
        "weights": ((there >= 0) & there.isfinite(), weight),
        "pixel_weights": ((confidence >= 0) & confidence.isfinite(), weight),
        "root": (absent | (origin.isfinite().all(-1) & (origin[..., 2] > 0)), ahead),
        "points": (
            start.isfinite().all(-1) & (~used | (start[..., 2] > 0)) & (absent | metres)[..., None],
            f"{ahead}, of people up to {TALLEST:g} m tall, in metres",
        ),
        "pixels": (seen.isfinite().all(-1) | ~used, "finite numbers where weights are not 0"),
    }
    for name, tensor in (("feet", scene.feet), ("vertices", scene.vertices)):
        if tensor is not None:
            checks[name] = (tensor.isfinite(), "finite numbers of all people of non-zero weight")
    if scene.height is not None and scene.prior is not None:
        statures, sd = f"statures in metres, above 0 and up to {TALLEST:g}", scene.prior.sd
        checks["height"] = (absent | is_stature(scene.height), statures)
        checks["prior__mean"] = (absent | is_stature(scene.prior.mean), statures)
        checks["prior__sd"] = (absent | ((sd > 0) & sd.isfinite()), "finite lengths above 0")
    expect_values(**checks)

    with own_precision(points.device):
        scene, x = _choose_levels(scene, max_iterations)
        x, ends = _solve(scene, x, max_iterations)
        place = scene.place(x, torch.arange(len(x), device=x.device))
        remaining = None if scene.vertices is None else scene.remaining(x)
        terms = scene.costs(x)
    if remaining is not None and start.shape[1]:
        ends["converged"] &= _unresolved(scene, x).amax((1, 2)) <= RESOLVED

    found = Refined(
        root=flatten(root, images, 2),
        new_root=torch.where(absent[..., None], flatten(root, images, 2), place.new_root),
        scale=place.scale,
        normal=place.normal,
        offset=place.offset,
        step=place.step,
        level=scene.level,
        penetration=remaining,
        terms=terms,
        cost=torch.stack(list(terms.values())).sum(0),
        **ends,
    )
    return unflatten(found, images)


def _solve(scene: Scene, x: Tensor, max_iterations: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Minimise, and try both orders in depth of people who penetrate each other."""
    rows = torch.arange(len(x), device=x.device)
    unmoved = x.clone()
    unmoved[:, :-TILTS] = 0
    given, moved = (scene.quadratize(start, rows, images=rows).cost for start in (unmoved, x))
    found = _minimize(scene, torch.where((given < moved)[:, None], unmoved, x), rows, max_iterations)
    x, cost = found.x, found.cost
    ends = {"converged": found.converged, "iterations": found.iterations, "stop": found.stop}
    if scene.vertices is None or not len(x) or scene.vertices.shape[1] < 2:
        return x, ends
    depths = _unresolved(scene, x)
    stuck = (depths.amax((1, 2)) > RESOLVED).nonzero()[:, 0]
    if len(stuck):
        starts = torch.stack([_separated(scene, x[row], row, depths[row]) for row in stuck])
        again = _minimize(scene, starts, stuck, max_iterations)
        ends["iterations"][stuck] += again.iterations
        better = again.cost < cost[stuck]
        rows = stuck[better]
        x[rows] = again.x[better]
        ends["converged"][rows], ends["stop"][rows] = again.converged[better], again.stop[better]
    return x, ends


def _minimize(scene: Scene, x: Tensor, rows: Tensor, max_iterations: int) -> Solution:
    """Minimise the cost of the images with the indices ``rows`` from x."""
    free = scene.free()[rows]
    lower, upper = torch.where(free, -torch.inf, x), torch.where(free, torch.inf, x)
    quadratize = functools.partial(scene.quadratize, images=rows)
    found = minimize(quadratize, x, lower=lower, upper=upper, max_iterations=max_iterations)
    return found._replace(converged=found.converged | (found.cost <= NEGLIGIBLE))


def _unresolved(scene: Scene, x: Tensor) -> Float[Tensor, "B P P"]:
    """Return the depths of penetration, infinite where two people are in one place."""
    assert scene.vertices is not None
    people = scene.share.shape[1]
    vertices = scene.place(x, torch.arange(len(x), device=x.device)).apply(scene.vertices)
    depths = scene.remaining(x)
    for i, j in itertools.combinations(range(people), 2):
        same = (vertices[:, i] - vertices[:, j]).norm(dim=-1).mean(-1) < SAME_PLACE
        same &= (scene.share[:, i] != 0) & (scene.share[:, j] != 0)
        depths[same, i, j] = torch.inf
    return depths


def _separated(scene: Scene, x: Tensor, row: Tensor, depths: Float[Tensor, "P P"]) -> Tensor:
    """Return the variables of an image with its penetrating pairs moved apart in depth, the deepest first.

    Of both orders and some distances, with and without sizes that keep the image, the cheapest is chosen.
    """
    depths = torch.maximum(depths, depths.mT).triu()
    first, second = (depths > RESOLVED).nonzero(as_tuple=True)
    for pair in depths[first, second].argsort(descending=True).tolist():
        i, j = int(first[pair]), int(second[pair])
        gaps = x.new_tensor([sign * gap for gap in GAPS for sign in (-1, 1)])
        tried = x.repeat(len(gaps), 1)
        for person, share in ((i, -0.5), (j, 0.5)):
            depth = scene.root[row, person, 2] * tried[:, MOVES * person].exp()
            tried[:, MOVES * person] += torch.log((1 + share * gaps / depth).clamp(min=0.5))
        if scene.height is not None:
            scaled = tried.clone()
            for person in (i, j):
                scaled[:, MOVES * person + 1] += tried[:, MOVES * person] - x[MOVES * person]
            tried = torch.cat((tried, scaled))
        images = row.expand(len(tried))
        costs = scene.quadratize(tried, torch.arange(len(tried), device=x.device), images=images).cost
        x = tried[costs.argmin()]
    return x


def _choose_levels(scene: Scene, max_iterations: int) -> tuple[Scene, Tensor]:
    """Choose the people on the ground and the number of its levels; return starts, too.

    Compares the costs of no ground, one level and two, without overlaps. Each released person costs
    `RELEASE`, and so does the second level. People are released one by one, in the order of the cost of
    their ground term.
    """
    images, people = scene.share.shape
    x = scene.points.new_zeros(images, MOVES * people + TILTS)
    if scene.feet is None or not images or not people:
        return scene, x
    alone = scene._replace(vertices=None)
    present, rows = scene.share != 0, torch.arange(images, device=x.device)
    lowest = torch.where(present, (scene.feet @ scene.up).amin(-1), torch.nan)
    free = _minimize(alone, x, rows, max_iterations)
    place = alone.place(free.x, rows)
    heights = torch.where(present, (place.apply(scene.feet) @ scene.up).amin(-1), torch.nan)
    best_x, best_level = free.x, scene.level
    best = free.cost + RELEASE * present.sum(1)
    own_free = alone.own_costs(free.x)
    for level in (torch.where(present, 0, -1), _two_levels(heights)):
        two = (level == 1).any(1)
        start = x.clone()
        for _ in range(people):
            ground = torch.where(level == 0, lowest, torch.nan).nanmedian(-1).values
            upper = torch.where(level == 1, lowest, torch.nan).nanmedian(-1).values
            start[:, -2] = ground.nan_to_num(0.0)
            start[:, -1] = torch.where(two, upper - ground, 0.0).nan_to_num(0.0)
            held = alone._replace(level=level)
            found = _minimize(held, start, rows, max_iterations)
            total = found.cost + RELEASE * ((present & (level < 0)).sum(1) + two)
            better = total < best
            best = torch.where(better, total, best)
            best_x = torch.where(better[:, None], found.x, best_x)
            best_level = torch.where(better[:, None], level, best_level)
            excess = torch.where(level >= 0, held.own_costs(found.x) - own_free, -torch.inf)
            most, who = excess.max(1)
            if not (most > RELEASE).any():
                break
            level = level.clone()
            level[rows[most > RELEASE], who[most > RELEASE]] = -1
            level = torch.where((level >= 0).sum(1, keepdim=True) > 1, level, -1)
    return scene._replace(level=best_level), best_x


def _two_levels(heights: Float[Tensor, "b P"]) -> Int[Tensor, "b P"]:
    """Return the best division of heights, NaN for absent people, into two of two people or more."""
    levels = torch.full_like(heights, -1, dtype=torch.long)
    for level, row in zip(levels, heights, strict=True):
        order = row.argsort()[: int((~row.isnan()).sum())]
        if len(order) < 4:
            continue
        ordered = row[order]
        spread = [
            float(
                ordered[:cut].var(correction=0) * cut + ordered[cut:].var(correction=0) * (len(order) - cut)
            )
            for cut in range(2, len(order) - 1)
        ]
        cut = 2 + spread.index(min(spread))
        level[order[:cut]], level[order[cut:]] = 0, 1
    return levels
