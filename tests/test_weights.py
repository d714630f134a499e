"""One rule of weights for all losses and metrics: 0 is left out, and means divide by the sum of weights."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

from agebody import losses, metrics

FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
"""Of a tetrahedron, counter-clockwise from outside."""
JOINTS = ("left_knee", "right_knee", "left_elbow", "right_elbow")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tetrahedra(count: int) -> torch.Tensor:
    """Bodies that overlap, (count, 4, 3)."""
    corners = torch.cat((torch.zeros(1, 3), torch.eye(3))).double()
    return corners - 0.25 + 0.1 * normal(count, 1, 3, seed=3)


class Case(NamedTuple):
    """A function, its tensors ``(*entries, ...)``, and what else it takes."""

    function: Callable[..., torch.Tensor]
    tensors: dict[str, torch.Tensor]
    entries: tuple[int, ...]
    others: dict[str, Any] = {}  # noqa: RUF012
    kept: tuple[int, ...] = ()
    """Points whose weight stays above zero, such as those of a root."""
    mask: bool = False
    """Whether any weight other than 0 counts as 1."""


def pair(*shape: int) -> dict[str, torch.Tensor]:
    return {"pred": normal(*shape, seed=1), "target": normal(*shape, seed=2)}


def plane(function: Callable[..., torch.Tensor]) -> Case:
    """Points on both sides of the plane y = 0."""
    others = {"normal": torch.tensor([0.0, 1, 0]).double(), "offset": torch.zeros(()).double()}
    return Case(function, {"points": normal(4, 5, 3)}, (4, 5), others)


def pose_prior(kind: type) -> Callable[..., torch.Tensor]:
    return kind.from_poses(normal(60, 4, 3, seed=5), joint_names=JOINTS, dtype=torch.float64)


BODIES = torch.cat((tetrahedra(4), tetrahedra(4) + 0.05), 1)
"""Two tetrahedra each, which pass through one another."""
LABELS = torch.tensor([0, 1, 2, 3])
CASES = {
    "reprojection_loss": Case(losses.reprojection_loss, pair(4, 5, 2), (4, 5)),
    "keypoints_3d_loss": Case(losses.keypoints_3d_loss, pair(4, 5, 3), (4, 5)),
    "rotation_loss": Case(losses.rotation_loss, pair(4, 5, 3, 3), (4, 5)),
    "geodesic_loss": Case(losses.geodesic_loss, pair(4, 5, 3), (4, 5), {"pose_format": "axis_angle"}),
    "betas_loss": Case(losses.betas_loss, pair(4, 10), (4,)),
    "age_offset_loss": Case(losses.age_offset_loss, pair(4), (4,)),
    "age_class_loss": Case(losses.age_class_loss, {"age_offset": normal(4)}, (4,), {"age_class": LABELS}),
    "depth_layer_loss": Case(losses.depth_layer_loss, {"depth": normal(4)}, (4,), {"layer": LABELS}),
    "relative_metric_loss": Case(losses.relative_metric_loss, pair(2, 6), (2, 6), {"max_distance": 9.0}),
    "fov_loss": Case(losses.fov_loss, pair(4), (4,)),
    "velocity_loss": Case(losses.velocity_loss, {"points": normal(2, 9, 3, 3)}, (2, 9, 3)),
    "acceleration_loss": Case(losses.acceleration_loss, {"points": normal(2, 9, 3, 3)}, (2, 9, 3)),
    "angular_velocity_loss": Case(
        losses.angular_velocity_loss, {"rotations": normal(2, 9, 3, 3, 3)}, (2, 9, 3)
    ),
    "shape_prior": Case(losses.shape_prior, {"betas": normal(4, 10), "age_offset": normal(4)}, (4,)),
    "hyperextension_prior": Case(
        partial(losses.hyperextension_prior, joint_names=JOINTS), {"body_pose": normal(4, 4, 3)}, (4,)
    ),
    "joint_limits_loss": Case(losses.joint_limits_loss, {"body_pose": normal(4, 23, 3)}, (4, 23)),
    "MahalanobisPrior": Case(pose_prior(losses.MahalanobisPrior), {"body_pose": normal(4, 4, 3)}, (4,)),
    "MaxMixturePrior": Case(pose_prior(losses.MaxMixturePrior), {"body_pose": normal(4, 4, 3)}, (4,)),
    "plane_loss penetration": plane(partial(losses.plane_loss, kind="penetration")),
    "plane_loss contact": plane(partial(losses.plane_loss, kind="contact")),
    "scan_to_mesh_loss": Case(
        losses.scan_to_mesh_loss,
        {"scan": normal(4, 9, 3)},
        (4, 9),
        {"vertices": tetrahedra(4), "faces": FACES},
    ),
    "mesh_to_scan_loss": Case(
        losses.mesh_to_scan_loss, {"vertices": normal(4, 9, 3)}, (4, 9), {"scan": normal(4, 7, 3, seed=1)}
    ),
    "self_intersection_loss": Case(
        losses.self_intersection_loss, {"vertices": BODIES}, (4,), {"faces": torch.cat((FACES, FACES + 4))}
    ),
    "person_intersection_loss": Case(
        losses.person_intersection_loss, {"vertices": tetrahedra(4)}, (4,), {"faces": FACES}
    ),
    "adversarial_loss": Case(partial(losses.adversarial_loss, real=True), {"scores": normal(4, 6)}, (4,)),
    "mpjpe": Case(partial(metrics.mpjpe, layout=None, root=[0, 1]), pair(4, 5, 3), (4, 5), kept=(0, 1)),
    "mpjpe scale": Case(
        partial(metrics.mpjpe, layout=None, root=[0], scale=True), pair(4, 5, 3), (4, 5), kept=(0,)
    ),
    "pa_mpjpe": Case(metrics.pa_mpjpe, pair(4, 5, 3), (4, 5)),
    "pve": Case(partial(metrics.pve, pred_root=None, target_root=None), pair(4, 5, 3), (4, 5)),
    "joint_errors": Case(partial(metrics.joint_errors, layout=None, reduction="mean"), pair(4, 5, 3), (4, 5)),
    "mpjae": Case(partial(metrics.mpjae, pose_format="axis_angle"), pair(4, 5, 3), (4, 5)),
    "mrpe": Case(metrics.mrpe, pair(4, 3), (4,)),
    "foot_sliding": Case(partial(metrics.foot_sliding, threshold=9.0), pair(2, 9, 5, 3), (2, 9, 5)),
    "joint_limit_violations": Case(
        partial(metrics.joint_limit_violations, tolerance=0.5), {"body_pose": normal(4, 23, 3)}, (4, 23)
    ),
    "stature_error": Case(metrics.stature_error, pair(4), (4,)),
    "w_mpjpe": Case(partial(metrics.w_mpjpe, segment=4), pair(2, 9, 5, 3), (2, 9, 5)),
    "w_mpjpe all": Case(partial(metrics.w_mpjpe, align="all", segment=4), pair(2, 9, 5, 3), (2, 9, 5)),
    "root_trajectory_error": Case(metrics.root_trajectory_error, pair(2, 9, 3), (2, 9)),
    "acceleration_error": Case(metrics.acceleration_error, pair(2, 9, 5, 3), (2, 9, 5)),
    "jitter": Case(metrics.jitter, {"points": normal(2, 9, 5, 3)}, (2, 9, 5)),
    "pck": Case(partial(metrics.pck, threshold=1.5), pair(4, 5, 3), (4, 5), mask=True),
    "pck_auc": Case(partial(metrics.pck_auc, max_threshold=3.0), pair(4, 5, 3), (4, 5), mask=True),
    "mpckh": Case(partial(metrics.mpckh, threshold=0.7), pair(4, 5, 2), (4, 5), mask=True),
    "oks": Case(
        metrics.oks, pair(4, 5, 2), (4, 5), {"sigmas": (0.3,) * 5, "area": 9 + normal(4).abs()}, mask=True
    ),
    "pcdr": Case(metrics.pcdr, pair(4, 5), (4, 5), mask=True),
    "pcod": Case(metrics.pcod, pair(4, 5), (4, 5), mask=True),
    "per_joint": Case(metrics.per_joint, {"terms": normal(6, 3)}, (6, 3), mask=True),
}
METRICS = [
    name
    for name, case in CASES.items()
    if getattr(case.function, "func", case.function).__module__.startswith("agebody.metrics")
]
EXACT = {"rtol": 1e-12, "atol": 1e-14}
each = pytest.mark.parametrize("name", CASES)


def weights_of(name: str, *, seed: int = 0) -> torch.Tensor:
    """About a quarter of them 0, none above 1."""
    case = CASES[name]
    weights = torch.rand(case.entries, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.where(weights < 0.25, 0, weights)
    weights[(-1,) * len(case.entries)] = 0
    weights[..., list(case.kept)] = 0.5
    return weights


def call(name: str, weights: torch.Tensor | None, *, spoiled: bool = False, **options: Any) -> torch.Tensor:
    """Call a function; if spoiled, with NaN in all entries of weight 0."""
    case, given = CASES[name], dict(CASES[name].tensors)
    if spoiled:
        assert weights is not None
        for key, tensor in given.items():
            left_out = (weights == 0)[(..., *[None] * (tensor.dim() - len(case.entries)))]
            given[key] = torch.where(left_out, torch.nan, tensor)
    return case.function(**given, **case.others, weights=weights, **options)


def test_the_table_is_complete():
    """All public functions with weights and a mean: those that reduce, and two that have one mean only."""
    found = set()
    for module in (losses, metrics):
        for name in module.__all__:
            thing = getattr(module, name)
            function = getattr(thing, "forward", thing)
            if callable(thing) and {"weights", "reduction"} <= set(inspect.signature(function).parameters):
                found.add(name)
    assert found | {"pcdr", "per_joint"} == {name.split()[0] for name in CASES}


@each
def test_a_common_factor_changes_no_mean(name):
    weights = weights_of(name)
    mean = call(name, weights)
    assert mean.isfinite().all()
    assert mean.any()
    for factor in (0.25, 8.0):  # powers of two: their products round nowhere
        torch.testing.assert_close(call(name, factor * weights), mean, **EXACT)
    torch.testing.assert_close(call(name, torch.full_like(weights, 0.5)), call(name, None), **EXACT)


@each
def test_weight_0_is_left_out_even_where_it_is_nan(name):
    weights = weights_of(name)
    assert (weights == 0).any()
    torch.testing.assert_close(call(name, weights, spoiled=True), call(name, weights), rtol=0, atol=0)


@each
def test_a_mask_is_weights_of_0_and_1(name):
    mask = weights_of(name) != 0
    torch.testing.assert_close(call(name, mask, spoiled=True), call(name, mask.double()), **EXACT)
    if CASES[name].mask:
        torch.testing.assert_close(call(name, mask), call(name, weights_of(name)), **EXACT)


@each
def test_weights_have_no_part_in_the_dtype(name):
    """Confidences of NumPy are float64; a prediction of float32 keeps its loss in float32."""
    case, weights = CASES[name], weights_of(name)

    def single(given: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for key, value in given.items()
        }

    prior = isinstance(case.function, torch.nn.Module)
    function: Any = copy.deepcopy(case.function).float() if prior else case.function
    given = single(case.tensors) | single(case.others)
    expected = function(**given, weights=weights.float())
    torch.testing.assert_close(function(**given, weights=weights), expected)


@each
def test_without_an_entry_losses_are_0_and_metrics_nan(name):
    weights = torch.zeros(CASES[name].entries, dtype=torch.float64)
    mean = call(name, weights, spoiled=True)
    assert mean.isnan().all() if name in METRICS else (mean == 0).all()
    if name not in ("pcdr", "per_joint"):
        assert call(name, weights, spoiled=True, reduction="sum") == 0


@each
def test_without_people_losses_are_0_and_metrics_nan(name):
    case = CASES[name]
    people = case.entries[0]

    def empty(given: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value[:0] if isinstance(value, torch.Tensor) and value.shape[:1] == (people,) else value
            for key, value in given.items()
        }

    others = {key: value for key, value in case.others.items() if key != "faces"}
    faces = {key: value for key, value in case.others.items() if key == "faces"}
    mean = case.function(**empty(case.tensors), **empty(others), **faces)
    assert mean.isnan().all() if name in METRICS else (mean == 0).all()


OF_SEVERAL = ("age_class_loss", "depth_layer_loss", "person_intersection_loss")
"""Their means are of classes, or of pairs."""


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if len(case.entries) == 1 and name not in OF_SEVERAL]
)
def test_a_mean_of_people_divides_by_the_sum_of_their_weights(name):
    case, weights = CASES[name], weights_of(name, seed=2)
    alone = torch.stack(
        [call(name, torch.eye(case.entries[0], dtype=torch.float64)[i]) for i in range(case.entries[0])]
    )
    torch.testing.assert_close(call(name, weights), (weights * alone).sum() / weights.sum(), **EXACT)
    terms = call(name, weights, reduction="none")
    torch.testing.assert_close(terms, weights * alone, **EXACT)
    torch.testing.assert_close(call(name, weights, reduction="sum"), terms.sum(), **EXACT)
