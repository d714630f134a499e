"""Assignments against all assignments there are, and against the published way, walked through literally."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from agebody.metrics import detection_scores, match, match_keypoints, normalized_error
from agebody.metrics.matching import MATCHING_RULES, MatchingRule, box_iou, keypoint_boxes, keypoint_distances

SIZES = st.tuples(st.integers(0, 4), st.integers(0, 4))
SEEDS = st.integers(0, 10_000)


def random(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_of(matches):
    return list(zip(matches.pred.tolist(), matches.target.tolist(), strict=True))


def best_pairs(cost, allowed):
    """Of all assignments those of most pairs, and of these the cheapest, by trying each."""
    rows, columns = cost.shape
    best = (0, 0.0)
    for order in permutations([*range(columns), *[None] * rows], rows):
        chosen = [(i, j) for i, j in enumerate(order) if j is not None and allowed[i, j]]
        best = max(best, (len(chosen), -sum(float(cost[pair]) for pair in chosen)))
    return best


@given(size=SIZES, seed=SEEDS)
def test_hungarian_is_the_best_of_all_assignments(size, seed):
    cost, allowed = random(seed, *size), random(seed + 1, *size) < 0.6
    found = pairs_of(match(cost, allowed=allowed, method="hungarian"))
    number, value = best_pairs(cost, allowed)
    assert len(found) == number
    assert all(allowed[pair] for pair in found)
    # A sum of four numbers below 1: a few roundings.
    assert sum(float(cost[pair]) for pair in found) == pytest.approx(-value, abs=1e-14)


@given(size=SIZES, seed=SEEDS, method=st.sampled_from(["greedy", "hungarian"]))
def test_everybody_is_matched_or_left_once(size, seed, method):
    cost = random(seed, *size)
    found = match(cost, allowed=random(seed + 1, *size) < 0.5, method=method)
    assert sorted([*found.pred.tolist(), *found.false_positives.tolist()]) == list(range(size[0]))
    assert sorted([*found.target.tolist(), *found.missed.tolist()]) == list(range(size[1]))
    assert found.pred.tolist() == sorted(found.pred.tolist())


@given(size=SIZES, seed=SEEDS)
def test_greedy_takes_the_cheapest_free_pair_again_and_again(size, seed):
    cost, allowed = random(seed, *size), random(seed + 1, *size) < 0.7
    left = torch.where(allowed, cost, torch.inf).numpy().copy()
    expected = []
    while left.size and np.isfinite(left.min()):
        i, j = np.unravel_index(left.argmin(), left.shape)
        expected.append((int(i), int(j)))
        left[i], left[:, j] = np.inf, np.inf
    assert pairs_of(match(cost, allowed=allowed)) == sorted(expected)


def test_greedy_and_hungarian_differ_where_they_should():
    cost = torch.tensor([[1.0, 2.0], [1.5, 10.0]])
    assert pairs_of(match(cost)) == [(0, 0), (1, 1)]
    assert pairs_of(match(cost, method="hungarian")) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("method", ["greedy", "hungarian"])
def test_pairs_that_cost_no_number_are_never_matched(method):
    cost = torch.tensor([[torch.nan, torch.inf], [torch.inf, -3.0]])
    assert pairs_of(match(cost, method=method)) == [(1, 1)]
    assert pairs_of(match(cost[:1], method=method)) == []


@given(size=SIZES, seed=SEEDS, invalid=st.floats(0, 0.6))
def test_stopping_early_equals_the_published_loop(size, seed, invalid):
    """The loop as it is published, with a list of pairs and one minimum at a time."""
    cost, allowed = random(seed, *size), random(seed + 1, *size) < 0.6
    valid = random(seed + 2, size[1]) >= invalid
    errors = {(i, j): float(cost[i, j]) for i in range(size[0]) for j in range(size[1])}
    mine, theirs, refused, expected = set(), set(), 0, []
    while len(theirs) < size[1] and len(mine) + refused < size[0]:
        decided = False
        while errors and not decided:
            pair = min(errors, key=errors.__getitem__)
            del errors[pair]
            if not allowed[pair]:
                refused, decided = refused + 1, True
            elif pair[0] not in mine and pair[1] not in theirs:
                decided = True
            if decided and not valid[pair[1]]:
                theirs.add(pair[1])
            elif decided and allowed[pair]:
                mine.add(pair[0])
                theirs.add(pair[1])
                expected.append(pair)
        if not errors:
            break
    found = match(cost, allowed=allowed, stop_early=True, valid=valid)
    assert pairs_of(found) == sorted(expected)
    everybody = {*found.target.tolist(), *found.missed.tolist()}
    assert everybody == set(torch.where(valid)[0].tolist())


@pytest.mark.parametrize("method", ["greedy", "hungarian"])
def test_invalid_people_are_neither_matched_nor_missed(method):
    cost, valid = torch.tensor([[1.0, 2.0, 9.0], [1.5, 10.0, 9.0]]), torch.tensor([False, True, True])
    found = match(cost, valid=valid, method=method)
    assert pairs_of(found) == [(0, 1), (1, 2)]
    alone = match(cost[:1, :1], valid=valid[:1], method=method)
    assert (alone.false_positives.tolist(), alone.missed.tolist()) == ([0], [])


def test_stopping_early_loses_people():
    cost = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    allowed = torch.tensor([[False, False], [True, True]])
    assert pairs_of(match(cost, allowed=allowed)) == [(1, 0)]
    assert pairs_of(match(cost, allowed=allowed, stop_early=True)) == []


@given(seed=SEEDS)
def test_iou_is_that_of_a_public_package(seed):
    corners = random(seed, 6, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], -1)
    sized = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], -1).numpy()
    expected = mask.iou(sized[:2], sized[2:], [0] * 4)
    # Sides are differences of numbers up to 1: roundings of 1e-16 in areas that may be as small as 1e-4.
    np.testing.assert_allclose(box_iou(boxes[:2], boxes[2:]), expected, rtol=0, atol=1e-10)


def test_iou_of_pixels_counts_both_ends():
    one = torch.tensor([[0.0, 0, 1, 1]])  # 2 x 2 pixels
    other = torch.tensor([[1.0, 1, 2, 2], [2, 2, 3, 3], [torch.nan, 0, 1, 1]])
    assert box_iou(one, other, pixel=1).tolist() == [[pytest.approx(1 / 7), 0, 0]]
    assert box_iou(one, other).tolist() == [[0, 0, 0]]


def test_boxes_are_those_of_visible_keypoints():
    points = torch.tensor([[[1.0, 5], [3, 2], [torch.nan, 9]], [[0, 0], [0, 0], [0, 0]]])
    seen = torch.tensor([[1, 0.2, 0], [0, 0, 0]])
    boxes = keypoint_boxes(points, weights=seen)
    assert boxes[0].tolist() == [1, 2, 3, 5]
    assert boxes[1].isnan().all()


def test_distances_of_keypoints():
    pred, target = random(0, 3, 5, 2), random(1, 2, 5, 2)
    weights = torch.tensor([[1, 0.5, 0, 2, 1], [0, 0, 0, 0, 0]])
    target[0, 2] = torch.nan
    found = keypoint_distances(pred, target, weights=weights)
    assert found[:, 1].isinf().all()
    kept = [0, 1, 3, 4]
    for i in range(3):
        lengths = np.linalg.norm((pred[i] - target[0])[kept], axis=1)
        expected = np.average(lengths, weights=weights[0, kept])
        assert found[i, 0] == pytest.approx(expected, rel=1e-12)
        spectral = keypoint_distances(pred, target, weights=weights, distance="spectral")[i, 0]
        largest = np.linalg.svd((pred[i] - target[0])[kept].numpy())[1][0]
        assert spectral == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize("rule", [name for name, rule in MATCHING_RULES.items() if rule.hidden is None])
def test_people_who_moved_a_little_are_matched(rule):
    centers = 300 * torch.arange(5)[:, None, None]
    target = centers + 100 * random(0, 5, 17, 2)
    order = torch.tensor([3, 0, 4, 2, 1])
    pred = (target + random(1, 5, 17, 2))[order]
    weights = (random(2, 5, 17) < 0.6).double()
    target[weights == 0] = torch.nan
    found = match_keypoints(pred, target, weights=weights, rule=rule)
    assert pairs_of(found) == list(enumerate(order.tolist()))


def test_rules_refuse_boxes_that_overlap_too_little():
    square = torch.tensor([[0.0, 0], [10, 10]])[None]
    aside = square + torch.tensor([9.5, 0])  # 0.5 of 19.5 columns, or 1.5 of 20.5 pixels
    assert pairs_of(match_keypoints(square, aside, rule=MatchingRule(min_iou=0.03))) == []
    assert pairs_of(match_keypoints(square, aside, rule=MatchingRule(min_iou=0.02))) == [(0, 0)]
    assert pairs_of(match_keypoints(square, aside, rule="relative-human")) == [(0, 0)]
    assert pairs_of(match_keypoints(square, aside, rule="agora")) == []
    far = square + 1000
    assert pairs_of(match_keypoints(square, far, rule="relative-human")) == []
    assert pairs_of(match_keypoints(square, far, rule="mean")) == [(0, 0)]


def test_hidden_keypoints_are_in_the_boxes_where_the_published_code_puts_them():
    square, far = torch.tensor([[0.0, 0], [50, 50], [20, 40]])[None], torch.tensor([100.0, 100])
    seen = torch.tensor([[1.0, 1, 0]])
    for shift, found in ((0 * far, [(0, 0)]), (10 * far, [])):
        here = square + shift
        assert pairs_of(match_keypoints(here, here, weights=seen)) == [(0, 0)]
        published = match_keypoints(here, here, weights=seen, rule="relative-human-published")
        assert pairs_of(published) == found


def test_scores_of_detection():
    found = detection_scores(matched=6, false_positives=2, missed=4)
    assert found.precision == 0.75
    assert found.recall == 0.6
    assert found.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert np.isnan(detection_scores(0, 0, 0)).all()
    for wrong in ((-1, 0, 0), (1, -2, 0), (1, 0, -1)):
        with pytest.raises(ValueError, match="expected a count of 0 or more, got"):
            detection_scores(*wrong)
    with pytest.raises(ValueError, match="f1: expected a share from 0 to 1, got 83"):
        normalized_error(0.1, 83.0)
    assert detection_scores(0, 3, 0)[::2] == (0, 0)


def test_normalised_errors_take_f1_with_two_decimals():
    assert normalized_error(0.1, 0.8349) == 0.1 / 0.83
    assert normalized_error(0.2, 1.0) == 0.2
    assert normalized_error(0.1, 0.004) == float("inf")


def test_errors_name_the_argument(unchecked):
    cost = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"cost: expected shape \(P, T\), got \(1, 2, 3\)"):
        match(cost[None])
    with pytest.raises(ValueError, match=r"allowed: expected shape \(2, 3\), got \(3, 2\)"):
        match(cost, allowed=cost.T > 0)
    with pytest.raises(ValueError, match="method: expected one of greedy, hungarian, got 'best'"):
        match(cost, method="best")
    with pytest.raises(ValueError, match="stop_early: expected method='greedy'"):
        match(cost, method="hungarian", stop_early=True)
    points = torch.zeros(2, 5, 2)
    with pytest.raises(ValueError, match=r"target: expected shape \(\*batch, any, 5, 2\)"):
        keypoint_distances(points, torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts to \(2, 5\)"):
        keypoint_distances(points, points, weights=torch.ones(3))
    with pytest.raises(ValueError, match="distance: expected one of mean, spectral, got 'max'"):
        keypoint_distances(points, points, distance="max")
    with pytest.raises(ValueError, match="rule: expected one of mean, .*, got 'coco'"):
        match_keypoints(points, points, rule="coco")


@pytest.mark.parametrize("rule", MATCHING_RULES)
def test_predictions_that_are_not_finite_are_matched_to_nobody(rule):
    points = 100 * torch.rand(2, 17, 2, generator=torch.Generator().manual_seed(0))
    pred = points.clone()
    pred[0, 3] = torch.nan
    found = match_keypoints(pred, points, rule=rule)
    assert (found.pred.tolist(), found.target.tolist()) == ([1], [1])
    assert (found.false_positives.tolist(), found.missed.tolist()) == ([0], [0])
