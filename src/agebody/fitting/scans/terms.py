"""Terms of fits to scans; visibility and predictions, which are updated between rounds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import apply_mask, safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.patches import farthest_points
from agebody.fitting.scans.clouds import Plane
from agebody.fitting.scans.frames import Frames, draw_points, order_points
from agebody.keypoints import KeypointLayout, joint_layout
from agebody.losses import MahalanobisPrior, part_vertices, plane_height, self_intersection_loss
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    corners_of,
    interpolate,
    nearest_points,
    rows_of,
    tree_order,
    visible_vertices,
)
from agebody.mesh.collisions import Exclusions, find_collisions
from agebody.optim.jacobian import SurfaceJacobian
from agebody.optim.state import Block, State, Term
from agebody.optim.terms import (
    HyperextensionPrior,
    Points,
    PosePrior,
    Reprojection,
    Robust,
    ShapePrior,
    robust_weights,
)
from agebody.parameters import BodyParameters

_SURFACE_TERMS = ("s2m", "m2s", "inside", "close", "collision")
TERMS = (*_SURFACE_TERMS, "keypoints", "smooth", "pose", "hyperextension", "shape")
"""Names of the terms, for the weights of stages."""
SCAN_SHARE = 4
"""Points of a scan in which vertices search their nearest, per point that searches the surface."""
BACK = 64
"""Number of vertices of the back in the contact term."""
LANDMARKS = 118.0
"""smplify-kids multiplies the mean over the coordinates of its 59 landmarks by this."""
FRAMES = 8
"""Frames whose visibility is computed together."""


class Matches(NamedTuple):
    """Visibility, collisions and predictions of b frames, computed once per round of a stage."""

    visible: Bool[Tensor, "b V"]
    """Vertices that are visible to the scanner."""
    faces: Bool[Tensor, "b T"]
    """Whether all corners are visible, of the faces in a `tree_order`."""
    meets: Bool[Tensor, " b"]
    """Whether a body intersects itself; False if collisions have no weight."""
    predicted: Float[Tensor, "b J 3"]
    """Joints as predicted from the two frames before [m]."""
    known: Float[Tensor, "b J"]
    """1 if they are predicted, 0 otherwise, as in the first frame."""


class ScanTerms:
    """Builds the terms of F frames of scans.

    They use ``sample`` points of each scan, and as many vertices. The pose prior is of all joints but the
    root, and excluded pairs of faces are no collision.
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
        self.body, self.seen, self.layout = body, seen, layout
        self.backend: BackendName = backend
        self.exclude = exclude
        asset, like = body.asset, seen.points
        self.points, self.point_weights = draw_points(seen.points, seen.weights, sample)
        self.scan, self.scan_weights = order_points(
            *draw_points(seen.points, seen.weights, SCAN_SHARE * sample), backend
        )
        at_rest = like.new_tensor(asset.template)[body.faces]
        self.order = tree_order(at_rest[None], backend=backend)[0]
        self.spread, _ = farthest_points(like.new_tensor(asset.template), sample // 2)
        back = part_vertices(asset, "trunk", facing=(0, 0, -1))
        self.back = back[:: max(1, len(back) // BACK)].to(like.device)
        self.joints = joint_layout(*asset.joint_names)
        self.surface = SurfaceJacobian(body)
        self.priors: dict[str, Term] = {"pose": PosePrior(pose_prior, body), "shape": ShapePrior()}
        if HyperextensionPrior.applies_to(body):
            self.priors["hyperextension"] = HyperextensionPrior(body)
        self.eye = seen.camera.position.expand(len(like), 3)

    def joints_of(self, vectors: Float[Tensor, "b P"]) -> Float[Tensor, "b J 3"]:
        """Return the joints of bodies [m]."""
        return self.body.keypoints(self.joints, BodyParameters.from_vector(vectors, self.body))

    @torch.no_grad()
    def match(
        self,
        vectors: Float[Tensor, "b P"],
        rows: Int[Tensor, " b"],
        *,
        collisions: bool = True,
        joints: Float[Tensor, "b J 3"] | None = None,
    ) -> Matches:
        """Compute visibility, and predict joints by ``J_1 + (J_1 - J_2) / 2`` from the two frames before.

        Args:
            vectors: current parameters of some frames.
            rows: indices of these frames.
            collisions: whether to find self-intersections.
            joints: current joints if the frames are consecutive and are to be predicted.
        """
        visible, meets = [], torch.zeros_like(rows, dtype=torch.bool)
        for some in torch.arange(len(rows), device=rows.device).split(FRAMES):
            mesh = self.body(BodyParameters.from_vector(vectors[some], self.body)).vertices
            eye = self.eye[rows[some]]
            visible.append(visible_vertices(mesh, self.body.faces, eye, backend=self.backend))
            if collisions:
                found = find_collisions(mesh, self.body.faces, exclude=self.exclude, backend=self.backend)
                meets[some] = (found.pairs[..., 0] >= 0).any(-1)
        predicted = vectors.new_zeros(len(rows), len(self.joints), 3)
        known = torch.zeros_like(predicted[..., 0])
        if joints is not None:
            last = torch.cat((joints[:1], joints[:-1]))
            predicted = last + (last - torch.cat((last[:1], last[:-1]))) / 2
            known[1:] = 1
        seen = torch.cat(visible)
        faces = seen[:, self.body.faces[self.order]].all(-1)
        return Matches(seen, faces, meets, predicted, known)

    def make(self, rows: Int[Tensor, " b"], matches: Matches) -> dict[str, Term]:
        """Return the terms of some frames by name, with their matches."""
        seen, surface, backend = self.seen, self.surface, self.backend
        points = self.points[rows], self.point_weights[rows]
        scan = self.scan[rows], self.scan_weights[rows]
        terms: dict[str, Term] = {
            "s2m": ScanToMesh(surface, *points, matches, self.order, backend),
            "m2s": MeshToScan(surface, *scan, self.spread, matches, backend),
            "smooth": Points(self.joints, matches.predicted, matches.known),
            "collision": SelfIntersection(surface, matches.meets, self.exclude, backend),
            **self.priors,
        }
        if seen.plane is not None:
            terms["inside"] = Penetration(surface, seen.plane, self.spread)
            terms["close"] = PlaneContact(surface, seen.plane, self.back)
        if seen.keypoints is not None and seen.confidences is not None:
            pixels, confidences = seen.keypoints[rows, None], seen.confidences[rows, None]
            count = 2 * (confidences != 0).sum(-1, keepdim=True).clamp(min=1)
            camera = seen.camera.expand(len(seen.points)).map(lambda part: part[rows, None])
            weights, unit = LANDMARKS * confidences.square() / count, torch.ones_like(pixels[..., 0, 0])
            terms["keypoints"] = Reprojection(self.layout, pixels, weights, camera, unit, robust_scale=1.0)
        return terms


class _SurfaceTerm:
    """Half of the weighted mean of robust costs of the distances of points of the surface.

    Each point is pulled along its own direction; derivatives keep its place on its triangle fixed.
    """

    robust: Robust = "gmof"
    robust_scale = 1.0
    """[m]"""

    def __init__(self, surface: SurfaceJacobian) -> None:
        self.surface = surface

    def _block(
        self,
        state: State,
        differences: Float[Tensor, "b S 3"],
        weights: Float[Tensor, "b S"],
        corners: Int[Tensor, "b S n"],
        shares: Float[Tensor, "b S n"] | None = None,
    ) -> Block:
        """Return the block of points with given ``differences`` from their targets, from target to point [m].

        Weights are divided by the number of points, see `_mean_weights`; the points are sums of corners, as
        in `SurfaceJacobian.rows`.
        """
        differences = apply_mask(differences, weights, 1)
        length = safe_norm(differences)
        along = differences / torch.where(length == 0, 1, length)[..., None]
        cost, robust = robust_weights(length.square(), self.robust, self.robust_scale)
        rows = self.surface.rows(state.posed(self.surface), corners, shares, along=along).rows
        root = torch.sqrt(weights * robust)
        jacobian = (root[..., None] * rows).index_select(-1, state.free.columns)
        return state.block(root * length, jacobian, (weights * cost).sum(1) / 2)


class ScanToMesh(_SurfaceTerm):
    """Distances of points of the scan from the visible surface (s2m); ``order`` is of the matches' faces."""

    def __init__(
        self,
        surface: SurfaceJacobian,
        points: Float[Tensor, "b S 3"],
        weights: Float[Tensor, "b S"],
        matches: Matches,
        order: Int[Tensor, " T"],
        backend: BackendName,
    ) -> None:
        super().__init__(surface)
        self.points, self.seen, self.order = points, matches.faces, order
        self.weights = _mean_weights(weights * self.seen.any(-1, keepdim=True))
        self.backend: BackendName = backend

    def __call__(self, state: State) -> Block:
        """See `_SurfaceTerm`."""
        points, mesh, faces = self.points[state.rows], state.vertices, state.body.faces
        seen, ordered = self.seen[state.rows], faces[self.order]
        found = closest_faces(points, mesh, ordered, among=seen, ordered=True, backend=self.backend)
        face = self.order[found]
        triangles = corners_of(mesh, faces, face)
        barycentric = closest_barycentric(points, triangles)
        differences = interpolate(triangles, barycentric) - points
        return self._block(state, differences, self.weights[state.rows], faces[face], barycentric)


class MeshToScan(_SurfaceTerm):
    """Distances of visible vertices, of those given, from the nearest point of the scan (m2s)."""

    def __init__(
        self,
        surface: SurfaceJacobian,
        scan: Float[Tensor, "b N 3"],
        scan_weights: Float[Tensor, "b N"],
        vertices: Int[Tensor, " S"],
        matches: Matches,
        backend: BackendName,
    ) -> None:
        super().__init__(surface)
        self.scan, self.scan_weights, self.vertices = scan, scan_weights, vertices
        seen = matches.visible[:, vertices] & (scan_weights != 0).any(-1, keepdim=True)
        self.weights = _mean_weights(seen.to(scan))
        self.backend: BackendName = backend

    def __call__(self, state: State) -> Block:
        """See `_SurfaceTerm`."""
        rows, points = state.rows, state.vertices[:, self.vertices]
        scan, weights = self.scan[rows], self.scan_weights[rows]
        nearest = nearest_points(points, scan, weights=weights, ordered=True, backend=self.backend)
        nearest = rows_of(scan, nearest)
        where = self.vertices.expand(len(rows), -1)[..., None]
        return self._block(state, points - nearest, self.weights[rows], where)


class PlaneContact(_SurfaceTerm):
    """Heights of vertices above a plane, such as those of the back above the table (close)."""

    robust_scale = 0.02

    def __init__(self, surface: SurfaceJacobian, plane: Plane, vertices: Int[Tensor, " S"]) -> None:
        super().__init__(surface)
        self.plane, self.vertices = plane, vertices

    def __call__(self, state: State) -> Block:
        """See `_SurfaceTerm`."""
        return self._plane_block(state, self._heights(state), self.vertices)

    def _heights(self, state: State) -> Float[Tensor, "b S"]:
        return plane_height(state.vertices[:, self.vertices], *self.plane)

    def _plane_block(self, state: State, heights: Tensor, vertices: Int[Tensor, " n"]) -> Block:
        weights = torch.full_like(heights, 1 / len(self.vertices))
        where = vertices.expand(len(heights), -1)[..., None]
        return self._block(state, heights[..., None] * self.plane.normal, weights, where)


class Penetration(PlaneContact):
    """Squared depths of vertices below a plane (inside); arguments as of `PlaneContact`."""

    robust = None

    def __call__(self, state: State) -> Block:
        """See `_SurfaceTerm`."""
        depths = self._heights(state).clamp(max=0)
        below = (depths < 0).any(0)  # derivatives of the others, most of them, are not needed
        return self._plane_block(state, depths[:, below], self.vertices[below])


class SelfIntersection:
    """Half of the self-intersection loss (collision), as one residual: the root of twice its cost.

    It is 0 in frames in which no body ``meets`` itself.
    """

    def __init__(
        self,
        surface: SurfaceJacobian,
        meets: Bool[Tensor, " b"],
        exclude: Exclusions | None,
        backend: BackendName,
    ) -> None:
        self.surface, self.meets, self.exclude = surface, meets, exclude
        self.backend: BackendName = backend

    def __call__(self, state: State) -> Block:
        """Return one residual."""
        meets, cost = self.meets[state.rows], torch.zeros_like(state.parameters.age_offset)
        by_vertex = torch.zeros_like(state.vertices)
        if meets.any():
            with torch.inference_mode(False), torch.enable_grad():
                mesh = state.vertices[meets].detach().clone().requires_grad_()
                options = {"exclude": self.exclude, "backend": self.backend}
                found = self_intersection_loss(mesh, state.body.faces, reduction="none", **options) / 2
                by_vertex[meets] = torch.autograd.grad(found.sum(), mesh)[0]
            cost[meets] = found.detach()
        moving = by_vertex.any(-1).any(0).nonzero()[:, 0]
        gradient = cost.new_zeros(len(cost), state.free.size)
        if len(moving):
            where, posed = moving.expand(len(cost), -1)[..., None], state.posed(self.surface)
            gradient = self.surface.rows(posed, where, along=by_vertex[:, moving]).rows.sum(1)
        root = torch.sqrt(2 * cost)[:, None]
        row = torch.where(root > 0, gradient / torch.where(root > 0, root, 1), 0)
        return state.block(root, row[:, None].index_select(-1, state.free.columns), cost)


def _mean_weights(weights: Float[Tensor, "b S"]) -> Float[Tensor, "b S"]:
    """Return the weights divided by the number of those that are not 0."""
    return weights / (weights != 0).sum(1, keepdim=True).clamp(min=1)
