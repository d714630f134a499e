"""Bodies from points in space: joints and other keypoints, or the vertices of a mesh of the same topology."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor, nn

from agebody.assets.asset import BodyAsset
from agebody.body import BodyModel
from agebody.checks import Weights, apply_mask, expand_weights, expect, safe_norm
from agebody.engine.rowwise import own_precision
from agebody.fitting.inverse_kinematics import (
    PARENT_PRIOR,
    ROUGH_SIGMA,
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
from agebody.keypoints import KeypointLayout, get_layout
from agebody.optim.least_squares import Stop
from agebody.optim.stages import BETA_RANGE, Fit, FitReport, Stage, fit_bodies
from agebody.optim.terms import Block, Points, Shape, State
from agebody.parameters import BodyParameters
from agebody.rotations import axis_angle_to_matrix

COARSE_SIGMA = 0.01
"""[m] Trust in points of the first steps: where it is high from the start, steps along what the points leave
open are short."""
ANGLE_SD = 1.0
"""[rad] How far joints are turned away from rest, as far as the points do not say it."""
FIRST_STEPS = (10, 1e-2)
"""Steps at most, and the share of the cost that one must gain, until the identity is solved for once more."""
POINT_TOLERANCE = 1e-3
"""The same share for the steps after that: a cost of some ten units is known well enough then."""
MESH_TOLERANCE = 1e-4
"""The same where the points are patches of a mesh, whose noise alone costs thousands."""
BESIDE_KINK = 0.03
"""How near to an age template's offset a body's must end to be tried on the other side of it."""
REFRESHES = 2
"""How often the centers of patches that are seen in part are estimated anew."""
PATCHES = 200
"""About how many patches of vertices stand for a mesh."""
LEAST_PATCHES = 5
"""Of each part that one joint moves."""
LEAST_POINTS = 3
"""Points with a weight that a body must have."""


class PointFit(NamedTuple):
    """Bodies found from points."""

    parameters: BodyParameters
    report: FitReport
    residual: Float[Tensor, "*batch"]
    """Weighted mean distance of the points found from those given [m]."""


def fit_points(
    body: BodyModel,
    points: Float[Tensor, "*batch K 3"],
    layout: str | KeypointLayout = "smpl24",
    *,
    weights: Weights = None,
    betas: Float[Tensor, "*batch N"] | None = None,
    age_offset: float | Tensor | None = None,
    sigma: float = 1e-3,
    max_iterations: int = 60,
    chunk_size: int = 256,
) -> PointFit:
    """Bodies whose points lie at those given: joints, or any keypoints in space.

    The most probable body, ``½ Σ w |x − x_given|² / sigma² + ½ |b|² + ½ |θ|²`` with the angles θ of the
    pose [rad]. The last term decides what points cannot: joints alone do not tell how a head or a forearm is
    turned about its own axis, so it is turned as little as can be.

    The start is found in closed form: rotations by Procrustes over what each joint carries, then the
    identity, over all ages; in turn, thrice. Levenberg-Marquardt goes on, all bodies at once and each for
    itself.

    Args:
        body: a layer of one body: an `SMPLA` with ``smil=`` is two.
        points: (*batch, K, 3) [m].
        layout: what they are.
        weights: (*batch, K) confidences, or a mask. What weighs nothing may be NaN.
        betas: (*batch, N) where they are known; found if None.
        age_offset: a number or (*batch) where it is known, NaN where not; found, within the ages that the
            body has templates of, if None.
        sigma: standard deviation of a coordinate [m]. Give that of the noise: the less the points are to be
            trusted, the more probable are the bodies.
        max_iterations: steps of Levenberg-Marquardt at most, of each pass: two, and one more for bodies
            that end beside an age template. 0 gives the closed form alone.
        chunk_size: bodies at a time, which bounds memory.

    Returns:
        Finite bodies. One with fewer than three points that weigh something, or with one of those NaN or
        infinite, did not converge, and its report says so.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is no number where it must be one.
        AssetError: the body lacks points of the layout.
    """
    layout = get_layout(layout)
    with torch.no_grad(), own_precision(body.device):
        given = _read(body, "points", points, len(layout), weights, betas, age_offset, sigma)
        carried = _carried(body, layout)

        def fit(rows: slice) -> _Found:
            target, trust, known = given.points[rows], given.weights[rows], given.known.take(rows)
            find = functools.partial(body.keypoints, layout)
            start = _closed_form(body, carried, find, _same, target, trust, known, sigma)
            sigmas = max(sigma, COARSE_SIGMA), sigma
            problem = _Problem(
                body, carried, find, target, trust, known, sigmas, POINT_TOLERANCE, max_iterations
            )
            found = _refine(problem, start)
            return _Found(found, body.keypoints(layout, found.parameters))

        return _in_chunks(given, fit, chunk_size)


def fit_vertices(
    body: BodyModel,
    vertices: Float[Tensor, "*batch V 3"],
    *,
    weights: Weights = None,
    betas: Float[Tensor, "*batch N"] | None = None,
    age_offset: float | Tensor | None = None,
    sigma: float = 1e-3,
    max_iterations: int = 60,
    chunk_size: int = 256,
) -> PointFit:
    """Bodies whose mesh lies at given vertices, in the same order as the body's own.

    As `fit_points`. Vertices that move together are put together: the fit runs on the centers of some 200
    patches, in which no noise is lost that would average out over them, and its residual is that of all
    vertices.

    Args:
        body, betas, age_offset, sigma, chunk_size: as in `fit_points`.
        max_iterations: likewise, of each pass: where vertices weigh differently, all passes are made thrice.
        vertices: (*batch, V, 3) [m].
        weights: (*batch, V). What weighs nothing may be NaN: holes, or what a mesh lacks.

    Raises:
        TypeError, ValueError: as in `fit_points`.
    """
    with torch.no_grad(), own_precision(body.device):
        given = _read(body, "vertices", vertices, body.num_vertices, weights, betas, age_offset, sigma)
        patches = _patches(body)
        carried = _carried(body, patches.layout)

        def find(*parameters: BodyParameters, **pose: Any) -> Tensor:
            return body(*parameters, **pose).vertices

        def find_centers(**pose: Any) -> Tensor:
            return patches.centers(find(**pose))

        def fit(rows: slice) -> _Found:
            target, trust, known = given.points[rows], given.weights[rows], given.known.take(rows)
            centers = lambda mesh: patches.centers(mesh, trust)  # noqa: E731
            weight = patches.sums(trust[..., None])[..., 0]
            start = _closed_form(body, carried, find, centers, target, weight, known, sigma)

            def toward(guess: BodyParameters) -> Tensor:
                """Centers of whole patches: as far from the guess's as what is seen of them is from it."""
                mesh = find(guess)
                return patches.centers(mesh) + centers(target) - centers(mesh)

            ends = (sigma, sigma), MESH_TOLERANCE, max_iterations
            problem = _Problem(body, carried, find_centers, toward(start), weight, known, *ends)
            found = _refine(problem, start)
            whole = bool((trust == 1).all())
            for _ in range(0 if whole else REFRESHES):
                before = found.report.iterations
                found = _refine(problem._replace(target=toward(found.parameters)), found.parameters)
                found = found._replace(
                    report=found.report._replace(iterations=before + found.report.iterations)
                )
            return _Found(found, find(found.parameters))

        return _in_chunks(given, fit, chunk_size)


class RestPose:
    """Angles of the pose, ``½ Σ (θ / sd)²`` [rad]: what nothing else decides stays as at rest.

    Args:
        sd: angle that counts as a residual of 1 [rad].
    """

    def __init__(self, sd: float) -> None:
        self.sd = sd

    def __call__(self, state: State) -> Block | None:
        """Three residuals a joint."""
        pose = state.parameters.body_pose.flatten(1)
        slopes = torch.eye(pose.shape[-1], dtype=pose.dtype, device=pose.device) / self.sd
        return state.group_block("body_pose", pose / self.sd, slopes[None])


class _Given(NamedTuple):
    """What is asked for, over a flat batch."""

    batch: torch.Size
    points: Float[Tensor, "B K 3"]
    """About their middle; zero where they weigh nothing."""
    weights: Float[Tensor, "B K"]
    known: Known
    middle: Float[Tensor, "B 3"]
    sound: Tensor
    """(B) whether all that weighs something is finite."""


class _Found(NamedTuple):
    """Bodies of a chunk, and their points."""

    fit: Fit
    points: Float[Tensor, "B K 3"]


def _read(
    body: BodyModel,
    name: str,
    points: Any,
    count: int,
    weights: Weights,
    betas: Tensor | None,
    age_offset: float | Tensor | None,
    sigma: float,
) -> _Given:
    expect(name, points, count, 3)
    if getattr(body, "infant", None) is not None:
        raise ValueError("body: expected one body, got two with a switch between them (smil=)")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a length above 0 [m], got {sigma}")
    if age_offset is not None and not body.age_anchors:
        raise ValueError("age_offset: this body has one age")
    batch = points.shape[:-2]

    def flat(tensor: Tensor, *entry: int) -> Tensor:
        whole = tensor.detach().to(body.dtype).expand((*batch, *entry))
        return whole.reshape(math.prod(batch), *entry)

    weights = expand_weights(weights, points.shape[:-1])
    trust = points.new_ones(points.shape[:-1]) if weights is None else weights
    trust = trust.to(body.dtype)
    if bool((trust < 0).any()) or not bool(trust.isfinite().all()):
        raise ValueError("weights: expected finite numbers of 0 or more")
    try:
        known_betas = None if betas is None else flat(expect("betas", betas, body.num_betas), body.num_betas)
        age = torch.as_tensor(torch.nan if age_offset is None else age_offset, device=body.device)
        known_age = flat(age)
    except RuntimeError:
        raise ValueError(
            f"betas, age_offset: expected leading dimensions that broadcast to {tuple(batch)}"
        ) from None
    if known_betas is not None and not known_betas.isfinite().all():
        raise ValueError("betas: expected finite numbers")
    if known_age.isinf().any():
        raise ValueError("age_offset: expected finite numbers, and NaN where it is not known")
    trust = flat(trust, count)
    seen = apply_mask(flat(points, count, 3), trust, 1)
    sound = seen.isfinite().flatten(1).all(1)
    trust = torch.where(sound[:, None], trust, 0)
    seen = apply_mask(seen, trust, 1)
    total = trust.sum(1)[:, None]
    middle = (trust[..., None] * seen).sum(1) / torch.where(total > 0, total, 1)
    return _Given(
        batch,
        apply_mask(seen - middle[:, None], trust, 1),
        trust,
        Known(known_betas, known_age),
        middle,
        sound,
    )


def _in_chunks(given: _Given, fit: Any, chunk_size: int) -> PointFit:
    """The fits of all bodies, put together, with what did not count as one marked."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    people = len(given.points)
    found = []
    for first in range(0, max(1, people), chunk_size):
        found.append(fit(slice(first, first + chunk_size)))
    parameters = BodyParameters(*map(torch.cat, zip(*(f.fit.parameters for f in found), strict=True)))
    parameters = parameters._replace(transl=parameters.transl + given.middle)
    reports = [f.fit.report for f in found]
    join = lambda name: torch.cat([getattr(report, name) for report in reports])  # noqa: E731
    enough = (given.weights > 0).sum(1) >= LEAST_POINTS
    stop = torch.where(given.sound, join("stop"), int(Stop.NOT_FINITE))
    terms = {name: torch.cat([report.terms[name] for report in reports]) for name in reports[0].terms}
    distance = safe_norm(torch.cat([f.points for f in found]) - given.points)
    total = given.weights.sum(1)
    residual = (given.weights * distance).sum(1) / torch.where(total > 0, total, 1)
    shaped = lambda tensor: tensor.reshape((*given.batch, *tensor.shape[1:]))  # noqa: E731
    report = FitReport(
        shaped(join("converged") & enough & given.sound), shaped(join("iterations")), shaped(stop),
        shaped(join("cost")), {name: shaped(cost) for name, cost in terms.items()},
    )  # fmt: skip
    return PointFit(parameters.map(shaped), report, shaped(residual))


def _closed_form(
    body: BodyModel,
    carried: CarriedPoints,
    find: Any,
    observe: Any,
    target: Tensor,
    weights: Float[Tensor, "B K"],
    known: Known,
    sigma: float,
) -> BodyParameters:
    """Rotations and identity in turn; of each body the round that came nearest.

    Args:
        find: points or vertices of the body that is given as keywords.
        observe: what of them is compared: themselves, or the centers of patches.
        target: points or vertices, about their middle.
        weights: of what is compared.
    """
    aim = observe(target)
    posed = observe(find().expand(*target.shape))
    shape = (len(aim), body.num_joints, 3, 3)
    rotations = torch.eye(3, dtype=aim.dtype, device=aim.device).expand(shape)
    best, least = BodyParameters.zeros(body, len(aim)), torch.full_like(aim[:, 0, 0], torch.inf)
    for prior, trust in ((PARENT_PRIOR, ROUGH_SIGMA), (STAY_PRIOR, ROUGH_SIGMA), (STAY_PRIOR, sigma)):
        rotations = turn_towards(carried, posed, aim, weights, prior=prior) @ rotations
        local = to_local(carried, rotations)
        base = observe(find(global_orient=local[:, 0], body_pose=local[:, 1:], pose_format="matrix"))
        directions = carried.directions(rotations)
        identity = solve_identity(carried, directions, aim - base, weights, known, sigma=trust)
        growth = coefficients(identity, body.age_anchors)[:, None, :, None]
        posed = base + (directions[..., 1:] @ growth)[..., 0] + identity.transl[:, None]
        error = (weights * (posed - aim).square().sum(-1)).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        guess = to_parameters(carried, rotations, identity)
        best = BodyParameters(*(
            torch.where(better[(..., *[None] * (new.dim() - 1))], new, old)
            for new, old in zip(guess, best, strict=True)
        ))  # fmt: skip
    return best


class _Problem(NamedTuple):
    """Points to be met by bodies of a chunk, about their middle."""

    body: BodyModel
    carried: CarriedPoints
    find: Any
    """The points of the body that is given as keywords."""
    target: Float[Tensor, "B K 3"]
    weights: Float[Tensor, "B K"]
    known: Known
    sigmas: tuple[float, float]
    """Trust in the points at first, and in the end [m]."""
    tolerance: float
    max_iterations: int

    def take(self, rows: Tensor) -> _Problem:
        """Of some bodies."""
        return self._replace(
            target=self.target[rows], weights=self.weights[rows], known=self.known.take(rows)
        )


def _refine(problem: _Problem, start: BodyParameters) -> Fit:
    """The most probable bodies near a start.

    Growth has a kink at each age template, at which steps may end although the body is of another age. So
    after the first steps the identity is solved for once more, over all ages, with the rotations that they
    found; and those that end beside a kink are tried on its other side.
    """
    body, known = problem.body, problem.known
    low, high = age_bounds(body.age_anchors)
    unknown = known.age_offset.isnan()
    ages = torch.where(unknown, low, known.age_offset), torch.where(unknown, high, known.age_offset)
    coarse, fine = problem.sigmas
    iterations = torch.zeros_like(problem.weights[:, 0], dtype=torch.long)
    if problem.max_iterations:
        first = _descend(problem, start, ages, coarse, *FIRST_STEPS)
        iterations = first.report.iterations
        start = first.parameters._replace(**_identity(problem, first.parameters)._asdict())
    found = _descend(problem, start, ages, fine, problem.max_iterations, problem.tolerance)
    found = found._replace(report=found.report._replace(iterations=found.report.iterations + iterations))
    knots = sorted({*body.age_anchors, 0.0})
    for low, kink, high in zip(knots, knots[1:], knots[2:], strict=False):
        beyond = found.parameters.age_offset - kink
        near = torch.nonzero((beyond.abs() < BESIDE_KINK) & unknown)[:, 0]
        if not len(near):
            continue
        below = (beyond < 0)[near]
        side = found.parameters.map(lambda part, near=near: part[near])
        side = side._replace(age_offset=torch.where(below, kink + BESIDE_KINK, kink - BESIDE_KINK))
        bounds = torch.where(below, kink, low), torch.where(below, high, kink)
        other = _descend(
            problem.take(near), side, bounds, problem.sigmas[1], problem.max_iterations, problem.tolerance
        )
        found = _put(found, near, other)
    return found


def _descend(
    problem: _Problem,
    start: BodyParameters,
    ages: tuple[Tensor, Tensor],
    sigma: float,
    max_iterations: int,
    tolerance: float,
) -> Fit:
    """Levenberg-Marquardt in everything that is free."""
    body, known = problem.body, problem.known
    terms = {
        "points": (sigma**-2, Points(problem.carried.layout, problem.target, problem.weights)),
        "betas": (1.0, Shape()),
        "pose": (1.0, RestPose(ANGLE_SD)),
    }
    groups = ["global_orient", "body_pose", "transl"]
    if known.betas is None:
        groups.append("betas")
    if bool(known.age_offset.isnan().any()):
        groups.append("age_offset")
    largest = BETA_RANGE if known.betas is None else max(BETA_RANGE, float(known.betas.abs().amax()))
    steps = min(max_iterations, problem.max_iterations)
    stage = Stage(terms, groups, max_iterations=steps, cost_tolerance=tolerance)
    return fit_bodies(body, [stage], start, age_range=ages, beta_range=largest)


def _identity(problem: _Problem, parameters: BodyParameters) -> Identity:
    """The best of all identities for rotations as they are."""
    carried, vectors = problem.carried, (parameters.global_orient[:, None], parameters.body_pose)
    local = axis_angle_to_matrix(torch.cat(vectors, 1))
    base = problem.find(global_orient=local[:, 0], body_pose=local[:, 1:], pose_format="matrix")
    directions = carried.directions(to_world(carried, local))
    return solve_identity(
        carried, directions, problem.target - base, problem.weights, problem.known, sigma=problem.sigmas[1]
    )


def _put(fit: Fit, rows: Tensor, other: Fit) -> Fit:
    """The fits with some of them replaced by other ones, where these cost less; steps count in any case."""
    iterations = fit.report.iterations.index_add(0, rows, other.report.iterations)
    lower = other.report.cost < fit.report.cost[rows]
    put = lambda old, new: old.index_put((rows[lower],), new[lower])  # noqa: E731
    report = fit.report._replace(
        converged=put(fit.report.converged, other.report.converged), iterations=iterations,
        stop=put(fit.report.stop, other.report.stop), cost=put(fit.report.cost, other.report.cost),
        terms={name: put(cost, other.report.terms[name]) for name, cost in fit.report.terms.items()},
    )  # fmt: skip
    return Fit(BodyParameters(*map(put, fit.parameters, other.parameters)), report)


class Patches(nn.Module):
    """Vertices put together in patches, and these as points of a body.

    Args:
        body: the layer.
        layout: the patches' centers, see `patch_layout`.
    """

    owner: Tensor

    def __init__(self, body: BodyModel, layout: KeypointLayout) -> None:
        super().__init__()
        self.layout = layout
        _, rows = layout.resolve(body.asset)
        owner = torch.from_numpy(rows.tocsc().indices.astype(np.int64))
        self.register_buffer("owner", owner.to(body.device), persistent=False)

    def sums(self, entries: Float[Tensor, "B V D"]) -> Float[Tensor, "B K D"]:
        """Over each patch."""
        found = entries.new_zeros(len(entries), len(self.layout), entries.shape[-1])
        return found.index_add_(1, self.owner, entries)

    def centers(
        self, vertices: Float[Tensor, "B V 3"], weights: Float[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B K 3"]:
        """Weighted means; zero where nothing weighs."""
        weights = torch.ones_like(vertices[..., 0]) if weights is None else weights
        sums = self.sums(torch.cat((weights[..., None] * vertices, weights[..., None]), -1))
        return sums[..., :3] / torch.where(sums[..., 3:] > 0, sums[..., 3:], 1)


@functools.lru_cache(maxsize=8)
def patch_layout(asset: BodyAsset) -> KeypointLayout:
    """Centers of about ``PATCHES`` patches of vertices, each close together and moved most by one joint."""
    part = asset.skin_joints[np.arange(asset.num_vertices), asset.skin_weights.argmax(1)]
    owner = np.zeros(asset.num_vertices, int)
    count = 0
    for joint in np.unique(part):
        own = np.flatnonzero(part == joint)
        places = asset.template[own].astype(np.float64)
        share = round(PATCHES * len(own) / asset.num_vertices)
        owner[own] = count + _spread(places, min(len(own), max(LEAST_PATCHES, share)))
        count = owner.max() + 1
    rows = np.zeros((count, asset.num_vertices))
    rows[owner, np.arange(asset.num_vertices)] = 1
    rows /= rows.sum(1, keepdims=True)
    names = [f"patch {number}" for number in range(count)]
    return KeypointLayout.from_regressor(sparse.csr_array(rows), names, name="patches")


def _spread(places: np.ndarray, count: int) -> np.ndarray:
    """Which of so many seeds is nearest to each place; each seed is as far from those before as can be."""
    nearest, distance = np.zeros(len(places), int), np.full(len(places), np.inf)
    seed = int(np.linalg.norm(places - places.mean(0), axis=1).argmax())
    for number in range(count):
        away = np.linalg.norm(places - places[seed], axis=1)
        closer = away < distance
        nearest[closer], distance[closer] = number, away[closer]
        seed = int(distance.argmax())
    return nearest


def _patches(body: BodyModel) -> Patches:
    return body.for_layout(patch_layout(body.asset), Patches)


def _carried(body: BodyModel, layout: KeypointLayout) -> CarriedPoints:
    return body.for_layout(layout, CarriedPoints)


def _same(points: Tensor) -> Tensor:
    return points
