"""People of an image moved together: order in depth, one ground, nobody in anybody, and the picture kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.cameras import Camera
from agebody.checks import Weights, apply_mask, expand_weights, expect
from agebody.crowd.height_prior import HeightPrior
from agebody.crowd.values import expect_values
from agebody.mesh.collisions import find_penetrations, offsets
from agebody.optim.least_squares import Quadratic, Solution, Stop, minimize

MOVES = 4
"""Variables of a person: logarithms of depth and of size, and two tangents sideways."""
TILTS = 3
"""Variables of the ground: two angles, and its offset."""
AT_REST = 1e-3
"""No variable changed by more from one search to the next: some millimetres."""


class Deviations(NamedTuple):
    """How far each thing may be off, as a standard deviation: half the sum of squares of error / deviation
    is minimised."""

    pixels: float = 3.0
    """Of a keypoint from where it was in the image [pixels]."""
    depth: float = 0.05
    """Of a person from the depth given, as a share of it."""
    order: float = 0.1
    """Of two people from standing in the right order [m]."""
    ground: float = 0.03
    """Of a person's lowest point from the ground [m]."""
    ground_reach: float = 0.3
    """Beyond which people are not drawn to the ground: they jump, or sit on something [m]."""
    tilt: float = 0.1
    """Of the ground's normal from the direction that is up [rad]."""
    overlap: float = 0.002
    """Of the surface of a person from not being in another: root mean square over all vertices of the depth
    inside [m]."""


class Refined(NamedTuple):
    """Where people were moved. `apply` moves what belongs to them."""

    root: Float[Tensor, "*images P 3"]
    """Of each person as given [m]."""
    new_root: Float[Tensor, "*images P 3"]
    """[m]"""
    scale: Float[Tensor, "*images P"]
    """Of each person about the root; 1 where sizes were not free."""
    normal: Float[Tensor, "*images 3"]
    """Of the ground, away from it; the given direction where there was none to find."""
    offset: Float[Tensor, "*images"]
    """Height of the ground along its normal [m]; 0 where there was none to find."""
    terms: dict[str, Float[Tensor, "*images"]]
    """What each term costs at the end."""
    cost: Float[Tensor, "*images"]
    converged: Bool[Tensor, "*images"]
    iterations: Int[Tensor, "*images"]
    stop: Int[Tensor, "*images"]
    """A `agebody.optim.least_squares.Stop` each."""

    def apply(self, points: Float[Tensor, "*images P N 3"]) -> Float[Tensor, "*images P N 3"]:
        """Points of each person, such as vertices, moved with the person [m]."""
        away = points - self.root[..., None, :]
        return self.scale[..., None, None] * away + self.new_root[..., None, :]


def refine_crowd(
    points: Float[Tensor, "*images P K 3"],
    camera: Camera,
    root: Float[Tensor, "*images P 3"],
    *,
    weights: Weights = None,
    pixels: Float[Tensor, "*images P K 2"] | None = None,
    pixel_weights: Float[Tensor, "*images P K"] | None = None,
    layer: Int[Tensor, "*images P"] | None = None,
    layer_margin: float = 0.3,
    feet: Float[Tensor, "*images P S 3"] | None = None,
    up: tuple[float, float, float] = (0.0, -1.0, 0.0),
    height: Float[Tensor, "*images P"] | None = None,
    prior: HeightPrior | None = None,
    vertices: Float[Tensor, "*images P V 3"] | None = None,
    faces: Int[Tensor, "F 3"] | None = None,
    deviations: Deviations = Deviations(),  # noqa: B008
    max_iterations: int = 50,
    searches: int = 8,
) -> Refined:
    """Moves the people of each image, each along the ray of the root and a little sideways.

    A term is there if what it needs is given:

    - ``pixels``: keypoints stay where they are, or come to where they were seen (always);
    - ``depth``: people stay at their depth (always);
    - ``order`` (``layer``): a person of a nearer layer is ``layer_margin`` nearer, people of one layer are
      at most that far apart in depth;
    - ``ground`` (``feet``): the lowest point of each person is on one plane, which is found;
    - ``height`` (``height``, ``prior``): sizes become free and follow their prior. Size and depth together
      change no pixel;
    - ``overlap`` (``vertices``, ``faces``): nobody is in anybody.

    All images are solved at once, each until it has converged. Who is in whom is searched on the meshes,
    which takes most of the time; then people are pushed along the ways out that were found, and it is
    searched again in those images in which anybody moved. People keep their pose.

    Args:
        points: keypoints, in camera coordinates [m].
        camera: intrinsics; its batch broadcasts to the images.
        root: the point about which a person is scaled, such as the pelvis [m].
        weights: broadcast to the people, zero for those who are not there.
        pixels: where keypoints were seen; where they are if None.
        pixel_weights: of keypoints.
        layer: depth layers, smaller is nearer; negative where it is unknown.
        layer_margin: [m].
        feet: points on which a person might stand, such as those of the soles, or all vertices [m].
        up: away from the ground, roughly; of any length but zero.
        height: stature in the rest pose [m].
        prior: of statures.
        vertices: meshes, in camera coordinates [m].
        faces: counter-clockwise from outside.
        deviations: how much each term may be off.
        max_iterations: of each image, between two searches.
        searches: for overlaps, at most. An image in which people still move after the last one has not
            converged.

    Raises:
        TypeError: an argument is no tensor of a floating type.
        ValueError: shapes do not fit, one of a pair is missing, the camera has a pose of its own, ``up`` has
            no length, or a number of somebody who is there is not finite, or behind the camera.
    """
    expect("points", points, None, None, 3)
    images, people = points.shape[:-3], points.shape[-3]
    keypoints = points.shape[-2]
    given = {
        "root": (root, (3,)), "height": (height, ()), "layer": (layer, ()), "feet": (feet, (None, 3)),
        "pixels": (pixels, (keypoints, 2)), "pixel_weights": (pixel_weights, (keypoints,)),
        "vertices": (vertices, (None, 3)),
    }  # fmt: skip
    _check(points, given)
    if (height is None) != (prior is None):
        raise ValueError("height, prior: expected both or neither")
    if (vertices is None) != (faces is None):
        raise ValueError("vertices, faces: expected both or neither")
    if camera.rotation is not None or camera.translation is not None:
        raise ValueError("camera: expected no rotation and translation; give points in camera coordinates")
    weights = expand_weights(weights, points.shape[:-2])
    there = torch.ones_like(points[..., 0, 0]) if weights is None else weights.to(points.dtype)

    def flat(tensor: Tensor, dims: int) -> Tensor:
        tensor = tensor.detach().flatten(0, len(images) - 1) if images else tensor.detach()[None]
        return tensor if dims == 0 else apply_mask(tensor, flat(there, 0), dims - 1)

    count = images.numel()
    lens = _each(camera, lambda part: part.detach().expand(*images, -1).reshape(count, part.shape[-1]))
    start = flat(points, 3)
    seen = lens.project(start.flatten(1, 2)).pixels.unflatten(1, (people, keypoints))
    confidence = flat(there, 0)[..., None].expand(seen.shape[:-1])
    if pixels is not None:
        confidence = confidence if pixel_weights is None else confidence * flat(pixel_weights, 2)
        seen = torch.where((confidence != 0)[..., None], flat(pixels, 3), seen)
    elif pixel_weights is not None:
        confidence = confidence * flat(pixel_weights, 2)
    direction = points.new_tensor(up)
    if not direction.isfinite().all() or not direction.any():
        raise ValueError(f"up: expected a direction, of a length above 0, got {up}")
    here = flat(there, 0) != 0
    finite = "finite numbers of all who are there"
    expect_values(
        weights=((there >= 0) & there.isfinite(), "finite numbers from 0 on"),
        pixel_weights=((confidence >= 0) & confidence.isfinite(), "finite numbers from 0 on"),
        root=(~here | (flat(root, 2).isfinite().all(-1) & (flat(root, 2)[..., 2] > 0)),
              "finite places before the camera"),
        points=(
            start.isfinite().all(-1) & ((confidence == 0) | (start[..., 2] > 0)),
            "finite places, before the camera where weights are not 0",
        ),
        pixels=(seen.isfinite().all(-1) | (confidence == 0), "finite numbers where weights are not 0"),
        **{
            name: (flat(tensor, dims).isfinite().flatten(2).all(-1), finite)
            for name, tensor, dims in (("feet", feet, 3), ("vertices", vertices, 3))
            if tensor is not None
        },
        **{
            name: (~here | ((flat(tensor, 0) > 0) & flat(tensor, 0).isfinite()), "finite lengths above 0")
            for name, tensor in (
                ("height", height), ("prior__mean", None if prior is None else prior.mean),
                ("prior__sd", None if prior is None else prior.sd),
            )
            if tensor is not None
        },
    )  # fmt: skip
    seen = apply_mask(seen, confidence, 1)
    if count == 0 or people == 0:
        names = ("pixels", "depth", *("order" for _ in (layer,) if layer is not None))
        names += ("ground", "tilt") if feet is not None else ()
        names += ("height",) if height is not None else ()
        names += ("overlap",) if vertices is not None else ()
        return _nothing(root, direction / direction.norm(), names)
    scene = _Scene(
        start, flat(root, 2), flat(there, 0), seen, confidence, lens,
        None if layer is None else torch.where(flat(there, 0) != 0, flat(layer, 0), -1), layer_margin,
        None if feet is None else flat(feet, 3), direction / direction.norm(),
        None if height is None else flat(height, 1),
        None if prior is None else HeightPrior(*(flat(part, 1) for part in prior)),
        None if vertices is None else flat(vertices, 3), faces, deviations,
    )  # fmt: skip
    x = points.new_zeros(count, MOVES * people + TILTS)
    if feet is not None:
        x[:, -1] = _first_offset(scene)
    found = _solve(scene, x, max_iterations, searches)
    place = scene.place(found.x, torch.arange(count, device=x.device))
    unflat = lambda tensor: tensor.reshape((*images, *tensor.shape[1:]))  # noqa: E731
    terms = {name: unflat(cost) for name, cost in scene.costs(found.x).items()}
    return Refined(
        root, unflat(place.new_root), unflat(place.scale), unflat(place.normal), unflat(place.offset), terms,
        torch.stack(list(terms.values())).sum(0), unflat(found.converged), unflat(found.iterations),
        unflat(found.stop),
    )  # fmt: skip


def _nothing(root: Tensor, up: Tensor, names: tuple[str, ...]) -> Refined:
    """Of no images, or images of nobody."""
    images = root.shape[:-2]
    zero = root.new_zeros(images)
    steps = torch.zeros(images, dtype=torch.long, device=root.device)
    return Refined(
        root, root.clone(), root.new_ones(root.shape[:-1]), up.expand(*images, 3), zero,
        {name: zero.clone() for name in names}, zero.clone(), steps == 0, steps, steps + int(Stop.GRADIENT),
    )  # fmt: skip


def _solve(scene: _Scene, x: Tensor, max_iterations: int, searches: int) -> Solution:
    """Minimises, and searches again for overlaps where people have moved, until they rest."""
    free = scene.free()
    infinite = torch.full_like(x, torch.inf)
    lower, upper = torch.where(free, -infinite, x), torch.where(free, infinite, x)

    def minimized(start: Tensor, rows: Tensor, contacts: _Contacts | None) -> Solution:
        return minimize(
            lambda now, some: scene.quadratize(now, rows[some], contacts), start,
            max_iterations=max_iterations, lower=lower[rows], upper=upper[rows],
        )  # fmt: skip

    rows = torch.arange(len(x), device=x.device)
    total: Solution | None = None
    for _ in range(searches if scene.vertices is not None else 1):
        contacts = None if scene.vertices is None else scene.search(x[rows], rows)
        found = minimized(x[rows], rows, contacts)
        moving = (found.x - x[rows]).abs().amax(-1) > AT_REST
        x = x.index_copy(0, rows, found.x)
        if total is None:
            total = found
        else:
            parts = {
                name: getattr(total, name).index_copy(0, rows, getattr(found, name))
                for name in ("cost", "converged", "stop")
            }
            iterations = total.iterations.index_add(0, rows, found.iterations)
            total = total._replace(x=x, iterations=iterations, **parts)
        rows = rows[moving]
        if len(rows) == 0:
            break
    assert total is not None
    if scene.vertices is not None:
        total = total._replace(converged=total.converged.index_fill(0, rows, False))
    return total


class _Scene(NamedTuple):
    """All images, (B, P, ...)."""

    points: Tensor
    root: Tensor
    there: Tensor
    seen: Tensor
    confidence: Tensor
    camera: Camera
    layer: Tensor | None
    margin: float
    feet: Tensor | None
    up: Tensor
    height: Tensor | None
    prior: HeightPrior | None
    vertices: Tensor | None
    faces: Tensor | None
    deviations: Deviations

    def free(self) -> Tensor:
        """Which variables are not held."""
        count, people = self.there.shape
        free = torch.ones(count, people, MOVES, dtype=torch.bool, device=self.there.device)
        free[..., 1] = self.height is not None
        free &= (self.there != 0)[..., None]
        ground = torch.full((count, TILTS), self.feet is not None, device=free.device)
        return torch.cat((free.flatten(1), ground), 1)

    def place(self, x: Tensor, rows: Tensor) -> _Place:
        """Where people and the ground are at x."""
        along, size, *sideways = x[:, :-TILTS].unflatten(1, (-1, MOVES)).unbind(-1)
        root = self.root[rows]
        shift = torch.stack((*sideways, torch.zeros_like(along)), -1) * root[..., 2:]
        new_root, scale = along.exp()[..., None] * (root + shift), size.exp()
        if self.feet is None:
            flat = self.up.expand(len(x), 3)
            return _Place(root, new_root, scale, flat, x.new_zeros(len(x)), x.new_zeros(len(x), 3, 2))
        axes = _across(self.up)
        tilted = self.up + x[:, -TILTS:-1] @ axes.mT
        length = tilted.norm(dim=-1, keepdim=True)
        normal = tilted / length
        by_angles = (axes - normal[:, :, None] * (normal @ axes)[:, None]) / length[..., None]
        return _Place(root, new_root, scale, normal, x[:, -1], by_angles)

    def quadratize(self, x: Tensor, rows: Tensor, contacts: _Contacts | None) -> Quadratic:
        """Costs and their derivatives."""
        place = self.place(x, rows)
        parts = [term.quadratic() for term in self._terms(x, place, rows).values()]
        if contacts is not None:
            parts.append(self._overlap(contacts, place, rows))
        cost, gradient, normal = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        return Quadratic(cost, gradient, normal)

    def costs(self, x: Tensor) -> dict[str, Tensor]:
        """Of each term, with overlaps as they are."""
        rows = torch.arange(len(x), device=x.device)
        place = self.place(x, rows)
        found = {name: term.quadratic().cost for name, term in self._terms(x, place, rows).items()}
        if self.vertices is not None:
            found["overlap"] = self._overlap(self.search(x, rows), place, rows).cost
        return found

    def _terms(self, x: Tensor, place: _Place, rows: Tensor) -> dict[str, _Term]:
        share = self.there[rows].sqrt()
        own = x[:, :-TILTS].unflatten(1, (-1, MOVES))
        terms = {"pixels": self._reprojection(place, rows), "depth": self._depth(own, share)}
        if self.layer is not None:
            terms["order"] = self._order(self.layer[rows], place, share)
        if self.feet is not None:
            terms["ground"] = self._ground(self.feet[rows], place, share)
            angles = x[:, -TILTS:-1] / self.deviations.tilt
            slopes = x.new_zeros(len(x), 2, x.shape[1])
            slopes[:, (0, 1), (-3, -2)] = 1 / self.deviations.tilt
            terms["tilt"] = _Term(angles, slopes)
        if self.height is not None and self.prior is not None:
            tall, sd = self.height[rows] * place.scale, self.prior.sd[rows]
            sd = torch.where(share == 0, 1, sd)
            by_moves = torch.zeros_like(own)
            by_moves[..., 1] = share * tall / sd
            residuals = share * (tall - self.prior.mean[rows]) / sd
            terms["height"] = _Term.of_people(residuals[..., None], by_moves[..., None, :])
        return terms

    def _reprojection(self, place: _Place, rows: Tensor) -> _Term:
        points = place.apply(self.points[rows])
        by_moves = place.by_moves(points)
        camera = _each(self.camera, lambda part: part[rows])
        pixels, by_points = _projected(camera, points)
        share = (self.confidence[rows].sqrt() / self.deviations.pixels)[..., None]
        residuals = share * (pixels - self.seen[rows])
        slopes = share[..., None] * (by_points @ by_moves)
        return _Term.of_people(residuals.flatten(2), slopes.flatten(2, 3))

    def _depth(self, own: Tensor, share: Tensor) -> _Term:
        """Along the ray; sideways is left to the pixels, and bounded only where a person has none."""
        deviations = own.new_tensor((self.deviations.depth, 1.0, 1.0))
        by_moves = torch.eye(MOVES, dtype=own.dtype, device=own.device)[[0, 2, 3]] / deviations[:, None]
        slopes = share[..., None, None] * by_moves
        return _Term.of_people((slopes @ own[..., None])[..., 0], slopes)

    def _order(self, layer: Tensor, place: _Place, share: Tensor) -> _Term:
        z = place.new_root[..., 2]
        first, second = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
        apart, layers = z[:, second] - z[:, first], layer[:, second] - layer[:, first]
        way = torch.where(layers == 0, -apart.sign(), layers.sign().to(z))
        least = self.margin * torch.where(layers == 0, -1, layers.abs())
        lacking = least - way * apart
        known = (layer[:, second] >= 0) & (layer[:, first] >= 0) & (lacking > 0)
        share = torch.where(known, share[:, first] * share[:, second], 0) / self.deviations.order
        slopes = z.new_zeros(*apart.shape, z.shape[1], MOVES)
        pair = torch.arange(len(first), device=z.device)
        slopes[:, pair, first, 0] = share * way * z[:, first]
        slopes[:, pair, second, 0] = -share * way * z[:, second]
        return _Term.of_moves(share * lacking, slopes)

    def _ground(self, feet: Tensor, place: _Place, share: Tensor) -> _Term:
        feet = place.apply(feet)
        heights = (feet * place.normal[:, None, None]).sum(-1) - place.offset[:, None, None]
        height, lowest = heights.min(-1)
        lowest = feet.gather(2, lowest[..., None, None].expand(-1, -1, 1, 3))
        # Geman-McClure's cost is the square of h / sqrt(1 + (h / reach)^2).
        bend = 1 + (height / self.deviations.ground_reach).square()
        slope = share * bend**-1.5 / self.deviations.ground
        residuals = share * height * bend**-0.5 / self.deviations.ground
        by_moves = (place.normal[:, None, None, :, None] * place.by_moves(lowest)).sum(-2)
        term = _Term.of_people(residuals[..., None], slope[..., None, None] * by_moves)
        term.jacobian[..., -TILTS:-1] = slope[..., None] * (lowest @ place.normal_by_angles[:, None])[:, :, 0]
        term.jacobian[..., -1] = -slope
        return term

    def _overlap(self, contacts: _Contacts, place: _Place, rows: Tensor) -> Quadratic:
        """How deep vertices are inside others, along the ways out, without a row for each vertex."""
        assert self.vertices is not None
        number = torch.full((len(self.there),), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        contacts = contacts.of(number[contacts.image] >= 0)
        image, out = number[contacts.image], contacts.out
        points = []
        for who, where in ((contacts.person, contacts.inside), (contacts.other, contacts.surface)):
            near, now = place.root[image, who], place.new_root[image, who]
            points.append(place.scale[image, who][:, None] * (where - near) + now)
        depth = torch.relu(((points[1] - points[0]) * out).sum(-1))
        share = torch.where(depth > 0, 1 / (self.deviations.overlap * self.vertices.shape[2] ** 0.5), 0)
        both = []
        for who, where, way in zip((contacts.person, contacts.other), points, (-1, 1), strict=True):
            by_moves = _by_moves(where, place.new_root[image, who])
            both.append((who, (share * way)[:, None] * (out[..., None] * by_moves).sum(-2)))
        batch, people = place.scale.shape
        cost = depth.new_zeros(batch).index_add(0, image, (share * depth).square() / 2)
        gradient = depth.new_zeros(batch, people, MOVES)
        normal = depth.new_zeros(batch, people, people, MOVES, MOVES)
        for who, slope in both:
            gradient.index_put_((image, who), (share * depth)[:, None] * slope, accumulate=True)
            for whom, other in both:
                normal.index_put_((image, who, whom), slope[:, :, None] * other[:, None], accumulate=True)
        pad = torch.nn.functional.pad
        square = normal.transpose(2, 3).reshape(batch, MOVES * people, MOVES * people)
        return Quadratic(cost, pad(gradient.flatten(1), (0, TILTS)), pad(square, (0, TILTS, 0, TILTS)))

    def search(self, x: Tensor, rows: Tensor) -> _Contacts:
        """Who is in whom, in some of the images."""
        assert self.vertices is not None
        assert self.faces is not None
        place = self.place(x, rows)
        rest = self.vertices[rows]
        vertices = place.apply(rest)
        found = find_penetrations(vertices.float(), self.faces, weights=self.there[rows])
        out = -offsets(vertices, self.faces, found)
        depth = out.norm(dim=-1, keepdim=True)
        surface = vertices[found.image, found.person, found.vertex] + out
        other = found.image, found.other
        surface = (surface - place.new_root[other]) / place.scale[other][:, None] + place.root[other]
        inside = rest[found.image, found.person, found.vertex]
        out = out / torch.where(depth == 0, 1, depth)
        return _Contacts(rows[found.image], found.person, found.other, inside, surface, out)


class _Contacts(NamedTuple):
    """K vertices inside other people, and the points of their surfaces that were nearest; not moved."""

    image: Tensor
    person: Tensor
    other: Tensor
    inside: Tensor
    """(K, 3)"""
    surface: Tensor
    """(K, 3)"""
    out: Tensor
    """(K, 3) unit vectors, from the one to the other when they were found."""

    def of(self, kept: Tensor) -> _Contacts:
        """Some of them."""
        return _Contacts(*(part[kept] for part in self))


class _Place(NamedTuple):
    """People and ground of b images at one x."""

    root: Tensor
    new_root: Tensor
    scale: Tensor
    normal: Tensor
    offset: Tensor
    normal_by_angles: Tensor
    """(b, 3, 2)"""

    def apply(self, points: Tensor) -> Tensor:
        """(b, P, N, 3) moved."""
        return self.scale[..., None, None] * (points - self.root[..., None, :]) + self.new_root[..., None, :]

    def by_moves(self, points: Tensor) -> Tensor:
        """Derivatives of moved points."""
        return _by_moves(points, self.new_root[..., None, :].expand(points.shape))


class _Term(NamedTuple):
    """Residuals of b images, and their derivatives by all variables."""

    residuals: Tensor
    """(b, M)"""
    jacobian: Tensor
    """(b, M, N)"""

    @classmethod
    def of_people(cls, residuals: Tensor, by_moves: Tensor) -> _Term:
        """(b, P, R) that depend on a person's own moves, (b, P, R, MOVES)."""
        batch, people, rows = residuals.shape
        slopes = residuals.new_zeros(batch, people, rows, people, MOVES)
        each = torch.arange(people, device=slopes.device)
        slopes[:, each, :, each] = by_moves.transpose(0, 1)
        return cls.of_moves(residuals.flatten(1), slopes.flatten(1, 2))

    @classmethod
    def of_moves(cls, residuals: Tensor, by_moves: Tensor) -> _Term:
        """(b, M) that depend on the moves of all, (b, M, P, MOVES)."""
        return cls(residuals, torch.nn.functional.pad(by_moves.flatten(2), (0, TILTS)))

    def quadratic(self) -> Quadratic:
        """Half of the sum of squares."""
        return Quadratic.of(self.residuals, self.jacobian)


def _by_moves(points: Tensor, root: Tensor) -> Tensor:
    """Derivatives (..., 3, MOVES) of moved points by the moves of the person with that root."""
    zero = torch.zeros_like(root[..., 2])
    right = torch.stack((root[..., 2], zero, zero), -1)
    return torch.stack((root, points - root, right, right.roll(1, -1)), -1)


def _projected(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (b, P, K, 2), and their derivatives by each point, (b, P, K, 2, 3)."""
    with torch.inference_mode(False), torch.enable_grad():
        places = points.detach().clone().requires_grad_()
        pixels = camera.project(places.flatten(1, 2)).pixels.unflatten(1, points.shape[1:3])
        rows = [
            torch.autograd.grad(pixels[..., i].sum(), places, retain_graph=True)[0] for i in range(2)
        ]  # fmt: skip
    return pixels.detach(), torch.stack(rows, -2)


def _across(normal: Tensor) -> Tensor:
    """(3, 2) two unit vectors across a unit vector."""
    away = torch.zeros_like(normal)
    away[normal.abs().argmin()] = 1
    first = torch.linalg.cross(normal, away)
    first = first / first.norm()
    return torch.stack((first, torch.linalg.cross(normal, first)), -1)


def _first_offset(scene: _Scene) -> Tensor:
    """Median height of the lowest points of people."""
    assert scene.feet is not None
    lowest = (scene.feet @ scene.up).amin(-1)
    middle = torch.where(scene.there != 0, lowest, torch.nan).nanmedian(-1).values
    return torch.where(middle.isnan(), 0, middle)


def _each(camera: Camera, function: Callable[[Tensor], Tensor]) -> Camera:
    """Of intrinsics."""
    lens = None if camera.distortion is None else function(camera.distortion)
    return Camera(function(camera.focal), function(camera.center), distortion=lens)


def _check(points: Tensor, given: dict[str, tuple[Tensor | None, tuple[int | None, ...]]]) -> None:
    people = points.shape[:-2]
    for name, (tensor, entry) in given.items():
        if tensor is None:
            continue
        if name != "layer":
            expect(name, tensor, *entry)
        if tensor.shape[: tensor.dim() - len(entry)] != people:
            shape = ", ".join([*map(str, people), *("any" if n is None else str(n) for n in entry)])
            raise ValueError(f"{name}: expected shape ({shape}), got {tuple(tensor.shape)}")
