from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agebody import LAYOUTS
from agebody.metrics import mpckh, pck, pck_auc, per_joint, reference_length


def people(*batch, seed=0, points=17, dims=2):
    """A truth, and a prediction about 0.1 away."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(*batch, points, dims, generator=generator, dtype=torch.float64)
    noise = torch.randn(*batch, points, dims, generator=generator, dtype=torch.float64)
    weights = (torch.rand(*batch, points, generator=generator) < 0.7).double()
    return target + 0.1 * noise, target, weights


BATCHES = st.lists(st.integers(0, 3), max_size=2)


@given(batch=BATCHES, dims=st.sampled_from([2, 3]), seed=st.integers(0, 99), threshold=st.floats(0, 0.4))
def test_pck_is_the_share_below_the_threshold_whatever_hides_in_the_others(batch, dims, seed, threshold):
    pred, target, weights = people(*batch, seed=seed, dims=dims)
    lengths = np.linalg.norm(pred - target, axis=-1)
    kept = weights.numpy() > 0
    expected = (lengths[kept] < threshold).mean() if kept.any() else np.nan
    pred[weights == 0], target[weights == 0] = torch.nan, torch.nan
    for factor in (1, 2):
        found = pck(pred, target, threshold, weights=factor * weights).item()
        assert found == pytest.approx(expected, abs=1e-15, nan_ok=True)
    each = pck(pred, target, threshold, weights=weights != 0, reduction="none")
    np.testing.assert_array_equal(each, (lengths < threshold) & kept)


def test_pck_relative_to_a_length_does_not_change_with_scale():
    pred, target, _ = people(5)
    torso = reference_length(target, "torso", layout="coco17")
    share = pck(pred, target, 0.2, reference=torso)
    assert 0 < share < 1
    for scale in (0.01, 300.0):
        assert pck(scale * pred, scale * target, 0.2, reference=scale * torso) == share
    lengths = (pred - target).norm(dim=-1) / torso[:, None]
    assert share == (lengths < 0.2).double().mean()


@pytest.mark.parametrize("hidden", [0.0, 1e6, torch.nan])
@pytest.mark.parametrize(("kind", "layout", "ends"), [
    ("torso", "coco17", ("left_shoulder", "right_hip")), ("head", "h36m17", ("neck", "head")),
])  # fmt: skip
def test_people_without_a_visible_reference_do_not_count(kind, layout, ends, hidden):
    """A hidden shoulder at (0, 0) would make a long torso, within which everything is right."""
    pred, target, weights = people(4)
    weights[:] = 1
    points = [LAYOUTS[layout].names.index(name) for name in ends]
    expected = pck(pred[2:], target[2:], 0.2, reference=reference_length(target[2:], kind, layout=layout))
    assert 0 < expected < 1
    for person, point in enumerate(points):
        weights[person, point], target[person, point] = 0, hidden
    reference = reference_length(target, kind, layout=layout, weights=weights)
    assert reference.isnan().tolist() == [True, True, False, False]
    assert pck(pred, target, 0.2, reference=reference, weights=weights) == expected
    counted = weights * reference.isfinite()[:, None]
    each = pck(pred, target, 0.2, reference=reference, weights=weights, reduction="none")
    assert each[:2].any().item() is False
    assert per_joint(each, weights=counted).nanmean() == pytest.approx(expected.item(), abs=0.01)
    curve = pck_auc(pred, target, max_threshold=0.2, reference=reference, weights=weights)
    assert curve == pck_auc(pred[2:], target[2:], max_threshold=0.2, reference=reference[2:])


def test_a_reference_of_zero_does_not_count():
    pred, target, _ = people(3)
    length = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    assert pck(pred, target, 0.2, reference=length) == pck(pred[::2], target[::2], 0.2, reference=length[::2])
    assert pck(pred, target, 0.2, reference=torch.zeros(3)).isnan()


def test_area_under_the_curve_is_the_mean_over_thresholds():
    pred, target, weights = people(4, dims=3)
    pred[weights == 0] = torch.nan
    expected = np.mean([pck(pred, target, 0.005 * i, weights=weights) for i in range(31)])
    assert pck_auc(pred, target, weights=weights).item() == pytest.approx(expected, abs=1e-14)
    reference = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    expected = np.mean([pck(pred, target, t, reference=reference, weights=weights) for t in (0, 0.1, 0.2)])
    found = pck_auc(pred, target, max_threshold=0.2, steps=3, reference=reference, weights=weights)
    assert found.item() == pytest.approx(expected, abs=1e-14)


def test_per_joint_is_the_mean_of_each_column():
    pred, target, weights = people(3, 4)
    weights[..., 2] = 0
    each = pck(pred, target, 0.1, weights=weights, reduction="none")
    found = per_joint(each, weights=weights)
    for joint in range(17):
        kept = weights[..., joint] > 0
        if joint == 2:
            assert found[joint].isnan()
        else:
            assert found[joint] == pytest.approx(each[..., joint][kept].mean().item(), abs=1e-15)
    assert torch.equal(per_joint(torch.ones(3)), torch.ones(3))


@given(batch=BATCHES, seed=st.integers(0, 99))
def test_mpckh_is_the_mean_of_shares_of_people_in_the_size_of_their_box(batch, seed):
    pred, target, weights = people(*batch, seed=seed)
    shares = []
    for p, t, w in zip(
        pred.reshape(-1, 17, 2).numpy(), target.reshape(-1, 17, 2).numpy(), weights.reshape(-1, 17).numpy(),
        strict=True,
    ):  # fmt: skip
        if (w > 0).sum() >= 2:
            size = np.hypot(*np.ptp(t[w > 0], axis=0))
            shares.append((np.linalg.norm(p - t, axis=1)[w > 0] / size < 0.143).mean())
    pred[weights == 0], target[weights == 0] = torch.nan, torch.nan
    expected = np.mean(shares) if shares else np.nan
    found = mpckh(pred, target, weights=weights).item()
    assert found == pytest.approx(expected, abs=1e-14, nan_ok=True)


def test_people_with_one_visible_keypoint_do_not_count():
    pred, target, _ = people(2)
    weights = torch.ones(2, 17)
    weights[1, 1:] = 0
    assert mpckh(pred, target, weights=weights) == mpckh(pred[:1], target[:1])
    assert mpckh(pred, target, weights=weights, reduction="none")[1] == 0


def test_mpckh_is_one_for_the_truth_and_zero_far_away():
    _, target, weights = people(3)
    assert mpckh(target, target, weights=weights) == 1
    assert mpckh(target + 10, target, weights=weights) == 0


def test_reference_lengths():
    points = torch.zeros(17, 2)
    coco = LAYOUTS["coco17"].names
    points[coco.index("left_shoulder")] = torch.tensor([3.0, 0])
    points[coco.index("right_hip")] = torch.tensor([0.0, 4])
    assert reference_length(points, "torso", layout="coco17") == 5
    assert reference_length(points, "box_diagonal") == 5
    assert reference_length(points, "box_side") == 4
    h36m = torch.arange(34.0).reshape(17, 2)
    names = LAYOUTS["h36m17"].names
    apart = 2 * abs(names.index("neck") - names.index("head"))
    assert reference_length(h36m, "head", layout="h36m17").item() == pytest.approx(apart * 2**0.5, rel=1e-6)
    assert reference_length(torch.zeros(2, 0, 24, 3), "torso", layout="smpl24").shape == (2, 0)


def test_errors_name_the_argument(unchecked):
    pred, target, _ = people(2)
    with pytest.raises(ValueError, match="layout: coco17 has no point named neck_lsp or neck"):
        reference_length(target, "head", layout="coco17")
    with pytest.raises(ValueError, match=r"points: expected shape \(\*batch, 24, any\)"):
        reference_length(target, "torso", layout="smpl24")
    for others in (target[:, 1:], target[:1], target[0]):  # one person is not compared with everybody
        for measure in (mpckh, partial(pck, threshold=0.1), pck_auc):
            with pytest.raises(ValueError, match=r"target: expected the shape of pred, \(2, 17, 2\), got"):
                measure(pred, others)
    with pytest.raises(TypeError, match=r"target: expected torch\.float64, that of pred, got torch\.float32"):
        pck(pred, target.float(), 0.1)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected a number of 0 or more, got"):
            pck(torch.zeros(2, 17, 2), torch.zeros(2, 17, 2), wrong)
        with pytest.raises(ValueError, match="max_threshold: expected a finite number of 0 or more, got"):
            pck_auc(torch.zeros(2, 17, 2), torch.zeros(2, 17, 2), max_threshold=wrong)
    with pytest.raises(ValueError, match="steps: expected a whole number of 1 or more, got 0"):
        pck_auc(pred, target, steps=0)
    with pytest.raises(TypeError, match=r"pred: expected a floating type, got torch\.int64"):
        mpckh(pred.long(), target)
    with pytest.raises(ValueError, match="reduction: expected one of none, mean, sum, got 'max'"):
        mpckh(pred, target, reduction="max")
    for call in (
        lambda given: mpckh(pred, target, weights=given),
        lambda given: per_joint(pred[..., 0], weights=given),
    ):
        with pytest.raises(
            ValueError, match=r"weights: expected a shape that broadcasts to \(2, 17\), got \(2,\)"
        ):
            call(torch.ones(2))
        with pytest.raises(TypeError, match="weights: expected a torch.Tensor or None, got list"):
            call([1.0] * 17)


@pytest.mark.parametrize("shape", [(3, 1), (1,), (2, 3)])
def test_reference_lengths_of_other_people_are_refused(shape, unchecked):
    """(3, 1) against 3 people would compare each with everyone's length."""
    pred, target, _ = people(3)
    for measure in (pck, pck_auc):
        options = {"threshold": 0.1} if measure is pck else {}
        with pytest.raises(ValueError, match=r"reference: expected shape \(3,\)"):
            measure(pred, target, reference=torch.ones(shape, dtype=torch.float64), **options)
        one = measure(pred, target, reference=torch.tensor(0.7, dtype=torch.float64), **options)
        assert one == measure(pred, target, reference=torch.full((3,), 0.7, dtype=torch.float64), **options)
