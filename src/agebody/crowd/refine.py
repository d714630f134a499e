"""Joint refinement of the people of an image: depth order, one ground, no overlaps, the same image."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.cameras import Camera
from agebody.checks import Weights, apply_mask, expand_weights, expect, expect_values
from agebody.crowd.height_prior import HeightPrior
from agebody.mesh.penetrations import find_penetrations, offsets
from agebody.optim.least_squares import Quadratic, minimize
from agebody.optim.terms import project

MOVES = 4
"""Variables per person: logarithms of depth and of size, and two sideways shifts (tangents of angles)."""
TILTS = 3
"""Variables of the ground: two angles and its offset."""
LAYER_MARGIN = 0.3
"""Smallest distance in depth between two layers, and largest within a layer [m]."""
SEARCHES = 8
"""Largest number of searches for overlaps per image."""
SETTLED = 1e-3
"""Overlaps are not searched again in images where no variable changed by more: some millimetres."""


class Deviations(NamedTuple):
    """Standard deviation of each term; half the sum of squares of error / deviation is minimised."""

    pixels: float = 3.0
    """Of a keypoint from its place in the image [pixels]."""
    depth: float = 0.05
    """Of the depth of a person, relative to the given depth."""
    order: float = 0.1
    """Of the order in depth of two people [m]."""
    ground: float = 0.03
    """Of the lowest point of a person from the ground [m]."""
    ground_reach: float = 0.3
    """Scale of the robust cost of the ground: people who jump or sit are farther away and are ignored [m]."""
    tilt: float = 0.1
    """Of the normal of the ground from the up direction [rad]."""
    overlap: float = 0.002
    """Of the penetration depth, root mean square over all vertices of a person [m]."""


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
    terms: dict[str, Float[Tensor, "*images"]]
    """Final cost of each term."""
    cost: Float[Tensor, "*images"]
    converged: Bool[Tensor, "*images"]
    iterations: Int[Tensor, "*images"]
    stop: Int[Tensor, "*images"]
    """An `agebody.optim.least_squares.Stop` per image."""

    def apply(self, points: Float[Tensor, "*images P N 3"]) -> Float[Tensor, "*images P N 3"]:
        """Move points of each person, such as vertices [m]."""
        return _moved(points, self.root, self.new_root, self.scale)


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
    - ``ground`` (``feet``): the lowest points of all people lie on one plane, which is a variable;
    - ``height`` (``height``, ``prior``): sizes become variables and follow their prior. Size and depth
      together change no pixel;
    - ``overlap`` (``vertices``, ``faces``): nobody penetrates anybody.

    All images are solved in one batch, each until it has converged. Overlaps are searched on the meshes,
    which takes most of the time; people are then pushed along the directions found, and images in which
    anybody moved are searched again. Poses do not change.

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
        max_iterations: per image between two searches. An image in which people still move after the last
            search has not converged.
    """
    expect("points", points, None, None, 3)
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
        if name != "layer":
            expect(name, tensor, *entry)
        if tensor.shape[: tensor.dim() - len(entry)] != points.shape[:-2]:
            shape = ", ".join(map(str, (*points.shape[:-2], *("any" if n is None else n for n in entry))))
            raise ValueError(f"{name}: expected shape ({shape}), got {tuple(tensor.shape)}")
    if (height is None) != (prior is None):
        raise ValueError("height, prior: expected both or neither")
    if (vertices is None) != (faces is None):
        raise ValueError("vertices, faces: expected both or neither")
    if camera.rotation is not None or camera.translation is not None:
        raise ValueError("camera: expected no rotation and translation; give points in camera coordinates")
    direction = points.new_tensor(up)
    if not direction.isfinite().all() or not direction.any():
        raise ValueError(f"up: expected a direction of length above 0, got {up}")
    weights = expand_weights(weights, points.shape[:-2])
    share = torch.ones_like(points[..., 0, 0]) if weights is None else weights.to(points.dtype)

    def flat(tensor: Tensor) -> Tensor:
        """Return (count, P, ...), zero for people of weight 0."""
        masked = apply_mask(tensor.detach(), share, tensor.dim() - share.dim())
        return masked.reshape(images.numel(), *masked.shape[len(images) :])

    start, origin, there = flat(points), flat(root), flat(share)
    lens = camera.map(lambda part: part.detach().expand(*images, -1).reshape(len(start), part.shape[-1]))
    seen = lens.project(start.flatten(1, 2)).pixels.unflatten(1, start.shape[1:3])
    confidence = there[..., None].expand(seen.shape[:-1])
    if pixel_weights is not None:
        confidence = confidence * flat(pixel_weights)
    if pixels is not None:
        seen = torch.where((confidence != 0)[..., None], flat(pixels), seen)
    scene = _Scene(
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
        faces=faces,
        deviations=deviations or Deviations(),
    )
    used, absent = confidence != 0, there == 0
    ahead, weight = "finite places in front of the camera", "finite numbers of 0 or more"
    checks = {
        "weights": ((there >= 0) & there.isfinite(), weight),
        "pixel_weights": ((confidence >= 0) & confidence.isfinite(), weight),
        "root": (absent | (origin.isfinite().all(-1) & (origin[..., 2] > 0)), ahead),
        "points": (start.isfinite().all(-1) & (~used | (start[..., 2] > 0)), ahead),
        "pixels": (seen.isfinite().all(-1) | ~used, "finite numbers where weights are not 0"),
    }
    for name, tensor in (("feet", scene.feet), ("vertices", scene.vertices)):
        if tensor is not None:
            checks[name] = (tensor.isfinite(), "finite numbers of all people of non-zero weight")
    if scene.height is not None and scene.prior is not None:
        lengths = {"height": scene.height, "prior__mean": scene.prior.mean, "prior__sd": scene.prior.sd}
        for name, tensor in lengths.items():
            checks[name] = (absent | ((tensor > 0) & tensor.isfinite()), "finite lengths above 0")
    expect_values(**checks)

    x = points.new_zeros(len(start), MOVES * start.shape[1] + TILTS)
    if scene.feet is not None and start.shape[1]:
        lowest = torch.where(absent, torch.nan, (scene.feet @ scene.up).amin(-1))
        x[:, -1] = lowest.nanmedian(-1).values.nan_to_num(0.0)
    x, ends = _solve(scene, x, max_iterations)
    place = scene.place(x, torch.arange(len(x), device=x.device))

    def unflat(tensor: Tensor) -> Tensor:
        return tensor.reshape((*images, *tensor.shape[1:]))

    terms = {name: unflat(cost) for name, cost in scene.costs(x).items()}
    return Refined(
        root=root,
        new_root=unflat(place.new_root),
        scale=unflat(place.scale),
        normal=unflat(place.normal),
        offset=unflat(place.offset),
        terms=terms,
        cost=torch.stack(list(terms.values())).sum(0),
        **{name: unflat(part) for name, part in ends.items()},
    )


def _solve(scene: _Scene, x: Tensor, max_iterations: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Minimise, and search again for overlaps in images where people have moved, until all have settled."""
    free = scene.free()
    lower, upper = torch.where(free, -torch.inf, x), torch.where(free, torch.inf, x)
    x, rows = x.clone(), torch.arange(len(x), device=x.device)
    ends = {name: torch.zeros_like(rows) for name in ("converged", "iterations", "stop")}
    for _ in range(SEARCHES if scene.vertices is not None else 1):
        contacts = None if scene.vertices is None else scene.search(x[rows], rows)
        found = minimize(
            functools.partial(scene.quadratize, images=rows, contacts=contacts),
            x[rows],
            lower=lower[rows],
            upper=upper[rows],
            max_iterations=max_iterations,
        )
        moving = (found.x - x[rows]).abs().amax(-1) > SETTLED
        x[rows] = found.x
        ends["iterations"][rows] += found.iterations
        ends["converged"][rows], ends["stop"][rows] = found.converged.long(), found.stop
        rows = rows[moving]
        if len(rows) == 0:
            break
    if scene.vertices is not None:
        ends["converged"][rows] = 0
    return x, {**ends, "converged": ends["converged"].bool()}


class _Scene(NamedTuple):
    """All images, (B, P, ...); 0 for people of weight 0."""

    points: Tensor
    root: Tensor
    share: Tensor
    """Weights of the people."""
    seen: Tensor
    confidence: Tensor
    camera: Camera
    layer: Tensor | None
    feet: Tensor | None
    up: Tensor
    height: Tensor | None
    prior: HeightPrior | None
    vertices: Tensor | None
    faces: Tensor | None
    deviations: Deviations

    def free(self) -> Tensor:
        """Return which variables are free."""
        count, people = self.share.shape
        free = torch.ones(count, people, MOVES, dtype=torch.bool, device=self.share.device)
        free[..., 1] = self.height is not None
        free &= (self.share != 0)[..., None]
        ground = torch.full((count, TILTS), self.feet is not None, device=free.device)
        return torch.cat((free.flatten(1), ground), 1)

    def place(self, x: Tensor, rows: Tensor) -> _Place:
        """Return the places of people and ground at x."""
        along, size, *sideways = x[:, :-TILTS].unflatten(1, (-1, MOVES)).unbind(-1)
        root = self.root[rows]
        shift = torch.stack((*sideways, torch.zeros_like(along)), -1) * root[..., 2:]
        new_root, scale = along.exp()[..., None] * (root + shift), size.exp()
        axes = _across(self.up)
        tilted = self.up + x[:, -TILTS:-1] @ axes.mT
        length = tilted.norm(dim=-1, keepdim=True)
        normal = tilted / length
        by_angles = (axes - normal[:, :, None] * (normal @ axes)[:, None]) / length[..., None]
        return _Place(root, new_root, scale, normal, x[:, -1], by_angles)

    def quadratize(self, x: Tensor, rows: Tensor, images: Tensor, contacts: _Contacts | None) -> Quadratic:
        """Return cost, gradient and normal matrix of the images ``images[rows]``."""
        rows = images[rows]
        place = self.place(x, rows)
        residuals, jacobians = zip(*self._terms(x, place, rows).values(), strict=True)
        total = Quadratic.of(torch.cat(residuals, 1), torch.cat(jacobians, 1))
        if contacts is None:
            return total
        overlap = self._overlap(contacts, place, rows)
        return Quadratic(*(a + b for a, b in zip(total, overlap, strict=True)))

    def costs(self, x: Tensor) -> dict[str, Tensor]:
        """Return the cost of each term, after a last search for overlaps."""
        rows = torch.arange(len(x), device=x.device)
        place = self.place(x, rows)
        terms = self._terms(x, place, rows)
        costs = {name: residuals.square().sum(-1) / 2 for name, (residuals, _) in terms.items()}
        if self.vertices is not None:
            costs["overlap"] = self._overlap(self.search(x, rows), place, rows).cost
        return costs

    def _terms(self, x: Tensor, place: _Place, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return residuals (b, M) and Jacobian (b, M, N) of each term."""
        root_share = self.share[rows].sqrt()
        own = x[:, :-TILTS].unflatten(1, (-1, MOVES))
        terms = {"pixels": self._reprojection(place, rows), "depth": self._depth(own, root_share)}
        if self.layer is not None:
            terms["order"] = self._order(self.layer[rows], place, root_share)
        if self.feet is not None:
            terms["ground"] = self._ground(self.feet[rows], place, root_share)
            jacobian = x.new_zeros(len(x), 2, x.shape[1])
            jacobian[:, (0, 1), (-3, -2)] = 1 / self.deviations.tilt
            terms["tilt"] = (x[:, -TILTS:-1] / self.deviations.tilt, jacobian)
        if self.height is not None and self.prior is not None:
            height, sd = self.height[rows] * place.scale, self.prior.sd[rows]
            factor = root_share / torch.where(root_share == 0, 1, sd)
            by_moves = torch.zeros_like(own)
            by_moves[..., 1] = factor * height
            residuals = factor * (height - self.prior.mean[rows])
            terms["height"] = (residuals, _of_people(by_moves[..., None, :]))
        return terms

    def _reprojection(self, place: _Place, rows: Tensor) -> tuple[Tensor, Tensor]:
        points = place.apply(self.points[rows])
        camera = self.camera.map(lambda part: part[rows])
        pixels, by_points = (
            part.unflatten(1, points.shape[1:3]) for part in project(camera, points.flatten(1, 2))
        )
        factor = (self.confidence[rows].sqrt() / self.deviations.pixels)[..., None]
        residuals = factor * (pixels - self.seen[rows])
        by_moves = factor[..., None] * (by_points @ place.by_moves(points))
        return residuals.flatten(1), _of_people(by_moves.flatten(2, 3))

    def _depth(self, own: Tensor, root_share: Tensor) -> tuple[Tensor, Tensor]:
        """Hold people at their depth, and weakly at their sideways place in case they have no pixels."""
        deviations = own.new_tensor((self.deviations.depth, 1.0, 1.0))
        by_moves = torch.eye(MOVES, dtype=own.dtype, device=own.device)[[0, 2, 3]] / deviations[:, None]
        by_moves = root_share[..., None, None] * by_moves
        return (by_moves @ own[..., None]).flatten(1), _of_people(by_moves)

    def _order(self, layer: Tensor, place: _Place, root_share: Tensor) -> tuple[Tensor, Tensor]:
        z = place.new_root[..., 2]
        first, second = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
        apart, layers = z[:, second] - z[:, first], layer[:, second] - layer[:, first]
        sign = torch.where(layers == 0, -apart.sign(), layers.sign().to(z))
        least = LAYER_MARGIN * torch.where(layers == 0, -1, layers.abs())
        missing = least - sign * apart
        active = (layer[:, second] >= 0) & (layer[:, first] >= 0) & (missing > 0)
        factor = torch.where(active, root_share[:, first] * root_share[:, second], 0) / self.deviations.order
        by_moves = z.new_zeros(*apart.shape, z.shape[1], MOVES)
        pair = torch.arange(len(first), device=z.device)
        by_moves[:, pair, first, 0] = factor * sign * z[:, first]
        by_moves[:, pair, second, 0] = -factor * sign * z[:, second]
        return factor * missing, torch.nn.functional.pad(by_moves.flatten(2), (0, TILTS))

    def _ground(self, feet: Tensor, place: _Place, root_share: Tensor) -> tuple[Tensor, Tensor]:
        feet = place.apply(feet)
        heights = (feet * place.normal[:, None, None]).sum(-1) - place.offset[:, None, None]
        height, lowest = heights.min(-1)
        lowest = feet.gather(2, lowest[..., None, None].expand(-1, -1, 1, 3))
        # Geman-McClure's cost is the square of h / sqrt(1 + (h / reach)^2).
        growth = 1 + (height / self.deviations.ground_reach).square()
        slope = root_share * growth**-1.5 / self.deviations.ground
        residuals = root_share * height * growth**-0.5 / self.deviations.ground
        by_moves = (place.normal[:, None, None, :, None] * place.by_moves(lowest)).sum(-2)
        jacobian = _of_people(slope[..., None, None] * by_moves)
        jacobian[..., -TILTS:-1] = slope[..., None] * (lowest @ place.normal_by_angles[:, None])[:, :, 0]
        jacobian[..., -1] = -slope
        return residuals, jacobian

    def _overlap(self, contacts: _Contacts, place: _Place, rows: Tensor) -> Quadratic:
        """Return the cost of penetration depths along fixed directions, without a Jacobian row per vertex."""
        assert self.vertices is not None
        number = torch.full((len(self.share),), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        contacts = _Contacts(*(part[number[contacts.image] >= 0] for part in contacts))
        image, out = number[contacts.image], contacts.out
        points = []
        for person, rest in ((contacts.person, contacts.inside), (contacts.other, contacts.surface)):
            at = image, person
            moved = _moved(rest[:, None], place.root[at], place.new_root[at], place.scale[at])
            points.append((person, moved[:, 0]))
        depth = torch.relu(((points[1][1] - points[0][1]) * out).sum(-1))
        factor = torch.where(depth > 0, 1 / (self.deviations.overlap * self.vertices.shape[2] ** 0.5), 0)
        gradients = []
        for (person, where), sign in zip(points, (-1, 1), strict=True):
            by_moves = (out[..., None] * _by_moves(where, place.new_root[image, person])).sum(-2)
            gradients.append((person, (factor * sign)[:, None] * by_moves))
        batch, people = place.scale.shape
        cost = depth.new_zeros(batch).index_add(0, image, (factor * depth).square() / 2)
        gradient = depth.new_zeros(batch, people, MOVES)
        normal = depth.new_zeros(batch, people, people, MOVES, MOVES)
        for person, row in gradients:
            gradient.index_put_((image, person), (factor * depth)[:, None] * row, accumulate=True)
            for other, column in gradients:
                normal.index_put_((image, person, other), row[:, :, None] * column[:, None], accumulate=True)
        pad = torch.nn.functional.pad
        square = normal.transpose(2, 3).reshape(batch, MOVES * people, MOVES * people)
        return Quadratic(cost, pad(gradient.flatten(1), (0, TILTS)), pad(square, (0, TILTS, 0, TILTS)))

    def search(self, x: Tensor, rows: Tensor) -> _Contacts:
        """Find who penetrates whom, in some of the images."""
        assert self.vertices is not None
        assert self.faces is not None
        place = self.place(x, rows)
        rest = self.vertices[rows]
        vertices = place.apply(rest)
        found = find_penetrations(vertices.float(), self.faces, weights=self.share[rows])
        out = -offsets(vertices, self.faces, found)
        depth = out.norm(dim=-1, keepdim=True)
        surface = vertices[found.image, found.person, found.vertex] + out
        other = found.image, found.other
        surface = (surface - place.new_root[other]) / place.scale[other][:, None] + place.root[other]
        inside = rest[found.image, found.person, found.vertex]
        out = out / torch.where(depth == 0, 1, depth)
        return _Contacts(rows[found.image], found.person, found.other, inside, surface, out)


class _Contacts(NamedTuple):
    """K vertices inside other people and the nearest points (K, 3) of their surfaces, before refinement."""

    image: Tensor
    person: Tensor
    other: Tensor
    inside: Tensor
    surface: Tensor
    out: Tensor
    """Unit vectors from the vertex to the surface at the time of the search."""


class _Place(NamedTuple):
    """Places of people and ground of b images at one x."""

    root: Tensor
    new_root: Tensor
    scale: Tensor
    normal: Tensor
    offset: Tensor
    normal_by_angles: Tensor
    """(b, 3, 2)"""

    def apply(self, points: Tensor) -> Tensor:
        """Move (b, P, N, 3) points."""
        return _moved(points, self.root, self.new_root, self.scale)

    def by_moves(self, points: Tensor) -> Tensor:
        """Return the derivatives of moved points by the variables of their person."""
        return _by_moves(points, self.new_root[..., None, :].expand(points.shape))


def _moved(points: Tensor, root: Tensor, new_root: Tensor, scale: Tensor) -> Tensor:
    """Scale points (..., N, 3) about the root and move them with it."""
    return scale[..., None, None] * (points - root[..., None, :]) + new_root[..., None, :]


def _by_moves(points: Tensor, root: Tensor) -> Tensor:
    """Return the derivatives (..., 3, MOVES) of moved points by the variables of a person with that root."""
    zero = torch.zeros_like(root[..., 2])
    right = torch.stack((root[..., 2], zero, zero), -1)
    return torch.stack((root, points - root, right, right.roll(1, -1)), -1)


def _of_people(by_moves: Tensor) -> Tensor:
    """Return the Jacobian (b, P R, N) of residuals that depend on one person each, from (b, P, R, MOVES)."""
    batch, people, rows = by_moves.shape[:3]
    jacobian = by_moves.new_zeros(batch, people, rows, people, MOVES)
    each = torch.arange(people, device=by_moves.device)
    jacobian[:, each, :, each] = by_moves.transpose(0, 1)
    return torch.nn.functional.pad(jacobian.flatten(3).flatten(1, 2), (0, TILTS))


def _across(normal: Tensor) -> Tensor:
    """Return (3, 2) two unit vectors orthogonal to a unit vector and to each other."""
    away = torch.zeros_like(normal)
    away[normal.abs().argmin()] = 1
    first = torch.linalg.cross(normal, away)
    first = first / first.norm()
    return torch.stack((first, torch.linalg.cross(normal, first)), -1)
