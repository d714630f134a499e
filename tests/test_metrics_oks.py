"""OKS against its formula, and AP and AR against COCO's own evaluation, number by number."""

import math

import numpy as np
import pytest
import torch
from coco_files import pycocotools_numbers, synthetic_coco
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.cocoeval import Params

from agebody import LAYOUTS
from agebody.metrics import keypoint_ap, oks, oks_sigmas
from agebody.metrics.similarity import CROWDPOSE14

ROUNDING = 1e-13
"""Of means of some hundred float64 numbers up to 1."""


def people(*batch, seed=0, points=17):
    r = np.random.default_rng(seed)
    target = r.uniform(0, 100, (*batch, points, 2))
    pred = target + r.normal(0, 10, target.shape)
    weights, area = r.random((*batch, points)) < 0.7, r.uniform(1e3, 1e4, batch)
    return [torch.from_numpy(np.asarray(part)) for part in (pred, target, area, weights)]


@given(batch=st.lists(st.integers(0, 3), max_size=2), seed=st.integers(0, 999))
def test_oks_is_its_formula(batch, seed):
    pred, target, area, weights = people(*batch, seed=seed)
    sigmas = np.array(Params("keypoints").kpt_oks_sigmas)
    pred[~weights], target[~weights] = torch.nan, torch.nan
    found = oks(pred, target, area, weights=weights, reduction="none")
    assert found.shape == tuple(batch)
    for index in np.ndindex(*batch):
        kept = weights[index].numpy()
        squared = ((pred[index] - target[index]).numpy()[kept] ** 2).sum(-1)
        each = np.exp(-squared / (2 * area[index].item() * (2 * sigmas[kept]) ** 2))
        assert found[index].item() == pytest.approx(each.mean() if kept.any() else 0, abs=ROUNDING)
    seen = weights.any(-1)
    expected = found[seen].mean().item() if seen.any() else np.nan
    mean = oks(pred, target, area, weights=weights).item()
    assert mean == pytest.approx(expected, abs=ROUNDING, nan_ok=True)


def test_people_without_a_visible_keypoint_do_not_count():
    pred, target, area, weights = people(3)
    weights[1] = False
    found = oks(pred, target, area, weights=weights)
    assert found.item() == pytest.approx(oks(pred[::2], target[::2], area[::2], weights=weights[::2]).item())
    assert oks(pred, target, area, weights=weights, reduction="none")[1] == 0


def test_oks_of_all_pairs_by_broadcasting():
    pred, target, area, weights = people(3)
    found = oks(pred[:, None], target[None], area[None], weights=weights[None], reduction="none")
    assert found.shape == (3, 3)
    for i in range(3):
        alone = oks(pred[i], target[1], area[1], weights=weights[1])
        assert found[i, 1].item() == pytest.approx(alone.item(), abs=ROUNDING)


def test_oks_is_one_for_the_truth_falls_with_distance_and_does_not_change_with_scale():
    pred, target, area, weights = people(4)
    assert oks(target, target, area, weights=weights) == 1
    near = oks(pred, target, area, weights=weights)
    assert 0 < oks(target + 2 * (pred - target), target, area, weights=weights) < near < 1
    scaled = oks(3 * pred, 3 * target, 9 * area, weights=weights)
    assert scaled.item() == pytest.approx(near.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_people_without_an_area_are_similar_to_the_truth_alone_and_have_finite_gradients(dtype):
    """COCO adds the spacing of numbers at 1 to areas."""
    pred, target, area, _ = people(3)
    pred, target, area = (part.to(dtype) for part in (pred, target, 0 * area))
    assert oks(target, target, area) == 1
    near = (target + 1e-9 * torch.randn(target.shape)).double().requires_grad_()
    squared = (near - target).detach().square().sum(-1)
    variance = (2 * torch.tensor(oks_sigmas("coco17"), dtype=torch.float64)) ** 2
    expected = torch.exp(-squared / variance / (2 * np.spacing(1))).mean(-1)
    found = oks(near, target.double(), area.double(), reduction="none")
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-9)
    assert oks(pred.requires_grad_(), target, area) == 0
    (gradient,) = torch.autograd.grad(oks(pred, target, area), pred)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("wrong", [-1.0, torch.nan])
def test_a_negative_area_is_refused(wrong):
    pred, target, area, weights = people(3)
    area[1] = wrong
    with pytest.raises(ValueError, match="area: expected areas of at least 0"):
        oks(pred, target, area, weights=weights)
    weights[1] = 0
    assert oks(pred, target, area, weights=weights).isfinite()


def test_oks_gradients():
    pred, target, area, weights = people(2)
    sigmas = torch.full((17,), 0.1, dtype=torch.float64)

    def f(x):
        return oks(x, target, area, weights=weights, sigmas=sigmas)

    assert torch.autograd.gradcheck(f, pred.requires_grad_())
    (gradient,) = torch.autograd.grad(f(pred), pred)
    assert (gradient[~weights] == 0).all()
    assert ((gradient * (target - pred)).sum(-1)[weights] > 0).all()
    pred = torch.where(weights[..., None], pred.detach(), torch.nan).requires_grad_()
    (again,) = torch.autograd.grad(f(pred), pred)
    assert torch.equal(again, gradient)


def test_sigmas_by_layout():
    coco = Params("keypoints").kpt_oks_sigmas  # tenths, divided: rounded once more
    np.testing.assert_allclose(oks_sigmas("coco17"), coco, rtol=1e-15)
    crowdpose = (
        0.079,
        0.079,
        0.072,
        0.072,
        0.062,
        0.062,
        0.107,
        0.107,
        0.087,
        0.087,
        0.089,
        0.089,
        0.079,
        0.079,
    )
    assert oks_sigmas(CROWDPOSE14) == crowdpose
    openpose = dict(zip(LAYOUTS["openpose25"].names, oks_sigmas("openpose25", default=0.107), strict=True))
    assert openpose["mid_hip"] == openpose["left_hip"] == 0.107
    assert openpose["left_heel"] == 0.066
    assert openpose["right_heel"] == 0.094
    with pytest.raises(ValueError, match="no standard deviation is published for mid_hip; pass default="):
        oks_sigmas("openpose25")


def ours(annotations, results, **options):
    def column(entries, key, dtype=torch.float64):
        return torch.tensor([entry[key] for entry in entries], dtype=dtype)

    truth = annotations["annotations"]
    target, pred = (column(entries, "keypoints").reshape(len(entries), -1, 3) for entries in (truth, results))
    return keypoint_ap(
        pred[..., :2], column(results, "score"), column(results, "image_id", torch.int64),
        target[..., :2], column(truth, "area"), column(truth, "image_id", torch.int64),
        weights=target[..., 2], boxes=column(truth, "bbox"), crowd=column(truth, "iscrowd", torch.bool),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_ap_and_ar_are_those_of_coco(seed):
    annotations, results = synthetic_coco(seed)
    expected = pycocotools_numbers(annotations, results)
    assert 0.01 < expected[0] < 0.99
    np.testing.assert_allclose(ours(annotations, results), expected, rtol=0, atol=ROUNDING)


def test_the_cases_that_make_it_hard_are_in_the_files():
    annotations, results = synthetic_coco(0)
    truth = annotations["annotations"]
    assert any(person["iscrowd"] for person in truth)
    assert any(person["num_keypoints"] == 0 and not person["iscrowd"] for person in truth)
    images = [result["image_id"] for result in results]
    assert max(images.count(image) for image in images) > 20
    assert len({result["score"] for result in results}) < len(results) / 4
    assert {image["id"] for image in annotations["images"]} - {person["image_id"] for person in truth}
    sizes = [person["area"] for person in truth]
    assert min(sizes) < 32**2 < 96**2 < max(sizes)


def test_crowds_may_be_numbers_and_other_shapes_are_refused(unchecked):
    """COCO's iscrowd is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    target = 100 * torch.rand(3, 17, 2, generator=generator)
    images, scores, areas = (
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([0.9, 0.5, 0.1]),
        1e4 * torch.ones(3),
    )
    crowd = torch.tensor([0, 1, 0])

    def ap(pred=target, scores=scores, areas=areas, **options):
        return keypoint_ap(pred, scores, images, target, areas, images, **options)

    pred = target.clone()
    pred[2] += 1e4
    for kind in (torch.int64, torch.uint8, torch.float32):
        assert ap(pred, crowd=crowd.to(kind)) == pytest.approx(ap(pred, crowd=crowd.bool()), nan_ok=True)
    assert pytest.approx(0.5, abs=0.01) == ap(pred, crowd=crowd).AP
    for options, message in (
        ({"scores": scores[:, None]}, r"scores: expected shape \(3,\), got \(3, 1\)"),
        ({"areas": areas[:, None]}, r"areas: expected shape \(3,\), got \(3, 1\)"),
        ({"boxes": areas[:, None].expand(3, 3)}, r"boxes: expected shape \(3, 4\), got \(3, 3\)"),
        ({"pred": target[None]}, r"pred: expected shape \(people, keypoints, 2\)"),
        ({"max_detections": 0}, "max_detections: expected a whole number of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ap(**options)


def test_only_the_best_twenty_detections_count():
    annotations, results = synthetic_coco(0)
    assert ours(annotations, results, max_detections=1) != ours(annotations, results)


def test_the_truth_scores_1_and_no_people_nan():
    annotations, _ = synthetic_coco(3)
    truth = annotations["annotations"]
    perfect = [
        {"image_id": p["image_id"], "keypoints": p["keypoints"], "score": 1.0}
        for p in truth
        if not p["iscrowd"] and p["num_keypoints"]
    ]
    found = ours(annotations, perfect)
    assert pytest.approx(1, abs=ROUNDING) == found.AP
    assert found.AR == 1
    none = ours(annotations, [perfect[0] | {"keypoints": [1e4] * 51}])
    assert none.AP == none.AR == 0
    crowds = annotations | {"annotations": [p | {"iscrowd": 1} for p in truth]}
    assert all(math.isnan(number) for number in ours(crowds, perfect))


def test_without_detections_all_is_zero():
    pred, target, area, weights = people(3)
    ids, nothing = torch.arange(3), torch.zeros(0, dtype=torch.float64)
    found = keypoint_ap(pred[:0], nothing, ids[:0], target, area, ids, weights=weights)
    assert found.AP == found.AR == 0


@pytest.mark.parametrize("broken", ["pred", "scores", "target", "areas"])
def test_of_what_is_not_a_number_is_unknown(broken):
    pred, target, area, weights = people(3)
    given = {"pred": pred, "scores": torch.ones(3), "target": target, "areas": area}
    given = {name: part.clone() for name, part in given.items()}
    given[broken][0] = torch.nan
    ids, seen = torch.arange(3), weights.clone()
    seen[0] = True
    found = keypoint_ap(**given, pred_images=ids, target_images=ids, weights=seen)
    assert all(math.isnan(number) for number in found)
    seen[0] = False
    without = keypoint_ap(**given, pred_images=ids, target_images=ids, weights=seen)
    assert math.isnan(without.AP) == (broken != "target")


def test_errors_name_the_argument(unchecked):
    pred, target, area, _ = people(3)
    ids, scores = torch.arange(3), torch.ones(3)
    with pytest.raises(ValueError, match="sigmas: expected 17, one per keypoint, got"):
        oks(pred, target, area, sigmas=(0.1, 0.1))
    with pytest.raises(ValueError, match=r"target: expected shape \(\*batch, 17, 2\), got \(3, 16, 2\)"):
        oks(pred, target[:, 1:], area)
    for wrong in (torch.ones(5, 17), torch.ones(3), torch.ones(3, 17, 1)):
        with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts to \(3, 17\), got"):
            oks(pred, target, area, weights=wrong)
        with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts to \(3, 17\), got"):
            keypoint_ap(pred, scores, ids, target, area, ids, weights=wrong)
    with pytest.raises(TypeError, match="weights: expected a torch.Tensor or None, got ndarray"):
        oks(pred, target, area, weights=np.ones((3, 17)))
    with pytest.raises(ValueError, match=r"do not broadcast: pred \(3,\), target \(2,\)"):
        oks(pred, target[:2], area)
    with pytest.raises(ValueError, match=r"scores: expected shape \(3,\), got \(2,\)"):
        keypoint_ap(pred, scores[:2], ids, target, area, ids)
    with pytest.raises(ValueError, match=r"target_images: expected shape \(3,\), got \(1,\)"):
        keypoint_ap(pred, scores, ids, target, area, ids[:1])
    with pytest.raises(ValueError, match="sigmas: expected 17, one per keypoint"):
        keypoint_ap(pred, scores, ids, target, area, ids, sigmas=(0.1,))


def test_areas_do_not_make_more_pairs(unchecked):
    """(3, 1) against 3 people would be 9 pairs that nobody asked for."""
    pred, target, _ = people(3)[:3]
    with pytest.raises(ValueError, match=r"area: expected a shape that broadcasts to \(3,\)"):
        oks(pred, target, torch.ones(3, 1, dtype=torch.float64))
