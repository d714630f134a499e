"""The least-squares problem of `refine_crowd`: its variables, and the cost of each term."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras import Camera
from agebody.crowd.height_prior import HeightPrior
from agebody.measure.sections import plane_axes
from agebody.mesh.penetrations import find_penetrations, offsets
from agebody.optim.quadratic import Quadratic
from agebody.optim.terms import project

MOVES = 4
"""Variables per person: logarithms of depth and of size, and two sideways shifts (tangents of angles)."""
TILTS = 4
"""Variables of the ground: two angles, its offset, and the height of its second level above the first."""
LAYER_MARGIN = 0.3
"""Smallest distance in depth between two layers, and largest within a layer [m]."""


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
    """Scale of the robust cost of the ground [m]."""
    tilt: float = 0.1
    """Of the normal of the ground from the up direction [rad]."""
    overlap: float = 0.0005
    """Of the penetration depth, root mean square over all vertices of a person [m]."""


class Scene(NamedTuple):
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
    """In the order of `order_faces`."""
    deviations: Deviations
    level: Tensor
    """(B, P) as in `Refined`."""

    def free(self) -> Tensor:
        """Return which variables are free."""
        count, people = self.share.shape
        free = torch.ones(count, people, MOVES, dtype=torch.bool, device=self.share.device)
        free[..., 1] = self.height is not None
        free &= (self.share != 0)[..., None]
        ground = (self.level >= 0).any(1, keepdim=True).repeat(1, TILTS)
        ground[:, -1] = (self.level == 1).any(1)
        return torch.cat((free.flatten(1), ground), 1)

    def place(self, x: Tensor, rows: Tensor) -> Place:
        """Return the places of people and ground at x."""
        along, size, *sideways = x[:, :-TILTS].unflatten(1, (-1, MOVES)).unbind(-1)
        root = self.root[rows]
        shift = torch.stack((*sideways, torch.zeros_like(along)), -1) * root[..., 2:]
        new_root, scale = along.exp()[..., None] * (root + shift), size.exp()
        axes = torch.stack(plane_axes(self.up), -1)
        tilted = self.up + x[:, -TILTS:-2] @ axes.mT
        length = tilted.norm(dim=-1, keepdim=True)
        normal = tilted / length
        by_angles = (axes - normal[:, :, None] * (normal @ axes)[:, None]) / length[..., None]
        return Place(root, new_root, scale, normal, x[:, -2], x[:, -1], by_angles)

    def quadratize(self, x: Tensor, rows: Tensor, images: Tensor) -> Quadratic:
        """Return cost, gradient and normal matrix of the images ``images[rows]``."""
        rows = images[rows]
        place = self.place(x, rows)
        residuals, jacobians = zip(*self._terms(x, place, rows).values(), strict=True)
        total = Quadratic.of(torch.cat(residuals, 1), torch.cat(jacobians, 1))
        if self.vertices is None:
            return total
        overlap = self._overlap(self.search(x, rows), place)
        return Quadratic(*(a + b for a, b in zip(total, overlap, strict=True)))

    def costs(self, x: Tensor) -> dict[str, Tensor]:
        """Return the cost of each term."""
        rows = torch.arange(len(x), device=x.device)
        place = self.place(x, rows)
        terms = self._terms(x, place, rows)
        costs = {name: residuals.square().sum(-1) / 2 for name, (residuals, _) in terms.items()}
        if self.vertices is not None:
            costs["overlap"] = self._overlap(self.search(x, rows), place).cost
        return costs

    def own_costs(self, x: Tensor) -> Float[Tensor, "B P"]:
        """Return the cost of each person, of the terms that belong to one person."""
        rows = torch.arange(len(x), device=x.device)
        terms = self._terms(x, self.place(x, rows), rows)
        names = ("pixels", "depth", "ground", "height")
        residuals = [terms[name][0] for name in names if name in terms]
        by_person = [part.unflatten(1, (self.share.shape[1], -1)).square().sum(-1) / 2 for part in residuals]
        return torch.stack(by_person).sum(0)

    def remaining(self, x: Tensor) -> Float[Tensor, "B P P"]:
        """Return the depth of the deepest vertex of each person in each other one [m]."""
        rows = torch.arange(len(x), device=x.device)
        contacts, people = self.search(x, rows), self.share.shape[1]
        pair = (contacts.image * people + contacts.person) * people + contacts.other
        depths = x.new_zeros(len(x) * people**2).scatter_reduce(0, pair, contacts.depth, "amax")
        return depths.view(len(x), people, people)

    def _terms(self, x: Tensor, place: Place, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return residuals (b, M) and Jacobian (b, M, N) of each term."""
        root_share = self.share[rows].sqrt()
        own = x[:, :-TILTS].unflatten(1, (-1, MOVES))
        terms = {"pixels": self._reprojection(place, rows), "depth": self._depth(own, root_share)}
        if self.layer is not None:
            terms["order"] = self._order(self.layer[rows], place, root_share)
        if self.feet is not None:
            terms["ground"] = self._ground(self.feet[rows], self.level[rows], place, root_share)
            jacobian = x.new_zeros(len(x), 2, x.shape[1])
            jacobian[:, (0, 1), (-4, -3)] = 1 / self.deviations.tilt
            terms["tilt"] = (x[:, -TILTS:-2] / self.deviations.tilt, jacobian)
        if self.height is not None and self.prior is not None:
            height, sd = self.height[rows] * place.scale, self.prior.sd[rows]
            factor = root_share / torch.where(root_share == 0, 1, sd)
            by_moves = torch.zeros_like(own)
            by_moves[..., 1] = factor * height
            residuals = factor * (height - self.prior.mean[rows])
            terms["height"] = (residuals, _of_people(by_moves[..., None, :]))
        return terms

    def _reprojection(self, place: Place, rows: Tensor) -> tuple[Tensor, Tensor]:
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
        """Return priors of the depth and, weakly, of the sideways place for people without keypoints."""
        deviations = own.new_tensor((self.deviations.depth, 1.0, 1.0))
        by_moves = torch.eye(MOVES, dtype=own.dtype, device=own.device)[[0, 2, 3]] / deviations[:, None]
        by_moves = root_share[..., None, None] * by_moves
        return (by_moves @ own[..., None]).flatten(1), _of_people(by_moves)

    def _order(self, layer: Tensor, place: Place, root_share: Tensor) -> tuple[Tensor, Tensor]:
        z = place.new_root[..., 2]
        first, second = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
        apart, layers = z[:, second] - z[:, first], layer[:, second] - layer[:, first]
        sign = torch.where(layers == 0, -apart.sign(), layers.sign().to(z))
        least = LAYER_MARGIN * torch.where(layers == 0, -1, layers.abs()).to(z)
        missing = least - sign * apart
        active = (layer[:, second] >= 0) & (layer[:, first] >= 0) & (missing > 0)
        factor = torch.where(active, root_share[:, first] * root_share[:, second], 0) / self.deviations.order
        by_moves = z.new_zeros(*apart.shape, z.shape[1], MOVES)
        pair = torch.arange(len(first), device=z.device)
        by_moves[:, pair, first, 0] = factor * sign * z[:, first]
        by_moves[:, pair, second, 0] = -factor * sign * z[:, second]
        return factor * missing, torch.nn.functional.pad(by_moves.flatten(2), (0, TILTS))

    def _ground(self, feet: Tensor, level: Tensor, place: Place, root_share: Tensor) -> tuple[Tensor, Tensor]:
        feet, upper, root_share = place.apply(feet), (level == 1).to(feet), root_share * (level >= 0)
        ground = place.offset[:, None] + upper * place.step[:, None]
        heights = (feet * place.normal[:, None, None]).sum(-1) - ground[..., None]
        height, lowest = heights.min(-1)
        lowest = feet.gather(2, lowest[..., None, None].expand(-1, -1, 1, 3))
        # Geman-McClure's cost is the square of h / sqrt(1 + (h / reach)^2).
        growth = 1 + (height / self.deviations.ground_reach).square()
        slope = root_share * growth**-1.5 / self.deviations.ground
        residuals = root_share * height * growth**-0.5 / self.deviations.ground
        by_moves = (place.normal[:, None, None, :, None] * place.by_moves(lowest)).sum(-2)
        jacobian = _of_people(slope[..., None, None] * by_moves)
        jacobian[..., -TILTS:-2] = slope[..., None] * (lowest @ place.normal_by_angles[:, None])[:, :, 0]
        jacobian[..., -2], jacobian[..., -1] = -slope, -slope * upper
        return residuals, jacobian

    def _overlap(self, contacts: Contacts, place: Place) -> Quadratic:
        """Return the cost of penetration depths, without a Jacobian row per vertex."""
        assert self.vertices is not None
        image, depth = contacts.image, contacts.depth
        factor = 1 / (self.deviations.overlap * self.vertices.shape[2] ** 0.5)
        gradients = []
        for person, where, sign in (
            (contacts.person, contacts.inside, -factor),
            (contacts.other, contacts.surface, factor),
        ):
            by_moves = _by_moves(where, place.new_root[image, person])
            gradients.append((person, sign * (contacts.out[..., None] * by_moves).sum(-2)))
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

    def search(self, x: Tensor, rows: Tensor) -> Contacts:
        """Find vertices inside other people in the images ``rows``, which may repeat."""
        assert self.vertices is not None
        assert self.faces is not None
        place = self.place(x, rows)
        vertices = place.apply(self.vertices[rows])
        found = find_penetrations(vertices.float(), self.faces, weights=self.share[rows], ordered=True)
        out = -offsets(vertices, self.faces, found)
        depth = out.norm(dim=-1)
        inside = vertices[found.image, found.person, found.vertex]
        unit = out / torch.where(depth == 0, 1, depth)[:, None]
        return Contacts(found.image, found.person, found.other, inside, inside + out, unit, depth)


class Contacts(NamedTuple):
    """K vertices inside other people and the nearest points (K, 3) of their surfaces."""

    image: Tensor
    person: Tensor
    other: Tensor
    inside: Tensor
    surface: Tensor
    out: Tensor
    """Unit vectors from the vertex to the surface."""
    depth: Tensor


class Place(NamedTuple):
    """Places of people and ground of b images at one x."""

    root: Tensor
    new_root: Tensor
    scale: Tensor
    normal: Tensor
    offset: Tensor
    step: Tensor
    normal_by_angles: Tensor
    """(b, 3, 2)"""

    def apply(self, points: Tensor) -> Tensor:
        """Move (b, P, N, 3) points."""
        return move(points, self.root, self.new_root, self.scale)

    def by_moves(self, points: Tensor) -> Tensor:
        """Return the derivatives of moved points by the variables of their person."""
        return _by_moves(points, self.new_root[..., None, :].expand(points.shape))


def move(points: Tensor, root: Tensor, new_root: Tensor, scale: Tensor) -> Tensor:
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
