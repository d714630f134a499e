import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody.losses import depth_layer_loss, fov_loss, relative_metric_loss

few = settings(max_examples=25)
both_forms = pytest.mark.parametrize("form", ["gated", "log"])
people = st.lists(st.tuples(st.floats(0.5, 8), st.integers(-1, 3)), max_size=6)
photos = st.lists(people, min_size=1, max_size=4)


def bev_pair(dz: float, dl: int, form: str) -> float | None:
    """What one pair costs; None where the gate is closed."""
    if dl == 0:
        return dz**2
    if form == "gated":
        if dl < 0 and not dz - 0.3 * dl > 0:
            return None
        if dl > 0 and not dz - 0.3 * dl < 0:
            return None
    return math.log1p(math.exp(dz if dl < 0 else -dz))


def bev(photo, form: str) -> list[float]:
    known = [(z, layer) for z, layer in photo if layer >= 0]
    costs = (bev_pair(b[0] - a[0], b[1] - a[1], form) for a, b in itertools.combinations(known, 2))
    return [cost for cost in costs if cost is not None]


def mean_of_means(costs: list[list[float]]) -> float:
    means = [sum(of_photo) / len(of_photo) for of_photo in costs if of_photo]
    return sum(means) / len(means) if means else 0.0


def padded(photos) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depths, layers and a mask, (photos, most people)."""
    size = max(len(photo) for photo in photos)
    depth = torch.full((len(photos), size), torch.nan, dtype=torch.float64)
    layer = torch.zeros(len(photos), size, dtype=torch.long)
    for row, photo in enumerate(photos):
        for column, (z, at) in enumerate(photo):
            depth[row, column], layer[row, column] = z, at
    return depth, layer, ~depth.isnan()


def in_a_row(photos) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depths, layers and the numbers of the images, which are not in order."""
    names = [7, 2**40, 0, 3]
    rows = [(z, layer, names[i]) for i, photo in enumerate(photos) for z, layer in photo]
    rows.sort(key=lambda row: math.sin(1e5 * row[0]))
    depth = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    layer, image = (torch.tensor([row[i] for row in rows], dtype=torch.long) for i in (1, 2))
    return depth, layer, image


@both_forms
@few
@given(photos)
def test_layers_are_bevs_pair_by_pair_padded_or_in_a_row(form, photos):
    costs = [bev(photo, form) for photo in photos]
    depth, layer, mask = padded(photos)
    loss = partial(depth_layer_loss, form=form)
    assert loss(depth, layer, weights=mask).item() == pytest.approx(mean_of_means(costs), rel=1e-12)
    total = loss(depth, layer, weights=mask, reduction="sum").item()
    assert total == pytest.approx(sum(map(sum, costs)), rel=1e-12)
    depth, layer, image = in_a_row(photos)
    assert loss(depth, layer, image=image).item() == pytest.approx(mean_of_means(costs), rel=1e-12)
    total = loss(depth, layer, image=image, reduction="sum").item()
    assert total == pytest.approx(sum(map(sum, costs)), rel=1e-12)


def test_the_gate_closes_a_margin_for_each_layer_beyond():
    apart = torch.tensor([-0.5, 0.0, 0.29, 0.31, 0.59, 0.61], dtype=torch.float64)
    depth = torch.stack((torch.zeros_like(apart), apart), -1)
    for layers, closed in (((0, 1), apart > 0.3), ((0, 2), apart > 0.6)):
        layer = torch.tensor(layers).expand(6, 2)
        costs = depth_layer_loss(depth, layer, reduction="none")[:, 0, 1]
        torch.testing.assert_close(costs, torch.where(closed, 0, torch.log1p(torch.exp(-apart))))
        swapped = depth_layer_loss(depth.flip(-1), layer.flip(-1), reduction="none")[:, 0, 1]
        torch.testing.assert_close(swapped, costs)
        wider = depth_layer_loss(depth, layer, margin=10.0, reduction="none")
        torch.testing.assert_close(wider, depth_layer_loss(depth, layer, form="log", reduction="none"))


def test_images_count_the_same_however_many_people_they_show():
    depth = torch.tensor([[1.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 4.0]])
    layer = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]) > 0
    # One pair a metre apart; three pairs of six, three metres apart.
    assert depth_layer_loss(depth, layer, weights=mask) == ((1 / 1) + (27 / 6)) / 2
    # An image whose every pair is in order does not count, nor does one person alone.
    far = torch.tensor([[1.0, 2.0], [1.0, 9.0], [5.0, 5.0]])
    layer = torch.tensor([[0, 0], [0, 1], [0, -1]])
    assert depth_layer_loss(far, layer) == 1
    log = depth_layer_loss(far, layer, form="log")
    assert log.item() == pytest.approx((1 + math.log1p(math.exp(-8))) / 2)


@both_forms
@few
@given(photo=people, shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_only_differences_and_not_the_order_of_people_matter(form, photo, shift, seed):
    depth, layer, _ = padded([photo])
    order = torch.randperm(len(photo), generator=torch.Generator().manual_seed(seed))
    loss = partial(depth_layer_loss, form="log")
    torch.testing.assert_close(loss(depth + shift, layer), loss(depth, layer))
    loss = partial(depth_layer_loss, form=form)
    torch.testing.assert_close(loss(depth[:, order], layer[:, order]), loss(depth, layer))
    raised = torch.where(layer >= 0, layer + 2, layer)
    torch.testing.assert_close(loss(depth, raised), loss(depth, layer))


@both_forms
def test_gradient_brings_people_into_order(form):
    depth = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    layer = torch.tensor([[0, 1, 1]])
    (slope,) = torch.autograd.grad(depth_layer_loss(depth, layer, form=form), depth)
    assert slope[0, 0] > 0 > slope[0, 1]
    assert slope.sum().abs() < 1e-15
    optimizer = torch.optim.SGD([depth], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        depth_layer_loss(depth, layer, form=form).backward()
        optimizer.step()
    first, second, third = depth[0].tolist()
    assert min(second, third) - first > 0.29
    assert abs(second - third) < 0.05


def test_far_depths_neither_overflow_nor_lose_digits():
    apart = [-1e4, -25.0, 40.0, 1e4]
    depth = torch.tensor([[0.0, dz] for dz in apart], dtype=torch.float64, requires_grad=True)
    costs = depth_layer_loss(depth, torch.tensor([[0, 1]]).expand(4, 2), form="log", reduction="none")
    # log(1 + exp(-40)) is 4e-18, 0 to a form that adds 1 first; torch's softplus is 1e-11 off at 25.
    expected = [1e4, 25 + math.log1p(math.exp(-25)), math.log1p(math.exp(-40)), 0]
    assert costs[:, 0, 1].tolist() == pytest.approx(expected, rel=1e-15)
    assert torch.autograd.grad(costs.sum(), depth)[0].isfinite().all()


def test_terms_are_of_pairs_above_the_diagonal():
    terms = depth_layer_loss(torch.tensor([1.0, 3.0, 6.0]), torch.tensor([0, 0, 0]), reduction="none")
    assert terms.tolist() == [[0, 4, 25], [0, 0, 9], [0, 0, 0]]
    terms = depth_layer_loss(
        torch.tensor([1.0, 3.0, 6.0]),
        torch.tensor([0, 0, 0]),
        image=torch.tensor([5, 9, 5]),
        reduction="none",
    )
    assert terms.tolist() == [[0, 0, 25], [0, 0, 0], [0, 0, 0]]


def test_images_of_other_rows_do_not_meet():
    depth, layer = torch.tensor([[1.0, 2, 4], [1.0, 2, 4]]), torch.zeros(2, 3, dtype=torch.long)
    image = torch.tensor([[0, 0, 1], [1, 0, 1]])
    assert depth_layer_loss(depth, layer, image=image) == (1 + 9) / 2
    assert depth_layer_loss(depth, layer, image=image, reduction="sum") == 10


def test_no_pair_gives_a_zero_that_has_a_gradient():
    """So that a process without a pair still takes part in the sum of all gradients."""
    for depth in (torch.zeros(0, requires_grad=True), torch.ones(1, requires_grad=True)):
        layer = torch.zeros(depth.shape, dtype=torch.long)
        for loss in (depth_layer_loss(depth, layer), relative_metric_loss(depth, depth.detach())):
            assert loss == 0
            (slope,) = torch.autograd.grad(loss, depth)
            assert (slope == 0).all()


@few
@given(photos, st.floats(0.1, 3))
def test_relative_metric_loss_pair_by_pair(photos, reach):
    target, _, mask = padded(photos)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pred = target + noise
    costs = []
    for row, photo in enumerate(photos):
        for i, j in itertools.combinations(range(len(photo)), 2):
            gap = target[row, j] - target[row, i]
            if abs(gap) <= reach:
                costs.append(math.log(1 + abs(pred[row, j] - pred[row, i] - gap)))
    expected = sum(costs) / max(len(costs), 1)
    loss = partial(relative_metric_loss, max_distance=reach)
    assert loss(pred, target, weights=mask).item() == pytest.approx(expected, rel=1e-12)
    image = torch.arange(len(photos))[:, None].expand_as(target)
    kept = partial(torch.masked_select, mask=mask)
    row = loss(kept(pred), kept(target), image=kept(image))
    assert row.item() == pytest.approx(expected, rel=1e-12)


def test_relative_metric_loss_is_blind_to_where_the_group_stands():
    target = torch.tensor([[2.0, 2.5, 2.9, 9.0]], dtype=torch.float64)
    assert relative_metric_loss(target + 3, target) < 1e-15
    pred = (1.5 * target).requires_grad_()
    loss = relative_metric_loss(pred, target)
    gaps = torch.tensor([0.5, 0.9, 0.4], dtype=torch.float64)
    torch.testing.assert_close(loss, torch.log(1 + 0.5 * gaps).mean())
    (slope,) = torch.autograd.grad(loss, pred)
    assert slope[0, 0] < 0 < slope[0, 2]
    assert slope[0, 3] == 0


def test_one_metre_is_still_close():
    target = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-6]])
    terms = relative_metric_loss(torch.zeros(2, 2), target, reduction="none")
    assert terms[:, 0, 1].tolist() == [pytest.approx(math.log(2)), 0]


def test_too_wide_a_field_of_view_counts_three_times():
    pred, target = torch.tensor([1.2, 0.8, 1.0]), torch.ones(3)
    terms = fov_loss(pred, target, reduction="none")
    torch.testing.assert_close(terms, torch.tensor([3 * 0.04, 0.04, 0]))
    torch.testing.assert_close(fov_loss(pred, target), torch.tensor(0.16 / 3))
    even = fov_loss(pred, target, over_weight=1.0, reduction="sum")
    torch.testing.assert_close(even, torch.nn.functional.mse_loss(pred, target, reduction="sum"))


def test_mistakes_are_named(unchecked):
    depth, layer = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="form: expected one of gated, log, metric-aware, got 'linear'"):
        depth_layer_loss(depth, layer, form="linear")
    with pytest.raises(ValueError, match=r"layer: expected shape \(2, 3\), got \(3,\)"):
        depth_layer_loss(depth, layer[0])
    for loss in (partial(depth_layer_loss, depth, layer), partial(relative_metric_loss, depth, depth)):
        with pytest.raises(TypeError, match="image: expected a torch.Tensor of integers, got torch.float32"):
            loss(image=depth)
        with pytest.raises(ValueError, match=r"image: expected shape \(2, 3\), got \(2,\)"):
            loss(image=layer[:, 0])
    with pytest.raises(ValueError, match=r"depth: expected shape \(\*batch, any\), got \(\)"):
        depth_layer_loss(torch.zeros(()), torch.zeros((), dtype=torch.long))
    with pytest.raises(ValueError, match="pred: expected shape"):
        relative_metric_loss(torch.zeros(()), torch.zeros(()))


def test_the_form_of_metric_aware_hmr_is_a_mean_over_the_pairs_of_all_images():
    """|dz| within a layer, log(1 + exp(-+dz)) between layers."""
    depth = torch.tensor([[2.0, 2.3, 4.0], [3.0, 1.0, torch.nan]]).double()
    layer = torch.tensor([[0, 0, 1], [0, 1, -1]])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    pairs = [0.3, softplus(-2.0), softplus(-1.7), softplus(2.0)]
    found = depth_layer_loss(depth, layer, form="metric-aware")
    assert found.item() == pytest.approx(sum(pairs) / 4)
    row = depth_layer_loss(
        depth[layer >= 0], layer[layer >= 0], image=torch.tensor([0, 0, 0, 1, 1]), form="metric-aware"
    )
    assert row.item() == pytest.approx(found.item())


def test_layers_of_unsigned_integers_are_in_order(unchecked):
    depth, layers = torch.tensor([[2.0, 1.0, 1.5]]), torch.tensor([[1, 0, 0]])
    found = depth_layer_loss(depth, layers.to(torch.uint8))
    torch.testing.assert_close(found, depth_layer_loss(depth, layers))
