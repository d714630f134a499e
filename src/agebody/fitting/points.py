"""Bodies from points in space: joints and other keypoints, or the vertices of a mesh of the same topology."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import (
    Weights,
    apply_mask,
    expect,
    expect_numbers,
    flatten,
    read_confidences,
    read_count,
    read_positive,
)
from agebody.engine.batched import own_precision
from agebody.engine.trees import put_rows, take_rows, unflatten, where_rows, without_gradients
from agebody.fitting.inverse_kinematics import (
    PARENT_PRIOR,
    ROUGH_SD,
    STAY_PRIOR,
    CarriedPoints,
    Identity,
    Known,
    age_bounds,
    coefficients,
    solve_identity,
    to_local,
    to_parameters,
    to_world,
    turn_towards,
)
from agebody.fitting.patches import find_patches
from agebody.fitting.whole_body import coefficient_bounds
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import joint_limits
from agebody.losses.limits import clamp_to_limits
from agebody.mesh.topology import TopologyMap
from agebody.optim.least_squares import Stop
from agebody.optim.limits import JointLimitPrior
from agebody.optim.motion import Motion
from agebody.optim.problem import Stage
from agebody.optim.stages import BETA_BOUND, Fit, FitReport, fit_bodies, fit_error, fit_in_batches
from agebody.optim.state import Term
from agebody.optim.terms import Points, RestPosePrior, ShapePrior
from agebody.parameters import BodyParameters
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle

COARSE_SD = 0.01
"""Standard deviation of points in the first steps [m]: with a smaller one, steps in directions that the
points do not determine are short."""
ANGLE_SD = 1.0
"""Standard deviation of a joint's angles about rest [rad], for what the points do not determine."""
FIRST_STEPS = (10, 1e-2)
"""Maximum number of steps, and cost tolerance, before the identity is solved for once more."""
POINT_TOLERANCE = 1e-3
"""Cost tolerance of the steps after that: costs are some ten units."""
MESH_TOLERANCE = 1e-4
"""The same for patches of a mesh, whose noise alone costs thousands."""
BESIDE_KINK = 0.03
"""Distance from an age template's offset within which the other side of the template is tried, too."""
REFRESHES = 2
"""Number of times that the centers of partly visible patches are estimated again."""
MIN_POINTS = 3
"""Points of weight above 0 that a body must have."""
MIN_EXTENT = 2e-3
"""Extent up to which points are no body, such as those of missing people that are zeros [m]."""
MAX_SPREAD = 10.0
"""Points with a larger median distance from their mean are not in metres."""


@without_gradients
def fit_points(
    body: BodyModel,
    points: Float[Tensor, "*batch K 3"],
    layout: str | KeypointLayout = "smpl24",
    *,
    weights: Weights = None,
    betas: Float[Tensor, "*batch N"] | None = None,
    age_offset: float | Tensor | None = None,
    sd: float = 1e-3,
    max_iterations: int = 60,
    batch_size: int = 256,
) -> Fit:
    """Fit bodies to points in space: joints, or any keypoints.

    Finds the most probable body, ``½ Σ w |x - x_given|² / sd² + ½ |b|² + ½ |θ|²`` with the angles θ of the
    pose [rad]. The last term regularises what points do not determine: the twist of a head or a forearm about
    its own axis does not move its joints, and is therefore minimal. Angles beyond the ranges of motion of the
    age add ``½ (excess / 0.1 rad)²``. Betas stay within 5 standard deviations.

    The start is found in closed form: rotations by Procrustes over the points of each joint, then
    the identity over all ages; alternating, three times. Levenberg-Marquardt refines it.

    Args:
        body: a layer of one body; an `SMPLA` with ``smil=`` is two.
        points: (*batch, K, 3) [m].
        layout: of the points.
        weights: (*batch, K) confidences, or a mask. Points of weight 0 are ignored, even NaN.
        betas: (*batch, N) where they are known; found if None.
        age_offset: fixed value, a number or (*batch), NaN where it is not known; found between the body's age
            templates if None.
        sd: standard deviation of a coordinate [m]. With that of the noise, bodies are the most probable ones.
        max_iterations: maximum number of steps of Levenberg-Marquardt per pass: two passes, and one more for
            bodies that end beside an age template. 0 gives the closed form alone.
        batch_size: bodies fitted at a time, which bounds memory.

    Returns:
        Finite bodies, and errors [m]. A body with fewer than three points of weight above 0, with all of them
        in one place, or with one that is NaN or infinite, does not converge.

    Raises:
        AssetError: the body lacks points of the layout.
    """
    expect_body(body, single=True)
    layout = get_layout(layout)
    read_count("max_iterations", max_iterations)
    with own_precision(body.device):
        given = _read(body, "points", points, len(layout), weights, betas, age_offset, sd, layout)
        carried = body.for_layout(layout, CarriedPoints)

        find = partial(body.keypoints, layout)

        def fit(part: _Given) -> Fit:
            start = _closed_form(body, carried, find, lambda mesh: mesh, part, part.weights, sd)
            problem = _Problem(
                body,
                carried,
                find,
                part.points,
                part.weights,
                part.known,
                coarse_sd=max(sd, COARSE_SD),
                sd=sd,
                tolerance=POINT_TOLERANCE,
                max_iterations=max_iterations,
                limited=JointLimitPrior.applies_to(body),
            )
            return part.fit(*_refine(problem, start), start, find)

        return given.in_batches(fit, batch_size)


@without_gradients
def fit_vertices(
    body: BodyModel,
    vertices: Float[Tensor, "*batch V 3"],
    *,
    weights: Weights = None,
    betas: Float[Tensor, "*batch N"] | None = None,
    age_offset: float | Tensor | None = None,
    topology: TopologyMap | None = None,
    sd: float = 1e-3,
    max_iterations: int = 60,
    batch_size: int = 256,
) -> Fit:
    """Fit bodies to vertices, in the order of the body's own or of another topology.

    As `fit_points`, on the centers of some 200 patches of vertices that move together: they keep all of the
    information, as noise averages out over the vertices of a patch. The error is that of all vertices.

    Args:
        body, betas, age_offset, sd, batch_size: as in `fit_points`.
        vertices: (*batch, V, 3) [m].
        weights: (*batch, V). Vertices of weight 0 are ignored, even NaN: holes, or what a mesh lacks.
        topology: map from the body's vertices to those that are given, such as MHR's ``smpl2mhr``; None if
            they are the body's own. The fit is as exact as without: the map is of the body, not of the mesh.
        max_iterations: as in `fit_points`; where weights differ, all passes are made three times.
    """
    expect_body(body, single=True)
    read_count("max_iterations", max_iterations)
    with own_precision(body.device):
        if not isinstance(topology, TopologyMap | None):
            got = type(topology).__name__
            raise TypeError(f"topology: expected a TopologyMap, such as of TopologyMap.from_file, got {got}")
        if topology is not None and topology.num_source_vertices != body.num_vertices:
            raise ValueError(
                f"topology: expected a map from the body's {body.num_vertices} vertices, got one from "
                f"{topology.num_source_vertices}"
            )
        count = body.num_vertices if topology is None else len(topology)
        given = _read(body, "vertices", vertices, count, weights, betas, age_offset, sd)
        patches = find_patches(body.asset, topology)
        patches = patches._replace(owner=patches.owner.to(body.device))
        carried = body.for_layout(patches.layout, CarriedPoints)

        def find(*parameters: BodyParameters, **pose: Any) -> Tensor:
            mesh = body(*parameters, **pose).vertices
            return mesh if topology is None else topology(mesh)

        def fit(part: _Given) -> Fit:
            def centers(mesh: Tensor) -> Tensor:
                return patches.centers(mesh, part.weights)

            def target(guess: BodyParameters) -> Tensor:
                """Centers of whole patches: those of the guess, moved like the visible part of each patch."""
                mesh = find(guess)
                return patches.centers(mesh) + centers(part.points) - centers(mesh)

            weight = patches.sums(part.weights[..., None])[..., 0]
            start = _closed_form(body, carried, find, centers, part, weight, sd)
            problem = _Problem(
                body,
                carried,
                lambda **pose: patches.centers(find(**pose)),
                target(start),
                weight,
                part.known,
                coarse_sd=sd,
                sd=sd,
                tolerance=MESH_TOLERANCE,
                max_iterations=max_iterations,
                limited=False,
            )
            parameters, report = _refine(problem, start)
            for _ in range(0 if bool((part.weights == 1).all()) else REFRESHES):
                before = report.iterations
                parameters, report = _refine(problem._replace(target=target(parameters)), parameters)
                report = report._replace(iterations=before + report.iterations)
            return part.fit(parameters, report, start, find)

        return given.in_batches(fit, batch_size)


class _Given(NamedTuple):
    """The arguments, in a flat batch."""

    points: Float[Tensor, "B K 3"]
    """About their mean; zero where the weight is."""
    weights: Float[Tensor, "B K"]
    known: Known
    mean: Float[Tensor, "B 3"]
    finite: Bool[Tensor, " B"]
    """Whether all points of weight above 0 are finite."""
    extent: Float[Tensor, " B"]
    """Twice the largest distance of these points from the mean [m]."""
    batch: torch.Size

    def in_batches(self, fit: Callable[[_Given], Fit], batch_size: int) -> Fit:
        """Return all fits, given a function of some of the bodies."""
        device = self.points.device
        whole = fit_in_batches(lambda rows: fit(take_rows(self, rows)), len(self.points), batch_size, device)
        return unflatten(whole, self.batch)

    def fit(self, parameters: BodyParameters, report: FitReport, start: BodyParameters, find: Any) -> Fit:
        """Return the result, moved back from the mean, with failed fits flagged."""

        def error(found: BodyParameters) -> Tensor:
            return fit_error(find(found), self.points, self.weights)

        enough = ((self.weights > 0).sum(1) >= MIN_POINTS) & (self.extent > MIN_EXTENT)
        report = report._replace(
            converged=report.converged & enough & self.finite,
            stop=torch.where(self.finite, report.stop, int(Stop.NOT_FINITE)),
        )
        moved, found = parameters._replace(transl=parameters.transl + self.mean), error(parameters)
        return Fit(moved, report.accept(parameters.betas, error=found / self.extent), found, error(start))


def _read(
    body: BodyModel,
    name: str,
    points: Any,
    count: int,
    weights: Weights,
    betas: Tensor | None,
    age_offset: float | Tensor | None,
    sd: float,
    layout: KeypointLayout | None = None,
) -> _Given:
    expect(name, points, count, 3)
    read_positive("sd", sd, "a length", " [m]")
    if age_offset is not None and not body.age_anchors:
        raise ValueError("age_offset: this body has one age")
    batch = points.shape[:-2]

    def flat(tensor: Tensor, entry_dims: int) -> Tensor:
        return flatten(tensor.detach().to(body.dtype), batch, entry_dims)

    confidence = read_confidences(weights, points[..., 0], math.inf)
    try:
        known_betas = None if betas is None else flat(expect("betas", betas, body.num_coefficients), 1)
        known_age = torch.nan if age_offset is None else age_offset
        like = torch.empty(0, dtype=body.dtype, device=body.device)
        known_age = flat(expect_numbers("age_offset", known_age, like), 0)
    except RuntimeError:
        raise ValueError(
            f"betas, age_offset: expected leading dimensions that broadcast to {tuple(batch)}"
        ) from None
    if known_betas is not None and not known_betas.isfinite().all():
        raise ValueError("betas: expected finite numbers")
    if known_age.isinf().any():
        raise ValueError("age_offset: expected finite numbers, and NaN where it is not known")
    confidence = flat(confidence, 1)
    seen = apply_mask(flat(points, 2), confidence, 1)
    finite = seen.isfinite().flatten(1).all(1)
    confidence = torch.where(finite[:, None], confidence, 0)
    seen = apply_mask(seen, confidence, 1)
    total = confidence.sum(1)[:, None]
    mean = (confidence[..., None] * seen).sum(1) / torch.where(total > 0, total, 1)
    centered = apply_mask(seen - mean[:, None], confidence, 1)
    spread = torch.where(confidence > 0, centered.norm(dim=-1), torch.nan).nanmedian(1).values.nanmedian()
    if spread > MAX_SPREAD:
        raise ValueError(
            f"{name}: expected metres, got points {spread:.3g} from their mean; scale them first"
        )
    bounds = BETA_BOUND if layout is None else coefficient_bounds(body, layout, confidence)
    known = Known(known_betas, known_age, bounds)
    extent = 2 * centered.norm(dim=-1).amax(1)
    return _Given(centered, confidence, known, mean, finite, extent, batch)


def _closed_form(
    body: BodyModel,
    carried: CarriedPoints,
    find: Any,
    observe: Any,
    given: _Given,
    weights: Float[Tensor, "B K"],
    sd: float,
) -> BodyParameters:
    """Return rotations and identity solved for in turn; per body, the round of least error.

    Args:
        body: the layer.
        carried: the points that are compared.
        find: points or vertices of the body with these arguments.
        observe: the points that are compared, from these.
        given: the arguments of the fit.
        weights: of the points that are compared.
        sd: see `fit_points`.
    """
    target = observe(given.points)
    posed = observe(find().expand(*given.points.shape))
    shape = (len(target), body.num_joints, 3, 3)
    rotations = torch.eye(3, dtype=target.dtype, device=target.device).expand(shape)
    best, least = BodyParameters.zeros(body, len(target)), torch.full_like(target[:, 0, 0], torch.inf)
    for prior, round_sd in ((PARENT_PRIOR, ROUGH_SD), (STAY_PRIOR, ROUGH_SD), (STAY_PRIOR, sd)):
        rotations = turn_towards(carried, posed, target, weights, prior=prior) @ rotations
        local = to_local(carried, rotations)
        base = observe(find(global_orient=local[:, 0], body_pose=local[:, 1:], pose_format="matrix"))
        directions = carried.directions(rotations)
        identity = solve_identity(carried, directions, target - base, weights, given.known, sd=round_sd)
        growth = coefficients(identity, body.age_anchors)[:, None, :, None]
        posed = base + (directions[..., 1:] @ growth)[..., 0] + identity.transl[:, None]
        error = (weights * (posed - target).square().sum(-1)).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        guess = to_parameters(carried, rotations, identity)
        best = where_rows(better, guess, best)
    return best


class _Problem(NamedTuple):
    """A fit of bodies to points."""

    body: BodyModel
    carried: CarriedPoints
    find: Any
    """Points of the body with these arguments."""
    target: Float[Tensor, "B K 3"]
    weights: Float[Tensor, "B K"]
    known: Known
    coarse_sd: float
    """Standard deviation of points in the first steps [m]."""
    sd: float
    tolerance: float
    max_iterations: int
    limited: bool
    """Whether joints stay within their ranges of motion."""

    def take(self, rows: Tensor) -> _Problem:
        """Return the problem of some bodies."""
        target, weights, known = take_rows((self.target, self.weights, self.known), rows)
        return self._replace(target=target, weights=weights, known=known)


def _refine(problem: _Problem, start: BodyParameters) -> tuple[BodyParameters, FitReport]:
    """Return the most probable bodies near a start.

    Growth has a kink at each age template, where steps may end although the body is of another age. So after
    the first steps the identity is solved for over all ages, with the rotations found; and bodies that end
    beside a kink are fitted on its other side, too.
    """
    body, known = problem.body, problem.known
    low, high = age_bounds(body.age_anchors)
    unknown = known.age_offset.isnan()
    ages = torch.where(unknown, low, known.age_offset), torch.where(unknown, high, known.age_offset)
    iterations: Tensor | int = 0
    if problem.max_iterations:
        if problem.limited:
            start = start._replace(body_pose=_within_limits(body, start))
        start, first = _descend(problem, start, ages, problem.coarse_sd, *FIRST_STEPS)
        iterations = first.iterations
        start = start._replace(**_identity(problem, start)._asdict())
    last = problem.sd, problem.max_iterations, problem.tolerance
    parameters, report = _descend(problem, start, ages, *last)
    report = report._replace(iterations=report.iterations + iterations)
    knots = sorted({*body.age_anchors, 0.0})
    for low, kink, high in zip(knots, knots[1:], knots[2:], strict=False):
        beyond = parameters.age_offset - kink
        near = torch.nonzero((beyond.abs() < BESIDE_KINK) & unknown)[:, 0]
        if not len(near):
            continue
        below = (beyond < 0)[near]
        side = take_rows(parameters, near)
        side = side._replace(age_offset=torch.where(below, kink + BESIDE_KINK, kink - BESIDE_KINK))
        bounds = torch.where(below, kink, low), torch.where(below, high, kink)
        other = _descend(problem.take(near), side, bounds, *last)
        cheaper = other[1].cost < report.cost[near]
        iterations = report.iterations.index_add(0, near, other[1].iterations)
        better = take_rows(other, cheaper)
        parameters, report = put_rows((parameters, report), near[cheaper], better)
        report = report._replace(iterations=iterations)
    return parameters, report


def _descend(
    problem: _Problem,
    start: BodyParameters,
    ages: tuple[Tensor, Tensor],
    sd: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[BodyParameters, FitReport]:
    """Fit by Levenberg-Marquardt in all variables that are not known."""
    body, known = problem.body, problem.known
    terms: dict[str, Term | Motion] = {
        "points": Points(problem.carried.layout, problem.target, problem.weights),
        "shape": ShapePrior(),
        "pose": RestPosePrior(ANGLE_SD),
    }
    groups = ["global_orient", "body_pose", "transl"]
    if problem.limited:
        terms["limits"] = JointLimitPrior(body, start.age_offset)
    if known.betas is None:
        groups.append("betas")
    if bool(known.age_offset.isnan().any()):
        groups.append("age_offset")
    largest = known.bounds if known.betas is None else max(BETA_BOUND, float(known.betas.abs().amax()))
    steps = min(max_iterations, problem.max_iterations)
    stage = Stage({"points": float(sd) ** -2}, groups=groups, max_iterations=steps, cost_tolerance=tolerance)
    return fit_bodies(body, terms, [stage], start, age_bounds=ages, beta_bound=largest)


def _within_limits(body: BodyModel, parameters: BodyParameters) -> Float[Tensor, "B J 3"]:
    """Return the pose with each joint within its range of motion.

    Few points determine a rotation badly, and wrongly if the bones' lengths differ from the body's: a neck
    turned backwards may fit them better, and is a local minimum.
    """
    limits = joint_limits(body.asset.joint_names[1:], age_offset=parameters.age_offset)
    return matrix_to_axis_angle(clamp_to_limits(axis_angle_to_matrix(parameters.body_pose), limits))


def _identity(problem: _Problem, parameters: BodyParameters) -> Identity:
    """Return the best identity over all ages, for rotations as they are."""
    carried, vectors = problem.carried, (parameters.global_orient[:, None], parameters.body_pose)
    local = axis_angle_to_matrix(torch.cat(vectors, 1))
    base = problem.find(global_orient=local[:, 0], body_pose=local[:, 1:], pose_format="matrix")
    directions = carried.directions(to_world(carried, local))
    return solve_identity(
        carried, directions, problem.target - base, problem.weights, problem.known, sd=problem.sd
    )
