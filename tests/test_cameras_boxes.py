"""Boxes, weak perspective, box conditioning and the torso's depth, against formulas and each other."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import agebody
from agebody.cameras import (
    Camera,
    bev_to_translation,
    box_around,
    box_condition,
    convert_box,
    from_crop,
    mahmr_to_translation,
    project_weak,
    square_box,
    to_crop,
    torso_translation,
    weak_to_translation,
)
from agebody.cameras.torso import TORSO
from agebody.cameras.weak import translation_to_weak

F64 = torch.float64
FORMATS = ("xyxy", "xywh", "cxcywh")
numbers = st.floats(-1000, 1000)
sides = st.floats(1, 1000)


def tensor(values):
    return torch.tensor(values, dtype=F64)


# Boxes


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_formats_of_boxes(source, target):
    same = {"xyxy": (10, 20, 40, 100), "xywh": (10, 20, 30, 80), "cxcywh": (25, 60, 30, 80)}
    found = convert_box(tensor([[same[source]]]), source, target)
    assert found.tolist() == [[list(same[target])]]


@given(numbers, numbers, sides, sides, st.floats(0.5, 3))
def test_square_boxes(x, y, width, height, scale):
    box = tensor([x, y, x + width, y + height])
    center, size = convert_box(square_box(box, scale=scale), "xyxy", "cxcywh").split(2)
    assert center.tolist() == pytest.approx([x + width / 2, y + height / 2])
    assert size.tolist() == pytest.approx([scale * max(width, height)] * 2)


def test_boxes_around_keypoints_contain_visible_ones():
    points = tensor([[[10, 50], [30, 20], [1e6, math.nan]], [[math.nan] * 2] * 3]).requires_grad_()
    weights = tensor([[0.3, 1, 0], [0, 0, 0]])
    box = box_around(points, weights=weights)
    assert box.tolist() == [[10, 20, 30, 50], [0, 0, 0, 0]]
    larger = box_around(points, weights=weights > 0, scale=1.2)
    assert larger[0].tolist() == pytest.approx([8, 17, 32, 53])
    (gradient,) = torch.autograd.grad(larger.sum(), points)
    assert gradient.isfinite().all()
    assert gradient[1].abs().sum() == 0
    assert box_around(points[0, :2]).tolist() == [10, 20, 30, 50]
    assert box_around(points[:1, :2], weights=tensor([1, 0])).tolist() == [[10, 50, 10, 50]]


BOX = tensor([[100, 50, 356, 306], [-20, 0, 480, 500]])


def test_crops_and_back():
    points = tensor(np.random.default_rng(0).uniform(0, 500, (2, 5, 2)))
    corners = tensor([[[100, 50], [356, 306]]])
    assert to_crop(corners[0], BOX[0], size=(224, 112)).tolist() == [[0, 0], [224, 112]]
    assert to_crop(corners[0], BOX[0]).tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    assert to_crop(corners[0], BOX[0], limit=1).tolist() == [[-1, -1], [1, 1]]
    for there, back, options in (
        (to_crop, from_crop, {"size": (224, 112)}),
        (to_crop, from_crop, {"size": tensor([[10, 20], [30, 40]])}),
        (to_crop, from_crop, {}),
        (to_crop, from_crop, {"limit": 1.0}),
    ):
        torch.testing.assert_close(back(there(points, BOX, **options), BOX, **options), points)
    # HMR2 divides pixels of the crop by its side and subtracts a half.
    expected = to_crop(points, BOX, size=(256, 256)) / 256 - 0.5
    torch.testing.assert_close(to_crop(points, BOX), expected)


def test_a_cropped_camera_projects_into_the_crop():
    camera = Camera.from_fov(tensor(0.8), (640, 480))
    points = tensor(np.random.default_rng(0).normal(size=(2, 5, 3))) + tensor([0, 0, 5])
    crop = camera.cropped(BOX, size=(224, 112)).project(points).pixels
    torch.testing.assert_close(crop, to_crop(camera.project(points).pixels, BOX, size=(224, 112)))


# Weak perspective


def test_hmr2s_crop_camera():
    camera = Camera(tensor([5000, 5000]), tensor([128, 128]))
    weak = tensor([0.9, 0.1, -0.2])
    found = weak_to_translation(weak, tensor([0, 0, 256, 256]), camera)
    assert found.tolist() == pytest.approx([0.1, -0.2, 2 * 5000 / (256 * 0.9)])


@given(
    s=st.floats(0.2, 2), tx=st.floats(-1, 1), ty=st.floats(-1, 1),
    x=numbers, y=numbers, side=sides, width=sides, height=sides,
)  # fmt: skip
def test_cliffs_full_frame(s, tx, ty, x, y, side, width, height):
    camera = Camera.guess(tensor([width, height]))
    box = convert_box(tensor([x, y, side, side]), "cxcywh", "xyxy")
    found = weak_to_translation(tensor([s, tx, ty]), box, camera)
    focal = math.hypot(width, height)
    scale = 2 / (side * s)
    expected = [tx + (x - width / 2) * scale, ty + (y - height / 2) * scale, focal * scale]
    # x and y are differences of numbers as large as scale times 1e3.
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9 * (1 + 1e3 * scale))
    again = translation_to_weak(found, box, camera)
    assert again.tolist() == pytest.approx([s, tx, ty], rel=1e-9, abs=1e-9 * (1 + 1e3 * scale))


def test_the_origin_shows_at_the_same_place_in_crop_and_full_frame():
    camera = Camera(tensor([[1200, 1000], [900, 900]]), tensor([[333, 222], [300, 250]]))
    weak = tensor([[0.8, 0.2, -0.1], [1.1, -0.3, 0.4]])
    translation = weak_to_translation(weak, BOX, camera)
    shown = to_crop(camera.project(translation[:, None]).pixels, BOX, limit=1)[:, 0]
    torch.testing.assert_close(shown, weak[:, :1] * weak[:, 1:])
    torch.testing.assert_close(translation_to_weak(translation, BOX, camera), weak)


def test_full_frame_projection_nears_weak_perspective_as_the_focal_length_grows(mannequin_asset):
    points = agebody.SMPLA(mannequin_asset, dtype=F64)().joints
    weak = tensor([0.9, 0.1, 0.3])
    expected = weak[0] * (points[:, :2] + weak[1:])
    errors = []
    for focal in (1e3, 1e4, 1e5):
        camera = Camera(tensor([focal, focal]), tensor([300, 200]))
        translation = weak_to_translation(weak, BOX[0], camera)
        pixels = camera.project(points + translation).pixels
        errors.append((to_crop(pixels, BOX[0], limit=1) - expected).abs().max().item())
    # Depths differ by |Z| <= 0.2 m around tz = 2 f / (b s): the error is at most |Z| / tz of coordinates
    # below 2, and falls as 1 / f.
    assert errors[0] < 2 * 0.2 / (2 * 1e3 / (256 * 0.9))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)
    assert errors[2] == pytest.approx(errors[0] / 100, rel=0.1)


def test_bevs_form_is_that_of_its_camera():
    camera = Camera.from_fov(tensor(math.radians(60)), (512, 512))
    cam = tensor([[0.2, -0.3, 0.4], [0.05, 0.9, -0.8]])  # s, y, x
    translation = bev_to_translation(cam)
    assert translation[0].tolist() == pytest.approx(
        [0.4 / 0.2, -0.3 / 0.2, 1 / (0.2 * math.tan(math.pi / 6))]
    )
    shown = camera.project(translation[:, None]).pixels[:, 0] / 256 - 1
    torch.testing.assert_close(shown, cam[:, [2, 1]])
    # With BEV's own epsilon the direction stays and the depth shrinks.
    decoded = bev_to_translation(cam, epsilon=1e-3)
    assert decoded[:, 2].tolist() == pytest.approx(
        [1 / (s * math.tan(math.pi / 6) + 1e-3) for s in (0.2, 0.05)]
    )
    torch.testing.assert_close(decoded / decoded[:, 2:], translation / translation[:, 2:])


def test_metric_aware_hmrs_form():
    raw = tensor([[0.3, -0.2, 0.5], [0.0, 0.1, -4.0]])
    focal = tensor([1000, 1500])
    found = mahmr_to_translation(raw, focal)
    for i in range(2):
        x, y, a = raw[i].tolist()
        s = 2 / (1 + math.exp(-a)) + 1e-6
        expected = [x / s, y / s, 2 * focal[i].item() / (1288 * s)]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-12)
    assert (mahmr_to_translation(tensor([0, 0, -800]), tensor(1000))[2] > 0).item()


def test_box_conditions():
    camera = Camera(tensor([1000, 1000]), tensor([320, 240]))
    box = convert_box(tensor([420, 140, 300, 300]), "cxcywh", "xyxy")
    assert box_condition(box, camera).tolist() == pytest.approx([0.1, -0.1, 0.3])
    released = box_condition(box, camera, normalization="h36m")
    assert released.tolist() == pytest.approx([0.28, -0.28, (300 - 240) / 60])


def test_gradients():
    camera = Camera(tensor([900, 1000]), tensor([300, 250]))
    weak = tensor([[0.8, 0.2, -0.1], [1.1, -0.3, 0.4]]).requires_grad_()
    box = BOX.clone().requires_grad_()
    focal = camera.focal.clone().requires_grad_()

    def translation(weak, box, focal):
        return weak_to_translation(weak, box, camera._replace(focal=focal))

    assert torch.autograd.gradcheck(translation, (weak, box, focal))
    assert torch.autograd.gradcheck(bev_to_translation, (weak,))
    assert torch.autograd.gradcheck(mahmr_to_translation, (weak, focal))
    assert torch.autograd.gradcheck(lambda b: box_condition(b, camera), (box,))
    points = tensor(np.random.default_rng(0).uniform(0, 500, (2, 3, 2))).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, b: to_crop(p, b, size=(20, 30)), (points, box))
    assert torch.autograd.gradcheck(box_around, (points,))


# The torso


def upright(layout, depth=4.0, **options):
    """A body that faces the camera, and where it shows."""
    body = agebody.SMPLA(agebody.mannequin(), dtype=F64)
    turn = tensor([math.pi, 0, 0])  # y down
    points = body.keypoints(layout, global_orient=turn, **options)
    camera = Camera.from_fov(tensor(0.9), (800, 600))
    shown = camera.project(points + tensor([0.4, -0.2, depth])).pixels
    return points, shown, camera


def depth_of(points, translation, layout):
    """The depth of the middle of a torso, both of whose edges are seen."""
    names = agebody.LAYOUTS[layout].names
    ends = [names.index(name) for edge in TORSO for name in edge]
    return (translation[..., 2] + points[..., ends, 2].mean(-1)).item()


@pytest.mark.parametrize("layout", ["smpl24", "coco17", "openpose25", "h36m17", "bev71", "hmr2_44"])
def test_depth_of_a_torso_in_every_layout(layout):
    points, shown, camera = upright(layout)
    translation = torso_translation(points, shown, camera, layout)
    # The torso leans by some degrees: shoulders and hips are not at the same depth.
    assert depth_of(points, translation, layout) == pytest.approx(4.0, rel=0.03)
    assert translation.tolist() == pytest.approx([0.4, -0.2, 4.0], abs=0.12)


@given(depth=st.floats(1, 30), size=st.floats(0.3, 1.2), turn=st.floats(-3, 3))
def test_depth_of_a_flat_torso_is_exact(depth, size, turn):
    layout = agebody.LAYOUTS["coco17"]
    points = torch.zeros(17, 3, dtype=F64)
    for name, place in {
        "left_shoulder": (0.2, -0.5), "right_shoulder": (-0.2, -0.5), "left_hip": (0.1, 0),
        "right_hip": (-0.1, 0),
    }.items():  # fmt: skip
        points[layout.names.index(name), :2] = size * tensor(place)
    c, s = math.cos(turn), math.sin(turn)
    points = points @ tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).mT
    camera = Camera(tensor([1000, 1000]), tensor([500, 400]))
    moved = points + tensor([0.3, 0.1, depth])
    shown = camera.project(moved).pixels
    found = torso_translation(points, shown, camera, layout)
    assert found.tolist() == pytest.approx([0.3, 0.1, depth], abs=1e-9)


def test_hidden_torso_points_do_not_count():
    points, shown, camera = upright("coco17")
    layout = agebody.LAYOUTS["coco17"]
    shown = shown.expand(3, 17, 2).clone()
    weights = torch.ones(3, 17, dtype=F64)
    left = layout.names.index("left_hip")
    shown[1, left], weights[1, left] = math.nan, 0
    shown[2], weights[2] = math.nan, 0
    translation = torso_translation(points, shown, camera, layout, weights=weights.bool(), unseen=7.0)
    assert translation.isfinite().all()
    assert translation[2].tolist() == [0, 0, 7]
    assert depth_of(points, translation[0], "coco17") == pytest.approx(4, rel=0.03)
    assert translation[1].tolist() == pytest.approx([0.4, -0.2, 4], abs=0.2)
    # One edge alone, weighed: its own ratio.
    right = [layout.names.index(f"right_{part}") for part in ("shoulder", "hip")]
    lengths = [(part[..., right[0], :] - part[..., right[1], :]).norm(dim=-1) for part in (points, shown[1])]
    depth = translation[1, 2] + points[right, 2].mean()
    assert depth.item() == pytest.approx((camera.focal[0] * lengths[0] / lengths[1]).item())


def test_a_torso_without_length_is_far_but_finite():
    points, shown, camera = upright("coco17")
    translation = torso_translation(points, shown * 0 + 300, camera, "coco17")
    assert translation.isfinite().all()
    assert translation[2] > 100


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: convert_box(BOX, "xyxy", "yxyx"), ValueError, "target: expected one of xyxy, xywh, cxcywh"),
        (lambda: convert_box(BOX[:, :3], "xyxy", "xywh"), ValueError, "box: expected shape (*batch, 4)"),
        (lambda: box_around(torch.zeros(3)), ValueError, "keypoints: expected shape (*batch, any, 2)"),
        (lambda: box_around(torch.zeros(2, 0, 2)), ValueError, "keypoints: expected one or more"),
        (lambda: box_around(torch.zeros(3, 2), weights=torch.ones(2)), ValueError, "weights: expected"),
        (lambda: box_around(torch.zeros(3, 2), weights=[1, 0, 1]), TypeError, "weights: expected a torch"),
        (
            lambda: torso_translation(torch.zeros(17, 3), torch.zeros(17, 2), Camera.guess((1, 1)), "coco17",
                                      weights=torch.ones(16)),
            ValueError, "weights: expected a shape that broadcasts to (17,), got (16,)",
        ),
        (
            lambda: torso_translation(torch.zeros(17, 3), torch.zeros(17, 2), Camera.guess((1, 1)), "coco17",
                                      weights=[1.0] * 17),
            TypeError, "weights: expected a torch.Tensor or None, got list",
        ),
        (lambda: weak_to_translation(torch.zeros(2), BOX, Camera.guess((1, 1))), ValueError, "weak: "),
        (lambda: box_condition(BOX, Camera.guess((1, 1)), normalization="x"), ValueError, "normalization"),
        (
            lambda: weak_to_translation(torch.ones(4, 3), torch.ones(3, 4), Camera.guess((1, 1))),
            ValueError, "batch dimensions do not broadcast: weak (4,), box (3,), camera ()",
        ),
        *(
            (
                lambda call=call, options=options: call(torch.ones(4, 5, 2), torch.ones(3, 4), **options),
                ValueError, "batch dimensions do not broadcast: points (4,), box (3,)",
            )
            for call, options in (
                (to_crop, {"size": (9, 9)}), (from_crop, {"size": (9, 9)}),
                (to_crop, {}), (from_crop, {}),
            )
        ),
        (lambda: to_crop(torch.ones(5, 2), BOX[0], size=224), ValueError, "(width, height), got 224"),
        (
            lambda: torso_translation(torch.zeros(1, 3), torch.zeros(1, 2), Camera.guess((1, 1)),
                                agebody.KeypointLayout("one", ("left_hip",), ())),
            ValueError, "layout: 'one' has no left_shoulder, right_hip, right_shoulder",
        ),
        (
            lambda: torso_translation(torch.zeros(3, 3), torch.zeros(17, 2), Camera.guess((1, 1)), "coco17"),
            ValueError, "points: expected shape (*batch, 17, 3)",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message, unchecked):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "way",
    [
        lambda points, box: to_crop(points, box, size=(8, 8)),
        lambda points, box: from_crop(points, box, size=(8, 8)),
        to_crop,
        from_crop,
        lambda points, box: Camera.guess((9, 9)).cropped(box, size=(8, 8)).center[..., None, :] + points,
        lambda points, box: weak_to_translation(points.mean(-2)[:, [0, 1, 1]], box, Camera.guess((9, 9))),
        lambda points, box: (
            project_weak(
                points[..., [0, 1, 1]], points.mean(-2)[:, [0, 1, 1]], box, Camera.guess((9, 9))
            ).pixels
        ),
    ],
)
@pytest.mark.parametrize("place", [0.0, 1.0])
def test_empty_boxes_do_not_spoil_a_batch(way, place):
    points = torch.full((2, 5, 2), place, requires_grad=True)
    box = box_around(points.detach(), weights=torch.zeros(2, 5))
    assert (box == 0).all()
    found = way(points, box + place)
    assert found.isfinite().all()
    found.sum().backward()
    assert points.grad is None or points.grad.isfinite().all()


def test_the_depth_of_scale_0_has_no_gradient():
    weak = torch.zeros(3, requires_grad=True)
    found = project_weak(torch.ones(1, 3), weak, BOX[0], Camera.guess((9, 9)))
    torch.where(found.visible, found.depth, 0).sum().backward()
    assert weak.grad is not None
    assert weak.grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_boxes_of_no_scale_are_refused(scale):
    for make in (
        lambda: square_box(torch.ones(4), scale=scale),
        lambda: box_around(torch.ones(3, 2), scale=scale),
    ):
        with pytest.raises(ValueError, match="scale: expected a number above 0"):
            make()
