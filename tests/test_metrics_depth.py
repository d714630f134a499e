"""Depth relations against a loop over pairs, written from the definition."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agebody.age import AGE_CLASSES
from agebody.metrics import depth_relations, pcdr, pcod
from agebody.metrics.depth import DepthRelations

ADULT, TEEN, KID, BABY = range(4)


def crowd(images, people, seed):
    r = np.random.default_rng(seed)
    layers = r.integers(0, 3, (images, people))
    depth = layers + 0.3 * r.standard_normal((images, people))
    # of three uncertain things one each
    there, missed, ages = (
        r.random(layers.shape) < 0.8,
        r.random(layers.shape) < 0.2,
        r.integers(0, 4, layers.shape),
    )
    return [torch.from_numpy(part) for part in (depth, layers, there, missed & there, ages)]


def counted(depth, layers, there, missed, ages=None, kind=None):
    """Right pairs, pairs and missed people of all images."""
    right = pairs = lost = 0
    for image in range(len(depth)):
        for i in range(len(depth[image])):
            lost += bool(missed[image, i] and (kind is None or ages[image, i] == kind))
        for i, j in combinations(range(len(depth[image])), 2):
            if not (there[image, i] and there[image, j]) or missed[image, i] or missed[image, j]:
                continue
            if kind is not None and kind not in (ages[image, i], ages[image, j]):
                continue
            pairs += 1
            dz, order = depth[image, i] - depth[image, j], layers[image, i] - layers[image, j]
            if order == 0:
                right += bool(abs(dz) < 0.2)
            else:
                right += bool(dz < -0.2) if order < 0 else bool(dz > 0.2)
    return right, pairs, lost


@given(images=st.integers(0, 4), people=st.integers(0, 5), seed=st.integers(0, 9999))
def test_relations_are_those_of_a_loop_over_pairs(images, people, seed):
    depth, layers, there, missed, ages = crowd(images, people, seed)
    right, pairs, lost = counted(depth, layers, there, missed)
    hidden = torch.where(there & ~missed, depth, torch.nan)
    found = depth_relations(hidden, layers, weights=there, missed=missed)
    assert [part.shape for part in found] == [(images,)] * 3
    assert [part.sum().item() for part in found] == [right, pairs, lost]
    rate = pcdr(hidden, layers, weights=there, missed=missed)
    assert rate.isnan() if pairs == 0 else rate.item() == pytest.approx(right / (pairs + 0.3 * lost))
    by_age = pcdr(hidden, layers, age_classes=ages, weights=there, missed=missed)
    for kind in range(len(AGE_CLASSES)):
        right, pairs, lost = counted(depth, layers, there, missed, ages, kind)
        expected = right / (pairs + 0.3 * lost) if pairs else np.nan
        np.testing.assert_allclose(by_age[kind].item(), expected, rtol=1e-12)


def test_a_pair_belongs_to_the_classes_of_both():
    depth = torch.tensor([[1.0, 2.0, 9.0]])  # adult before baby, as it should; the third is missed
    layers, ages = torch.tensor([[0, 1, 2]]), torch.tensor([[ADULT, BABY, BABY]])
    missed = torch.tensor([[False, False, True]])
    found = pcdr(depth, layers, age_classes=ages, missed=missed)
    np.testing.assert_allclose(found, [1, np.nan, np.nan, 1 / 1.3], rtol=1e-6)  # float32
    assert pcdr(depth, layers, missed=missed).item() == pytest.approx(1 / 1.3)


@pytest.mark.parametrize(
    ("dz", "order", "right"),
    [
        (0.19, 0, 1), (-0.19, 0, 1), (0.21, 0, 0), (-0.21, 0, 0),
        (0.21, 1, 1), (0.19, 1, 0), (-0.5, 1, 0), (-0.21, -1, 1), (-0.19, -1, 0), (0.5, -1, 0), (0.21, 3, 1),
    ],
)  # fmt: skip
def test_one_pair(dz, order, right):
    depth, layers = torch.tensor([5 + dz, 5.0]), torch.tensor([4 + order, 4])
    assert pcdr(depth, layers) == right
    assert pcdr(depth.flip(0), layers.flip(0)) == right


def test_missed_people_of_unknown_layer_count_as_missed_and_form_no_pairs():
    depth, layers = torch.tensor([1.0, 2, 3]), torch.tensor([0, 1, -1])
    known, missed = layers >= 0, torch.tensor([0, 0, 1])
    assert depth_relations(depth, layers, weights=known) == (1, 1, 0)
    assert depth_relations(depth, layers, weights=known, missed=missed) == (1, 1, 1)


def test_true_depths_as_target():
    depth = torch.tensor([1.0, 1.15, 2.0])
    assert pcdr(depth, depth, same_layer=0.2) == 1
    assert pcdr(depth, depth) < 1  # 0.15 m apart are two layers, but no clear order
    assert pcdr(depth + 100, depth, same_layer=0.2) == 1
    assert pcdr(-depth, depth, same_layer=0.2).item() == pytest.approx(1 / 3)


def test_counts_add_up_over_images_and_not_rates():
    depth, layers, there, missed, _ = crowd(6, 4, 1)
    found = depth_relations(depth, layers, weights=there, missed=missed)
    whole = found.sum().rate()
    assert whole == pcdr(depth, layers, weights=there, missed=missed)
    assert whole != found.rate().nanmean()
    halves = [
        depth_relations(depth[part], layers[part], weights=there[part], missed=missed[part]).sum()
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert DepthRelations(*(a + b for a, b in zip(*halves, strict=True))).rate() == whole
    assert found.sum().rate(penalty=0) >= whole


def test_errors_name_the_argument(unchecked):
    depth, layers = torch.zeros(2, 3), torch.zeros(2, 3)
    for metric in (pcdr, pcod):
        with pytest.raises(ValueError, match="threshold: expected a length of 0 or more, got -1"):
            metric(torch.zeros(2, 3), torch.zeros(2, 3), threshold=-1)
    with pytest.raises(ValueError, match=r"target: expected shape \(2, 3\), got \(3,\)"):
        pcdr(depth, layers[0])
    with pytest.raises(ValueError, match=r"age_classes: expected shape \(2, 3\)"):
        pcdr(depth, layers, age_classes=layers[0].long())
    with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts to \(2, 3\)"):
        pcdr(depth, layers, weights=torch.ones(2))
    with pytest.raises(TypeError, match="pred: expected a floating type"):
        pcdr(depth.long(), layers)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_unknown_layers_are_in_no_pair(dtype):
    """-1 is unknown in the losses and in Relative Human; it is not a layer before the first."""
    depth, layers = torch.tensor([[2.0, 3.0, 1.0]]), torch.tensor([[0, 1, -1]], dtype=dtype)
    assert [part.item() for part in depth_relations(depth, layers)] == [1, 1, 0]
    assert pcdr(depth, layers, missed=torch.tensor([[False, False, True]])).item() == pytest.approx(1 / 1.3)
    classes = torch.tensor([[ADULT, ADULT, BABY]])
    assert pcdr(depth, layers, age_classes=classes)[BABY].isnan()


def test_true_depths_may_be_negative_but_not_nan():
    depth = torch.tensor([[-1.0, 0.0, 1.0]])
    assert depth_relations(depth, depth, same_layer=0.2).pairs == 3
    target = torch.tensor([[-1.0, torch.nan, 1.0]])
    assert depth_relations(depth, target, same_layer=0.2).pairs == 1


@given(images=st.integers(0, 4), people=st.integers(0, 5), seed=st.integers(0, 9999))
def test_ordinal_depth_is_that_of_a_loop_over_pairs(images, people, seed):
    depth, layers, there, missed, _ = crowd(images, people, seed)
    true = 0.25 * layers
    true[missed & (layers == 2)] = torch.nan
    seen = torch.where(missed, 100.0, depth)
    right = []
    for image in range(images):
        for i, j in combinations(range(people), 2):
            order = true[image, i] - true[image, j]
            if there[image, i] and there[image, j] and not order.isnan():
                dz = seen[image, i] - seen[image, j]
                right.append(bool(order * dz > 0 or max(abs(dz), abs(order)) < 0.3))
    found = pcod(torch.where(there & ~missed, depth, torch.nan), true, weights=there, missed=missed)
    np.testing.assert_allclose(found, np.mean(right) if right else np.nan)
    assert pcod(depth, true, reduction="none").shape == (images, people * (people - 1) // 2)


@pytest.mark.parametrize(
    ("dz", "order", "right"),
    [(0.01, 5.0, 1), (-0.01, 5.0, 0), (0.29, -0.29, 1), (0.31, -0.29, 0), (0.29, -0.31, 0), (0.0, 0.0, 1)],
)
def test_ordinal_depth_of_a_pair(dz, order, right):
    assert pcod(torch.tensor([0.0, dz]), torch.tensor([0.0, order])) == right
    hidden = torch.tensor([0.0, torch.nan])
    assert pcod(hidden, torch.tensor([0.0, 1.0]), missed=hidden.isnan()) == 1  # beyond all others
    assert pcod(hidden, torch.tensor([1.0, 0.0]), missed=hidden.isnan()) == 0


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32])
def test_layers_of_any_integer_type_are_in_order(kind):
    layers = torch.tensor([[0, 1, 2, 2]])
    depth = layers + 2.0
    assert pcdr(depth, layers.to(kind)) == 1
    assert pcdr(-depth, layers.to(kind)) == pcdr(-depth, layers)
