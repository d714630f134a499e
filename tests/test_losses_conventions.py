"""What all losses of the toolkit have in common: masks, reductions, shapes, precision, errors."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from agebody import losses


class Case(NamedTuple):
    """How to call a loss, with tensors ``(*batch, *own, *entry)`` and labels ``(*batch, *own)``."""

    loss: Callable[..., torch.Tensor]
    own: tuple[int, ...] = ()
    entry: tuple[int, ...] = ()
    tensors: int = 2
    labels: int = 0
    frames: int = 1
    """How many frames make one term."""
    pairs: bool = False
    """Whether a term is of two people, each with a weight."""
    special_mean: bool = False
    """Whether "mean" is not that of all terms; those means have tests of their own."""
    any_entry: bool = False
    """Whether entries may have any size."""


CASES = {
    "reprojection": Case(losses.reprojection_loss, (5,), (2,)),
    "reprojection, l2": Case(partial(losses.reprojection_loss, penalty="l2"), (5,), (2,)),
    "reprojection, gmof": Case(
        partial(losses.reprojection_loss, penalty=partial(losses.gmof, rho=0.7)), (5,), (2,)
    ),
    "keypoints_3d": Case(losses.keypoints_3d_loss, (5,), (3,)),
    "rotation": Case(losses.rotation_loss, (3,), (3, 3)),
    "rotation, 6d": Case(partial(losses.rotation_loss, pose_format="rotation_6d"), (3,), (6,)),
    "rotation, quaternion": Case(partial(losses.rotation_loss, pose_format="quaternion"), (3,), (4,)),
    "geodesic": Case(partial(losses.geodesic_loss, pose_format="axis_angle"), (3,), (3,)),
    "betas": Case(losses.betas_loss, (), (4,), any_entry=True),
    "age_offset": Case(losses.age_offset_loss),
    "age_class": Case(losses.age_class_loss, tensors=1, labels=1, special_mean=True),
    "depth_layer": Case(losses.depth_layer_loss, (4,), tensors=1, labels=1, pairs=True, special_mean=True),
    "depth_layer, log": Case(
        partial(losses.depth_layer_loss, form="log"), (4,), tensors=1, labels=1, pairs=True, special_mean=True
    ),
    "relative_metric": Case(losses.relative_metric_loss, (4,), pairs=True, special_mean=True),
    "fov": Case(losses.fov_loss),
    "velocity": Case(losses.velocity_loss, (4, 2), (3,), tensors=1, any_entry=True, frames=2),
    "acceleration": Case(losses.acceleration_loss, (4, 2), (3,), tensors=1, any_entry=True, frames=3),
    "momentum": Case(
        partial(losses.acceleration_loss, momentum=0.5), (4, 2), (3,), tensors=1, any_entry=True, frames=3
    ),
    "angular_velocity": Case(
        partial(losses.angular_velocity_loss, pose_format="rotation_6d"), (4, 2), (6,), tensors=1, frames=2
    ),
}
each_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)
seeds = st.integers(0, 2**31)
few = settings(max_examples=4)  # of each of twenty losses


def draw(
    case: Case, batch: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Arguments and weights, a third of which are zero."""
    generator = torch.Generator().manual_seed(seed)
    entries = (*batch, *case.own)
    values = [
        torch.randn((*entries, *case.entry), generator=generator, dtype=dtype) for _ in range(case.tensors)
    ]
    labels = [torch.randint(-1, 4, entries, generator=generator) for _ in range(case.labels)]
    weights = torch.rand(entries, generator=generator, dtype=dtype)
    return [*values, *labels], torch.where(weights < 1 / 3, 0, weights)


def spoiled(case: Case, arguments: list[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
    """The arguments with NaN wherever the weight is zero."""
    masked = (weights == 0)[(..., *[None] * len(case.entry))]
    return [
        torch.where(masked, torch.nan, t) if t.is_floating_point() else t
        for t in arguments
    ]  # fmt: skip


def gradients(case: Case, arguments: list[torch.Tensor], weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in arguments]
    value = case.loss(*leaves, weights=weights)
    return torch.autograd.grad(value, [t for t in leaves if t.requires_grad])


@each_loss
@few
@given(batch=batches, seed=seeds)
def test_weight_0_reaches_neither_value_nor_gradient(case, batch, seed):
    arguments, weights = draw(case, batch, seed)
    hidden = spoiled(case, arguments, weights)
    for reduction in ("none", "sum", "mean"):
        expected = case.loss(*arguments, weights=weights, reduction=reduction)
        assert torch.equal(case.loss(*hidden, weights=weights, reduction=reduction), expected)
    masked = (weights == 0)[(..., *[None] * len(case.entry))]
    for got, expected in zip(
        gradients(case, hidden, weights), gradients(case, arguments, weights), strict=True
    ):
        assert torch.equal(got, expected)
        assert (torch.where(masked, got, 0) == 0).all()


@each_loss
@few
@given(batch=batches, seed=seeds)
def test_reductions_are_of_the_terms(case, batch, seed):
    arguments, weights = draw(case, batch, seed)
    terms = case.loss(*arguments, weights=weights, reduction="none")
    assert terms.shape[: len(batch)] == batch
    # Up to some hundred terms of order one, added in another order.
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)
    close(case.loss(*arguments, weights=weights, reduction="sum"), terms.sum())
    if not case.special_mean:
        together = weights.movedim(-2, 0).unfold(0, case.frames, 1).prod(-1) if case.frames > 1 else weights
        close(case.loss(*arguments, weights=weights), terms.sum() / (together.sum() or 1))


@each_loss
def test_terms_are_weighted(case):
    """Linearly where a term is of one entry, by the product where it is of several."""
    arguments, weights = draw(case, (2,), 1)
    loss = partial(case.loss, *arguments, reduction="none")
    power = 2 if case.pairs else case.frames
    torch.testing.assert_close(loss(weights=3 * weights), 3**power * loss(weights=weights))
    assert torch.equal(loss(weights=torch.ones_like(weights)), loss())
    assert torch.equal(loss(weights=weights != 0), loss(weights=(weights != 0).double()))
    row = torch.ones(weights.shape[-1:] if case.own else (), dtype=torch.float64)
    assert torch.equal(loss(weights=row), loss())


@each_loss
def test_no_people_are_0(case):
    arguments, weights = draw(case, (0,), 0)
    assert case.loss(*arguments, weights=weights) == case.loss(*arguments) == 0
    arguments, weights = draw(case, (3,), 0)
    nothing = torch.zeros_like(weights)
    assert case.loss(*spoiled(case, arguments, nothing), weights=nothing) == 0


@each_loss
def test_gradients_are_those_of_finite_differences(case):
    arguments, weights = draw(case, (2,), 5)
    labels = [t for t in arguments if not t.is_floating_point()]
    moving = [t.requires_grad_() for t in arguments if t.is_floating_point()]
    loss = lambda *t: case.loss(*t, *labels, weights=weights)  # noqa: E731
    assert torch.autograd.gradcheck(loss, moving, fast_mode=True)


@each_loss
def test_single_precision_stays_and_double_is_exact(case):
    arguments, weights = draw(case, (3,), 2)
    exact = case.loss(*arguments, weights=weights)
    assert exact.dtype == torch.float64
    halved = [t.float() if t.is_floating_point() else t for t in arguments]
    rounded = case.loss(*halved, weights=weights.float())
    assert rounded.dtype == torch.float32
    # Sums of positive terms of order one: their error is a few roundings, of the input's before all.
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-6)


@each_loss
def test_a_batch_is_its_items(case):
    arguments, weights = draw(case, (3,), 3)
    for reduction in ("sum", "mean"):
        loss = lambda *t, how=reduction: case.loss(*t[:-1], weights=t[-1], reduction=how)  # noqa: E731
        mapped = torch.func.vmap(loss)(*arguments, weights)
        one_by_one = torch.stack([loss(*items) for items in zip(*arguments, weights, strict=True)])
        torch.testing.assert_close(mapped, one_by_one, rtol=1e-12, atol=1e-14)


@each_loss
def test_no_host_synchronisation(case, unchecked):
    """Tensors without numbers in them raise where a number is asked for; weights are read on a CPU."""
    arguments, weights = draw(case, (3,), 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t) for t in (*arguments, weights)]
        found = case.loss(*fakes[:-1], weights=fakes[-1])
    assert found.shape == ()


@each_loss
def test_mistakes_are_named(case, unchecked):
    arguments, _ = draw(case, (3,), 4)
    wrong: list[tuple[type[Exception], str, list[Any], dict[str, Any]]] = [
        (TypeError, "weights: expected a torch.Tensor", arguments, {"weights": [1.0]}),
        (ValueError, "weights: expected a shape that broadcasts", arguments, {"weights": torch.ones(7)}),
        (ValueError, "reduction: expected one of", arguments, {"reduction": "average"}),
        (TypeError, "expected a floating type", [arguments[0].long(), *arguments[1:]], {}),
        (TypeError, "expected a torch.Tensor, got list", [[1.0], *arguments[1:]], {}),
    ]
    if case.tensors == 2:
        broadcast = [arguments[0], arguments[1][:1]]
        wrong.append((ValueError, "target: expected", broadcast, {}))
    if case.entry and not case.any_entry:
        wrong.append((ValueError, r"expected shape \(\*batch", [t[..., :-1] for t in arguments], {}))
    if case.labels:
        wrong += [
            (TypeError, "expected a torch.Tensor of integers", [arguments[0], arguments[0]], {}),
            (TypeError, "of integers", [arguments[0], arguments[1] > 0], {}),
            (ValueError, "expected shape", [arguments[0], arguments[1][:1]], {}),
        ]
    if case.frames > 1:
        wrong.append((ValueError, "times: expected a shape", arguments, {"times": torch.ones(5)}))
    for error, message, given_arguments, options in wrong:
        with pytest.raises(error, match=message):
            case.loss(*given_arguments, **options)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if case.tensors == 2]
)
@few
@given(batch=batches, seed=seeds)
def test_value_and_gradient_are_0_at_the_truth(case, batch, seed):
    (truth, _), weights = draw(case, batch, seed)
    # The 6D and quaternion conversions round; a rotation's angle to itself is of that order.
    assert case.loss(truth, truth, weights=weights, reduction="sum").abs() < 1e-13
    pulls = gradients(case, [truth, truth], weights)
    assert all(pull.isfinite().all() for pull in pulls)
    if case.loss is not losses.geodesic_loss and "geodesic" not in str(case.loss):
        assert all((pull.abs() < 1e-13).all() for pull in pulls)
