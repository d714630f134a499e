"""The energy of a body in a scan: its terms, their published weights, and their Gauss-Newton models."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.scans.frames import Frames, camera_of, draw_points, eye_of
from agebody.fitting.scans.matches import Matches, closest_of_some, visible_faces
from agebody.fitting.scans.stages import ScanStage
from agebody.keypoints import KeypointLayout
from agebody.losses import TRUNK, MahalanobisPrior, gmof, part_vertices, plane_height, self_intersection_loss
from agebody.losses.priors import hyperextension_residuals
from agebody.mesh.closest import (
    closest_barycentric,
    corners_of,
    interpolate,
    nearest_points,
    rows_of,
    visible_vertices,
)
from agebody.mesh.collisions import Exclusions, find_collisions
from agebody.optim.jacobian import KeypointDerivatives, KeypointJacobian, SurfaceJacobian
from agebody.optim.least_squares import Quadratic
from agebody.optim.terms import HyperextensionPrior, by_all, project
from agebody.parameters import BodyParameters

SCAN_SHARE = 4
"""Points of a scan among which vertices look for the nearest, over those that look for the surface."""
BACK = 64
"""Vertices of the back that the table term looks at."""
LANDMARKS = 118.0
"""smplify-kids takes the mean over the coordinates of its 59 landmarks, times this."""


FRAMES = 8
"""Frames whose derivatives are held at a time: some 40 MB."""


class ScanEnergy:
    """Half of the weighted sum of the terms of F frames, each by all parameters of its body.

    Args:
        body: the layer.
        seen: the frames.
        layout: of the landmarks.
        pose_prior: of the body's joints but the root.
        sample: points of each scan, and vertices, that the terms look at.
        exclude: pairs of faces that are no collision.
        backend: of the searches.
    """

    def __init__(
        self,
        body: BodyModel,
        seen: Frames,
        layout: KeypointLayout,
        pose_prior: MahalanobisPrior,
        *,
        sample: int = 600,
        exclude: Exclusions | None = None,
        backend: BackendName = "auto",
    ) -> None:
        self.body, self.seen, self.pose_prior = body, seen, pose_prior
        self.backend: BackendName = backend
        self.exclude = exclude
        asset, like = body.asset, seen.points
        self.points, self.point_weights = draw_points(seen.points, seen.weights, sample)
        self.scan, self.scan_weights = draw_points(seen.points, seen.weights, SCAN_SHARE * sample)
        spread = farthest_rows(torch.tensor(asset.template).to(like), sample // 2)
        back = part_vertices(asset, [name for name in TRUNK if name in asset.joint_names], facing=(0, 0, -1))
        back = back[:: max(1, len(back) // BACK)].to(like.device)
        self.num_spread = len(spread)
        self.vertices = torch.cat((spread, back))
        self.vertex_faces, self.vertex_corners = corners_at(body.faces, self.vertices, like)
        self.joints = KeypointJacobian(body, all_joints(body.asset.joint_names))
        self.landmarks = KeypointJacobian(body, layout) if seen.keypoints is not None else None
        self.surface = SurfaceJacobian(body)
        angles = torch.eye(3 * (body.num_joints - 1)).to(like)
        self.whitening = pose_prior.factor.mT @ angles[pose_prior.columns]
        self.bend = HyperextensionPrior(body)
        self.eye = eye_of(seen.camera, like).expand(len(like), 3)

    @torch.no_grad()
    def match(
        self,
        vectors: Float[Tensor, "b P"],
        rows: Int[Tensor, " b"],
        stage: ScanStage,
        before: Float[Tensor, "b J 3"] | None = None,
    ) -> Matches:
        """Visibility, and where the two frames before foretell joints: at ``J_1 + (J_1 - J_2) / 2``.

        Args:
            vectors: guesses of some frames.
            rows: their numbers.
            stage: whose terms are wanted.
            before: joints in them, if they follow each other and shall be foretold.
        """
        size = len(self.points)
        visible = vectors.new_zeros(size, self.body.num_vertices, dtype=torch.bool)
        meets = vectors.new_zeros(size, dtype=torch.bool)
        for some in torch.arange(len(rows), device=rows.device).split(FRAMES):
            frames, mesh = rows[some], self._vertices(vectors[some])
            visible[frames] = visible_vertices(mesh, self.body.faces, self.eye[frames], backend=self.backend)
            if stage.collision:
                found = find_collisions(mesh, self.body.faces, exclude=self.exclude, backend=self.backend)
                meets[frames] = (found.pairs[..., 0] >= 0).any(-1)
        foretold, known = vectors.new_zeros(size, self.body.num_joints, 3), vectors.new_zeros(size)
        if before is not None:
            last = torch.cat((before[:1], before[:-1]))
            foretold[rows] = last + (last - torch.cat((last[:1], last[:-1]))) / 2
            known[rows[1:]] = 1
        return Matches(visible, *visible_faces(visible, self.body.faces), meets, foretold, known)

    def joints_of(self, vectors: Float[Tensor, "b P"]) -> Float[Tensor, "b J 3"]:
        """Where the joints are [m]."""
        p = BodyParameters.from_vector(vectors, self.body)
        return self.body.keypoints(self.joints.layout, p)

    @torch.no_grad()
    def quadratic(
        self, vectors: Float[Tensor, "b P"], rows: Int[Tensor, " b"], stage: ScanStage, matches: Matches
    ) -> Quadratic:
        """Cost, gradient and normal matrix of some frames, by all parameters."""
        parts = []
        for some in torch.arange(len(vectors), device=vectors.device).split(FRAMES):
            terms = self._terms(vectors[some], rows[some], stage, matches)
            residuals = torch.cat([term.residuals for term in terms.values()], 1)
            jacobian = torch.cat([term.jacobian for term in terms.values()], 1)
            cost = torch.stack([term.cost for term in terms.values()]).sum(0)
            parts.append(Quadratic.of(residuals, jacobian, cost))
        return Quadratic(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def costs(
        self, vectors: Float[Tensor, "b P"], rows: Int[Tensor, " b"], stage: ScanStage, matches: Matches
    ) -> dict[str, Float[Tensor, " b"]]:
        """What each term adds to the cost of some frames."""
        parts = [
            {name: term.cost for name, term in self._terms(vectors[i], rows[i], stage, matches).items()}
            for i in torch.arange(len(vectors), device=vectors.device).split(FRAMES)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _terms(self, vectors: Tensor, rows: Tensor, stage: ScanStage, matches: Matches) -> dict[str, _Term]:
        p = BodyParameters.from_vector(vectors, self.body)
        pose = torch.cat((p.global_orient[:, None], p.body_pose), 1)
        arguments = (pose, p.betas, p.age_offset, p.transl)
        terms = self._surface_terms(vectors, arguments, rows, stage, matches)
        if self.landmarks is not None:
            terms["landmarks"] = self._landmark_term(self.landmarks(*arguments), rows, stage)
        if stage.smooth and matches.known.any():
            found = self.joints(*arguments)
            weight = (stage.smooth * matches.known[rows])[:, None, None]
            terms["smooth"] = _squares((found.points - matches.foretold[rows]), by_all(found), weight)
        orient, angles, num_betas = 3, vectors.shape[1] - 7 - p.betas.shape[1], p.betas.shape[1]
        by_pose = _columns(self.whitening.expand(len(vectors), -1, -1), orient, vectors.shape[1])
        terms["pose"] = _squares(
            self.pose_prior.residuals(p.body_pose), by_pose, vectors.new_tensor(stage.pose)
        )
        if stage.bend:
            terms["bend"] = self._bend_term(p.body_pose, stage, vectors.shape[1])
        by_shape = torch.eye(num_betas).to(vectors).expand(len(vectors), -1, -1)
        terms["shape"] = _squares(
            p.betas, _columns(by_shape, orient + angles, vectors.shape[1]), vectors.new_tensor(stage.shape)
        )
        if stage.collision:
            terms["collision"] = self._collision_term(vectors, matches.meets[rows], stage)
        return terms

    def _surface_terms(
        self, vectors: Tensor, arguments: tuple[Tensor, ...], rows: Tensor, stage: ScanStage, matches: Matches
    ) -> dict[str, _Term]:
        """Scan to mesh, mesh to scan and table: what moves is on the surface, so one Jacobian serves them."""
        faces, visible, mesh = self.body.faces, matches.visible[rows], self._vertices(vectors)
        points, weights = self.points[rows], self.point_weights[rows]
        weights = weights * matches.num_faces[rows, None].clamp(max=1)
        face = closest_of_some(points, mesh, faces, matches, rows, backend=self.backend)
        triangles = corners_of(mesh, faces, face)
        barycentric = closest_barycentric(points, triangles)
        pulls = [_Pull.of(interpolate(triangles, barycentric) - points, weights, stage.s2m, stage.rho_s2m)]
        places = [(face, barycentric)]
        spread, back = self.vertices[: self.num_spread], self.vertices[self.num_spread :]
        names = ["s2m"]
        if stage.m2s:
            scan, there = self.scan[rows], self.scan_weights[rows]
            gap = mesh[:, spread] - rows_of(
                scan, nearest_points(mesh[:, spread], scan, weights=there, backend=self.backend)
            )
            counted = visible[:, spread] * (there != 0).any(-1, keepdim=True)
            pulls.append(_Pull.of(gap, counted.to(weights), stage.m2s, stage.rho_m2s))
            places.append(self._at(len(rows), slice(self.num_spread)))
            names.append("m2s")
        if self.seen.plane is not None:
            normal, offset = self.seen.plane
            depth = plane_height(mesh[:, spread], normal, offset).clamp(max=0)
            pulls.append(_Pull.of(depth[..., None] * normal, torch.ones_like(depth), stage.inside, None))
            places.append(self._at(len(rows), slice(self.num_spread)))
            names.append("inside")
            if stage.close:
                height = plane_height(mesh[:, back], normal, offset)
                pulls.append(
                    _Pull.of(
                        height[..., None] * normal, torch.ones_like(height), stage.close, stage.rho_close
                    )
                )
                places.append(self._at(len(rows), slice(self.num_spread, None)))
                names.append("close")
        along = torch.cat([pull.along for pull in pulls], 1)
        where = (torch.cat(parts, 1) for parts in zip(*places, strict=True))
        moves = self.surface.rows(*arguments, *where, along=along).rows
        moves = moves.split([pull.along.shape[1] for pull in pulls], 1)
        return {
            name: _Term(pull.cost, pull.factor * pull.length, pull.factor[..., None] * move)
            for name, pull, move in zip(names, pulls, moves, strict=True)
        }

    def _at(self, count: int, which: slice) -> tuple[Int[Tensor, "b S"], Float[Tensor, "b S 3"]]:
        """Vertices as points on faces, in so many frames."""
        return self.vertex_faces[which].expand(count, -1), self.vertex_corners[which].expand(count, -1, -1)

    def _landmark_term(self, found: KeypointDerivatives, rows: Tensor, stage: ScanStage) -> _Term:
        assert self.seen.keypoints is not None
        assert self.seen.confidences is not None
        target, confidence = self.seen.keypoints[rows], self.seen.confidences[rows]
        pixels, by_point = project(camera_of(self.seen.camera, rows), found.points)
        difference = torch.where((confidence != 0)[..., None], pixels - target, 0)
        jacobian = by_point @ by_all(found)
        count = 2 * (confidence != 0).sum(-1).clamp(min=1)
        weight = (stage.landmarks * LANDMARKS * confidence.square() / count[:, None])[..., None]
        cost = weight * gmof(difference, stage.rho_landmarks)
        factor = torch.sqrt(weight) / (1 + (difference / stage.rho_landmarks).square())
        return _Term(
            cost.sum((1, 2)) / 2,
            (factor * difference).flatten(1),
            (factor[..., None] * jacobian).flatten(1, 2),
        )

    def _bend_term(self, body_pose: Tensor, stage: ScanStage, size: int) -> _Term:
        residuals = hyperextension_residuals(body_pose, joint_names=self.bend.names)
        by_angle = residuals[..., None] * self.bend.signs
        return _squares(residuals, _columns(by_angle, 3, size), residuals.new_tensor(stage.bend))

    def _collision_term(self, vectors: Tensor, meets: Tensor, stage: ScanStage) -> _Term:
        """One residual, the root of twice the cost; where nothing meets, no row moves anything."""
        cost, gradient = torch.zeros_like(vectors[:, 0]), torch.zeros_like(vectors)
        if meets.any():
            with torch.inference_mode(False), torch.enable_grad():
                some = vectors[meets].detach().clone().requires_grad_()
                met = stage.collision / 2 * self_intersection_loss(
                    self._vertices(some), self.body.faces, exclude=self.exclude, reduction="none",
                    backend=self.backend,
                )  # fmt: skip
                gradient[meets] = torch.autograd.grad(met.sum(), some)[0]
            cost[meets] = met.detach()
        root = torch.sqrt(2 * cost)[:, None]
        row = torch.where(root > 0, gradient / torch.where(root > 0, root, 1), 0)
        return _Term(cost, root, row[:, None])

    def _vertices(self, vectors: Tensor) -> Float[Tensor, "b V 3"]:
        p = BodyParameters.from_vector(vectors, self.body)
        return self.body(p).vertices


class _Term(NamedTuple):
    cost: Float[Tensor, " b"]
    residuals: Float[Tensor, "b R"]
    """With the Jacobian they give the gradient of the cost, which is bounded where their squares are not."""
    jacobian: Float[Tensor, "b R P"]


class _Pull(NamedTuple):
    """What draws points of the surface, each along its own direction."""

    cost: Float[Tensor, " b"]
    """Half of the weighted mean of `gmof` of lengths, or of their squares."""
    length: Float[Tensor, "b S"]
    along: Float[Tensor, "b S 3"]
    factor: Float[Tensor, "b S"]
    """Root of the weight with which least squares has the same gradient."""

    @classmethod
    def of(
        cls,
        differences: Float[Tensor, "b S 3"],
        weights: Float[Tensor, "b S"],
        weight: float,
        rho: float | None,
    ) -> _Pull:
        """The pull towards where the differences are zero; square without rho."""
        differences = torch.where((weights != 0)[..., None], differences, 0)
        weights = weight * weights / (weights != 0).sum(1, keepdim=True).clamp(min=1)
        length = safe_norm(differences)
        along = differences / torch.where(length == 0, 1, length)[..., None]
        if rho is None:
            return cls((weights * length.square()).sum(1) / 2, length, along, weights.sqrt())
        factor = weights.sqrt() / (1 + (length / rho).square())
        return cls((weights * gmof(length, rho)).sum(1) / 2, length, along, factor)


def _squares(residuals: Tensor, jacobian: Tensor, weight: Tensor) -> _Term:
    """Half of the weighted sum of squares; residuals (b, ...), weights that broadcast to them."""
    root = torch.sqrt(weight)
    residuals, jacobian = root * residuals, root[..., None] * jacobian
    flat = residuals.flatten(1)
    return _Term(flat.square().sum(1) / 2, flat, jacobian.flatten(1, -2))


def _columns(jacobian: Float[Tensor, "b R G"], first: int, size: int) -> Float[Tensor, "b R P"]:
    """Derivatives by a group of parameters as derivatives by all."""
    whole = jacobian.new_zeros(*jacobian.shape[:-1], size)
    whole[..., first : first + jacobian.shape[-1]] = jacobian
    return whole


@cache
def all_joints(names: tuple[str, ...]) -> KeypointLayout:
    """A body's joints as a layout, the same one for the same names."""
    return KeypointLayout("all joints", names, tuple(("joints", name) for name in names))


def farthest_rows(points: Float[Tensor, "V 3"], count: int) -> Int[Tensor, " S"]:
    """Rows of points that are spread evenly: each is the farthest from those before it."""
    chosen = [0]
    least = (points - points[0]).square().sum(-1)
    for _ in range(min(count, len(points)) - 1):
        chosen.append(int(least.argmax()))
        least = torch.minimum(least, (points - points[chosen[-1]]).square().sum(-1))
    return torch.tensor(chosen, device=points.device)


def corners_at(
    faces: Int[Tensor, "F 3"], vertices: Int[Tensor, " S"], like: Tensor
) -> tuple[Int[Tensor, " S"], Float[Tensor, "S 3"]]:
    """A face around each vertex, and its barycentric coordinates there."""
    row = torch.zeros(int(faces.max()) + 1, dtype=torch.int64, device=faces.device)
    row[faces.flatten()] = torch.arange(faces.numel(), device=faces.device)
    found = row[vertices]
    return found // 3, torch.nn.functional.one_hot(found % 3, 3).to(like)
