"""From read-outs to a body: sizes, ages, and what a layer makes of them."""

import pytest
import torch
from bodies import random_body
from model_files import small_smplx
from torch import nn

from agebody import SMIL, SMPL, SMPLA, SMPLX, rotations
from agebody.nets import Regressor, read_prediction, start_readouts

PARENTS = (-1, 0, 0, 2)
BODIES = {
    "adult": lambda: SMPL(random_body(age_offsets=()), pose_format="matrix"),
    "infant": lambda: SMIL(random_body().at_age(1.0), pose_format="matrix"),
    "every age": lambda: SMPLA(random_body(), pose_format="matrix"),
}


def readouts(body, *batch, extra=0):
    gen = torch.Generator().manual_seed(0)
    sizes = {"pose": 6 * body.num_joints, "betas": body.num_betas + extra, "camera": 3}
    return {name: torch.randn(*batch, size, generator=gen) for name, size in sizes.items()}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
def test_predictions_are_inputs_of_the_layer(name, batch):
    body = BODIES[name]()
    given = readouts(body, *batch, extra=1 if body.age_anchors else 0)
    made = read_prediction({**given, "depth": torch.ones(batch)}, body)
    first, second = given["pose"].unflatten(-1, (-1, 2, 3)).unbind(-2)
    assert (made.body_pose[..., 0] - nn.functional.normalize(first[..., 1:, :], dim=-1)).abs().sum() < 1e-4
    assert ((made.body_pose[..., 1] * second[..., 1:, :]).sum(-1) > 0).all()
    out = body(**made.arguments())
    again = body(made.parameters())
    torch.testing.assert_close(out.vertices, again.vertices, atol=2e-5, rtol=1e-5)
    assert set(made.extras) == {"depth"}
    if body.age_anchors:
        assert torch.equal(made.age_offset, given["betas"][..., -1])
    else:
        assert made.age_offset is None


def test_a_head_without_an_age_predicts_adults():
    body = BODIES["every age"]()
    assert torch.equal(read_prediction(readouts(body, 2), body).age_offset, torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pose": torch.zeros(2, 9)}, "pose"),
        ({"betas": torch.zeros(2, 5)}, "betas: expected 3 or 4 numbers"),
        ({"camera": torch.zeros(2, 4)}, "camera"),
    ],
)
def test_wrong_sizes_are_refused(change, words):
    body = BODIES["every age"]()
    with pytest.raises(ValueError, match=words):
        read_prediction({**readouts(body, 2), **change}, body)


def test_hands_and_expressions_are_read_for_bodies_that_have_them():
    body = SMPLX(small_smplx(), pose_format="matrix")
    assert start_readouts(body)["expression"].shape == (10,)
    given = readouts(body, 2, extra=1)
    whole = read_prediction({**given, "expression": torch.ones(2, 10)}, body)
    apart = {"pose": given["pose"][:, :150], "hands": given["pose"][:, 150:]}
    made = read_prediction({**given, **apart}, body)
    assert torch.equal(made.body_pose, whole.body_pose)
    assert made.extras == whole.extras == {}
    assert torch.equal(made.expression, torch.zeros(2, 10))
    assert torch.equal(whole.parameters().betas[:, 10:], torch.ones(2, 10))
    found = body(whole.parameters()).vertices
    torch.testing.assert_close(found, body(**whole.arguments()).vertices, atol=2e-5, rtol=1e-5)
    none = BODIES["every age"]()
    kept = read_prediction(
        {**readouts(none, 2), "hands": torch.ones(2, 6), "expression": torch.ones(2)}, none
    )
    assert kept.extras.keys() == {"hands", "expression"}
    assert kept.expression is None


def test_missing_readouts_are_named():
    body = BODIES["adult"]()
    with pytest.raises(ValueError, match="missing betas, camera"):
        read_prediction({"pose": torch.zeros(24)}, body)


def test_a_regressor_is_a_backbone_a_head_and_a_body():
    body = BODIES["every age"]()
    net = Regressor(
        lambda images: images.mean((-2, -1)),
        lambda features, condition: {
            k: v + 0 * features[:, :1] for k, v in readouts(body, 2, extra=1).items()
        },
        body,
    )
    made = net(torch.zeros(2, 3, 8, 8))
    assert made.body_pose.shape == (2, 3, 3, 3)
    with pytest.raises(ValueError, match="pose_format"):
        Regressor(nn.Identity(), lambda f, c: {}, SMPL(random_body(age_offsets=())))
    assert rotations.matrix_to_axis_angle(made.global_orient).shape == (2, 3)
