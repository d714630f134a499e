from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import LAYOUTS, SMPLA, KeypointLayout
from agebody.losses import gmof, keypoints_3d_loss, reprojection_loss
from agebody.rotations import axis_angle_to_matrix

few = settings(max_examples=25)
people = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def confidences(*shape: int, seed: int = 0) -> torch.Tensor:
    """Between 0 and 1, a third of them 0."""
    c = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(c < 1 / 3, 0, c)


@few
@given(people)
def test_hmr2_in_the_image(sizes):
    """Weighed absolute differences of coordinates, all added up."""
    bodies, number, seed = sizes
    pred, target = points(bodies, number, 2, seed=seed), points(bodies, number, 2, seed=seed + 1)
    c = confidences(bodies, number, seed=seed)
    expected = sum(
        c[b, k] * abs(pred[b, k, x] - target[b, k, x])
        for b in range(bodies) for k in range(number) for x in range(2)
    )  # fmt: skip
    torch.testing.assert_close(reprojection_loss(pred, target, weights=c, reduction="sum"), expected)


def test_spin_in_the_image():
    """The mean over all coordinates, of points without confidence, too."""
    pred, target, c = points(4, 49, 2), points(4, 49, 2, seed=1), confidences(4, 49)
    expected = (c[..., None] * torch.nn.functional.mse_loss(pred, target, reduction="none")).mean()
    terms = reprojection_loss(pred, target, weights=c, penalty="l2", reduction="none")
    torch.testing.assert_close(terms.mean() / 2, expected)


def test_smplifyx_in_the_image():
    """rho^2 r^2 / (rho^2 + r^2) of x and y apart, by the squared product of joint weight and confidence."""
    pred, target, c = 300 * points(118, 2), 300 * points(118, 2, seed=1), confidences(118)
    joint_weights, rho = torch.linspace(0, 2, 118, dtype=torch.float64), 100.0
    squared = (np.asarray(pred) - np.asarray(target)) ** 2
    expected = (np.asarray(joint_weights * c) ** 2 * (rho**2 * squared / (squared + rho**2)).sum(1)).sum()
    got = reprojection_loss(
        pred, target, weights=(joint_weights * c) ** 2, penalty=partial(gmof, rho=rho), reduction="sum"
    )
    assert got.item() == pytest.approx(expected)


def test_mean_divides_by_the_sum_of_weights():
    pred = torch.tensor([[[1.0, 2.0], [5.0, 5.0]], [[0.0, 3.0], [torch.nan, torch.inf]]])
    weights = torch.tensor([[1.0, 0.5], [2.0, 0.0]])
    assert reprojection_loss(pred, torch.zeros(2, 2, 2), weights=weights) == (3 + 5 + 6) / 3.5


def test_gradient_moves_points_towards_the_target():
    pred, target = points(3, 5, 2).requires_grad_(), points(3, 5, 2, seed=1)
    for penalty in ("l1", "l2", partial(gmof, rho=1.0)):
        (slope,) = torch.autograd.grad(reprojection_loss(pred, target, penalty=penalty), pred)
        assert (slope.sign() == (pred - target).sign()).all()


def test_hmr2_in_space(mannequin_asset):
    """Relative to point 39 of 44, weighed absolute differences, all added up."""
    body = SMPLA(mannequin_asset, dtype=torch.float64)
    pred, target = (body.keypoints("hmr2_44", betas=points(3, 10, seed=seed)) for seed in (0, 1))
    target = target + points(3, 1, 3)
    c = confidences(3, 44) + 0.01
    difference = (pred - pred[:, [39]]) - (target - target[:, [39]])
    expected = (c[..., None] * difference.abs()).sum()
    got = keypoints_3d_loss(pred, target, layout="hmr2_44", weights=c, reduction="sum")
    torch.testing.assert_close(got, expected)


def test_spin_in_space():
    """Relative to the middle of the hips, the mean of squares over all coordinates."""
    layout = LAYOUTS["smpl24"]
    left, right = (layout.names.index(f"{side}_hip") for side in ("left", "right"))
    pred, target, c = points(4, 24, 3), points(4, 24, 3, seed=1), confidences(4, 24) + 0.01
    centred = [p - (p[:, [left]] + p[:, [right]]) / 2 for p in (pred, target)]
    expected = (c[..., None] * (centred[0] - centred[1]) ** 2).mean()
    terms = keypoints_3d_loss(
        pred, target, layout=layout, root=("left_hip", "right_hip"), weights=c, penalty="l2",
        reduction="none",
    )  # fmt: skip
    torch.testing.assert_close(terms.mean() / 3, expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_root_is_the_layouts_own(layout):
    pred, target = points(2, len(layout), 3), points(2, len(layout), 3, seed=1)
    expected = keypoints_3d_loss(pred - layout.center(pred), target - layout.center(target))
    torch.testing.assert_close(keypoints_3d_loss(pred, target, layout=layout.name), expected)
    named = keypoints_3d_loss(pred, target, layout=layout, root=[layout.names[i] for i in layout.root])
    torch.testing.assert_close(named, expected)


@few
@given(st.integers(0, 99))
def test_relative_points_are_blind_to_translation_and_turn_with_the_body(seed):
    pred, target = points(2, 17, 3, seed=seed), points(2, 17, 3, seed=seed + 1)
    loss = partial(keypoints_3d_loss, layout="coco17", penalty="l2")
    expected = loss(pred, target)
    torch.testing.assert_close(loss(pred + points(2, 1, 3, seed=seed + 2), target - 7), expected)
    turn = axis_angle_to_matrix(points(3, seed=seed + 3))
    torch.testing.assert_close(loss(pred @ turn.T, target @ turn.T), expected)
    assert not torch.allclose(keypoints_3d_loss(pred + 1, target), keypoints_3d_loss(pred, target))


def test_a_person_without_root_is_left_out():
    pred, target = points(3, 17, 3).requires_grad_(), points(3, 17, 3, seed=1)
    weights = torch.ones(3, 17, dtype=torch.float64)
    hips = LAYOUTS["coco17"].root
    target[1, hips[1]], weights[1, hips[1]] = torch.nan, 0
    target[2, 3], weights[2, 3] = torch.inf, 0
    terms = keypoints_3d_loss(pred, target, layout="coco17", weights=weights, reduction="none")
    assert (terms[1] == 0).all()
    whole = keypoints_3d_loss(pred[[0]], target[[0]], layout="coco17", reduction="none")
    torch.testing.assert_close(terms[0], whole[0])
    assert (terms[2] > 0).tolist() == [k != 3 for k in range(17)]
    loss = keypoints_3d_loss(pred, target, layout="coco17", weights=weights)
    torch.testing.assert_close(loss, terms.sum() / (17 + 16))
    (slope,) = torch.autograd.grad(loss, pred)
    assert slope.isfinite().all()
    assert (slope[1] == 0).all()
    mask = weights != 0
    assert torch.equal(keypoints_3d_loss(pred, target, layout="coco17", weights=mask), loss)


def test_custom_layout():
    layout = KeypointLayout.from_regressor(np.eye(3), ("a", "b", "c"), root=(2,))
    pred = torch.tensor([[1.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    terms = keypoints_3d_loss(pred, torch.zeros(3, 3), layout=layout, reduction="none")
    assert terms.tolist() == [3, 2, 0]
    terms = keypoints_3d_loss(pred, torch.zeros(3, 3), layout=layout, root=["a", "b"], reduction="none")
    assert terms.tolist() == [0.5, 0.5, 2.5]


def test_mistakes_are_named(unchecked):
    pred = torch.zeros(2, 17, 3)
    for message, options in (
        ("layout: expected a KeypointLayout or one of smpl24", {"layout": "coco18"}),
        ("pred: expected the 24 points of 'smpl24', shape", {"layout": "smpl24"}),
        (
            r"root: expected names of points of 'coco17', got \['tail'\]",
            {"layout": "coco17", "root": ["tail"]},
        ),
        ("root: expected names of points", {"layout": "coco17", "root": "nose"}),
        ("root: expected names of points", {"layout": "coco17", "root": []}),
        ("root: expected None where no layout", {"root": ["nose"]}),
    ):
        with pytest.raises(ValueError, match=message):
            keypoints_3d_loss(pred, pred, **options)
    with pytest.raises(ValueError, match="pred: expected the 17 points"):
        keypoints_3d_loss(pred[0, 0], pred[0, 0], layout="coco17")
