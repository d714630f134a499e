"""Iterative heads, part attention and the field of view: formulas, bodies, exports."""

import math

import numpy as np
import pytest
import torch
from bodies import random_body
from networks import filled, onnx_outputs, wave
from torch import nn

import agebody
from agebody import SMIL, SMPL, SMPLA, cameras
from agebody.losses import metric_aware_objective
from agebody.mesh import PartMap
from agebody.nets import (
    FieldOfView,
    IterativeHead,
    PartAttentionHead,
    Regressor,
    read_prediction,
    start_readouts,
)

BODIES = {
    "adult": lambda: SMPL(random_body(age_offsets=()), pose_format="matrix"),
    "infant": lambda: SMIL(random_body().at_age(1.0), pose_format="matrix"),
    "every age": lambda: SMPLA(random_body(), pose_format="matrix"),
}
LIMBS = {"trunk": "joint0", "arm": "joint2"}
"""Two parts of a body of four joints."""


def iterative(body, **options):
    return IterativeHead(start_readouts(body), channels=8, width=16, **options)


def by_parts(body, parts=None, **options):
    return PartAttentionHead(start_readouts(body), parts, channels=8, width=16, narrow=4, **options)


def few_parts(body):
    return by_parts(body, PartMap.from_joints(body.asset, LIMBS))


HEADS = {"iterative": iterative, "part attention": by_parts, "few parts": few_parts}


class Pooled(nn.Module):
    """Features of 8 channels at 16 x 12 pixels from images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images):
        return self.layer(images)


def network(kind, body):
    return Regressor(Pooled(), HEADS[kind](body), body)


@pytest.mark.parametrize("age", BODIES)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_a_body(kind, age):
    torch.manual_seed(0)
    body = BODIES[age]()
    made = network(kind, body).eval()
    images = torch.randn(3, 3, 64, 48)
    first = made(images)
    torch.testing.assert_close(first.camera, torch.tensor([0.9, 0, 0]).expand(3, -1), atol=0.1, rtol=0)
    with torch.no_grad():
        target = body(betas=0.5 * torch.randn(3, body.num_betas)).vertices
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    errors = []
    for _ in range(30):
        loss = (body(**made(images).arguments()).vertices - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.5 * errors[0]
    learns = {name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert learns == {"head.deccam.weight", "head.deccam.bias"} or kind == "iterative"


@pytest.mark.parametrize("kind", ["iterative", "few parts", "field of view"])
def test_a_head_is_exported_with_any_batch_and_compiled(kind, tmp_path, unchecked):
    if kind == "field of view":
        head, given = filled(FieldOfView(6)), wave("token", 5, 6)
        parts = lambda found: [found]  # noqa: E731
    else:
        head, given = filled(HEADS[kind](BODIES["every age"]())), wave("features", 5, 8, 4, 3)
        parts = lambda found: list(found.values())  # noqa: E731
    expected = parts(head(given))
    for found in (
        onnx_outputs(head, (given[:2],), (given,), tmp_path / "head.onnx"),
        parts(torch.compile(head, fullgraph=True, backend="aot_eager")(given)),
    ):
        for part, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(part, reference, atol=2e-5, rtol=1e-4)


def test_regression_with_feedback_is_the_formula_of_hmr():
    starts = {"pose": wave("pose", 24), "betas": wave("betas", 4), "camera": wave("camera", 3)}
    head = filled(IterativeHead(starts, channels=8, condition=3, width=16, iterations=3))
    features, condition = wave("features", 2, 8, 4, 3), wave("condition", 2, 3)
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    names = {"decpose": "init_body_pose", "decshape": "init_betas", "deccam": "init_cam"}
    for person in range(2):
        given = [*features[person].double().numpy().mean((1, 2)), *condition[person].double().numpy()]
        state = {layer: weights[start][0] for layer, start in names.items()}
        for _ in range(3):
            hidden = np.concatenate([given, *state.values()])
            for layer in ("fc1", "fc2"):
                hidden = weights[f"{layer}.weight"] @ hidden + weights[f"{layer}.bias"]
            state = {
                layer: last + weights[f"{layer}.weight"] @ hidden + weights[f"{layer}.bias"]
                for layer, last in state.items()
            }
        found = head(features, condition)
        for expected, name in zip(state.values(), ("pose", "betas", "camera"), strict=True):
            np.testing.assert_allclose(found[name][person].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8), (2, 12, 8), (2, 8, 4, 3), (0, 8)])
def test_features_may_be_vectors_tokens_or_maps(shape):
    head = filled(iterative(BODIES["adult"]()))
    features = wave("features", *shape)
    pooled = features.flatten(2).mean(2) if len(shape) == 4 else features
    pooled = pooled.mean(1) if len(shape) == 3 else pooled
    for found, expected in zip(head(features).values(), head(pooled).values(), strict=True):
        torch.testing.assert_close(found, expected)


def test_dropout_acts_in_training_alone():
    head = iterative(BODIES["adult"]())
    features = torch.randn(4, 8)
    assert not torch.equal(head(features)["pose"], head(features)["pose"])
    head.eval()
    assert torch.equal(head(features)["pose"], head(features)["pose"])


def test_part_attention_is_a_weighted_sum_over_pixels_per_part():
    body = BODIES["every age"]()
    parts = PartMap.from_joints(body.asset, LIMBS)
    head = filled(few_parts(body))
    features = wave("features", 2, 8, 4, 3)
    found = {name: tensor.detach().double().numpy() for name, tensor in head(features).items()}
    seen = head.body_branch(features).detach().double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    assert found["parts"].shape == (2, 3, 4, 3)
    for person in range(2):
        attended = np.zeros((2, 16))
        for part in range(2):
            shares = np.exp(found["parts"][person, part + 1])
            for i, j in np.ndindex(4, 3):
                attended[part] += shares[i, j] / shares.sum() * seen[person, :, i, j]
        pose = weights["init_body_pose"].copy().reshape(4, 6)
        for joint, part in enumerate(parts.joints):
            pose[joint] += weights["pose_weight"][joint] @ attended[part]
        np.testing.assert_allclose(found["pose"][person], pose.ravel(), rtol=1e-5, atol=1e-5)
        narrow = (attended @ weights["narrow.weight"].T + weights["narrow.bias"]).ravel()
        betas = weights["init_betas"][0] + weights["decshape.weight"] @ narrow + weights["decshape.bias"]
        np.testing.assert_allclose(found["betas"][person], betas, rtol=1e-5, atol=1e-5)


def test_a_start_is_kept_in_the_order_of_its_joints():
    body = SMPLA(agebody.mannequin(), pose_format="matrix")
    starts = start_readouts(body) | {"pose": torch.arange(144.0)}
    head = PartAttentionHead(starts, PartMap.from_joints(body.asset, 7), channels=8)
    nn.init.zeros_(head.pose_weight)
    torch.testing.assert_close(head(torch.randn(2, 8, 7, 7))["pose"], torch.arange(144.0).expand(2, -1))


def test_part_maps_teach_where_to_look():
    torch.manual_seed(0)
    body = BODIES["adult"]()
    made = network("few parts", body).train()
    images = torch.randn(2, 3, 64, 48)
    truth = torch.arange(16 * 12).reshape(16, 12).div(64, rounding_mode="floor").expand(2, -1, -1)
    images = images + nn.functional.interpolate(truth[:, None].float(), scale_factor=4)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(made(images).extras["parts"], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (made(images).extras["parts"].argmax(1) == truth).float().mean() > 0.9


def test_upsampling_doubles_the_map_in_each_layer():
    head = by_parts(BODIES["adult"](), layers=3, upsample=True)
    assert head(torch.randn(2, 8, 7, 7))["parts"].shape == (2, 5, 56, 56)


class Camera(nn.Module):
    """A head and the camera branch on tokens whose first is the class token."""

    def __init__(self, head):
        super().__init__()
        self.head, self.field_of_view = head, FieldOfView(8)

    def forward(self, tokens, condition):
        return self.head(tokens[:, 1:], condition) | {"fov": self.field_of_view(tokens[:, 0])}


@pytest.mark.parametrize("detached", [False, True])
def test_metric_aware_training_moves_the_field_of_view_unless_detached(detached, unchecked):
    torch.manual_seed(0)
    body = SMPLA(random_body(num_betas=10), pose_format="matrix")
    head = IterativeHead(start_readouts(body) | {"camera": torch.zeros(3)}, channels=8, width=16)
    made = Regressor(lambda tokens: tokens, Camera(head).eval(), body)
    tokens = torch.randn(4, 13, 8)
    objective = metric_aware_objective(age=True).without("pose", "keypoints_3d", "keypoints_2d")
    target = {
        "betas": torch.full((4, 10), 0.3),
        "age_offset": torch.tensor([0.0, 1.0, 0.0, 0.5]),
        "depth": torch.tensor([3.0, 3.5, 6.0, 5.5]),
        "image": torch.tensor([0, 0, 1, 1]),
        "fov": torch.full((4,), 0.9),
    }

    def predict():
        found = made(tokens)
        fov = found.extras["fov"]
        focal = cameras.Camera.from_fov(fov.detach() if detached else fov, (640, 480)).focal[..., 1]
        depth = cameras.mahmr_to_translation(found.camera, focal)[:, 2]
        return found.arguments() | {"depth": depth, "fov": fov}

    objective.without("betas", "fov")(predict(), target).total.backward()
    assert all((p.grad is None) == detached for p in made.head.field_of_view.parameters())
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        total = objective(predict(), target).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert (predict()["fov"] - 0.9).abs().mean() < 0.1


def test_the_field_of_view_is_that_of_a_perceptron_with_a_floor():
    branch = filled(FieldOfView(6))
    token = wave("token", 3, 2, 6)
    hidden = token.double()
    for i in range(4):
        layer = branch.layers[i]
        hidden = hidden @ layer.weight.double().T + layer.bias.double()
        hidden = hidden.clamp(min=0) if i < 3 else hidden
    torch.testing.assert_close(branch(token).double(), hidden[..., 0].clamp(min=0.08))
    assert (FieldOfView(6)(torch.zeros(2, 6)) - math.pi / 6).abs().max() < 0.2
    assert [tuple(layer.weight.shape) for layer in FieldOfView().layers] == 3 * [(768, 768)] + [(1, 768)]


def test_a_field_of_view_below_the_floor_recovers():
    branch = FieldOfView(6)
    nn.init.constant_(branch.layers[-1].bias, -3)
    (branch(torch.zeros(1, 6)) - 0.9).square().sum().backward()
    assert branch(torch.zeros(1, 6)).item() == pytest.approx(0.08)
    assert branch.layers[-1].bias.grad < 0


def test_features_of_another_type_are_cast_to_the_weights():
    for kind in HEADS:
        head = filled(HEADS[kind](BODIES["every age"]()))
        features = wave("features", 2, 8, 4, 3)
        for name, found in head(features.double()).items():
            torch.testing.assert_close(found, head(features)[name])
        assert head.half()(features)["pose"].dtype == torch.float16
    token, branch = wave("token", 2, 6), FieldOfView(6)
    torch.testing.assert_close(branch(token.double()), branch(token))
    torch.testing.assert_close(branch(token), branch.half()(token).float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 4, 3), (8,)])
def test_wrong_features_are_refused(kind, shape, unchecked):
    with pytest.raises(ValueError, match=r"features: expected shape .*8"):
        HEADS[kind](BODIES["adult"]())(torch.zeros(shape))


def test_wrong_conditions_and_read_outs_are_refused(unchecked):
    body = BODIES["adult"]()
    refused = (
        (lambda: iterative(body)(torch.zeros(2, 8), torch.zeros(2, 3)), "condition: expected None"),
        (lambda: by_parts(body)(torch.zeros(2, 8, 4, 4), torch.zeros(2, 3)), "condition: expected None"),
        (lambda: iterative(body, condition=3)(torch.zeros(2, 8)), "condition: expected shape"),
        (
            lambda: iterative(body, condition=3)(torch.zeros(2, 8), torch.zeros(1, 3)),
            r"condition: expected shape \(2, 3\)",
        ),
        (
            lambda: IterativeHead({"pose": 24}),
            "readouts: expected a start to begin from, got the size of pose",
        ),
        (lambda: PartAttentionHead({"betas": torch.zeros(3)}), "readouts: expected pose among them"),
        (
            lambda: by_parts(body, PartMap.from_joints(agebody.mannequin())),
            "parts: expected those of a body of 4 joints, got 24",
        ),
        (lambda: FieldOfView(6)(torch.zeros(2, 5)), "token: expected shape"),
        (
            lambda: PartAttentionHead({"pose": 25}),
            "readouts: expected pose among them, six numbers per joint",
        ),
        (lambda: PartAttentionHead({"pose": 24, "parts": 3}), "not parts, which the head adds"),
        (lambda: PartAttentionHead({"pose": 24}, layers=0), "layers: expected a whole number of 1 or more"),
        (lambda: IterativeHead({"a.b": torch.zeros(3)}), "readouts: expected a name without dots"),
        (lambda: PartAttentionHead({"pose": [0.0] * 24}), "readouts: .* got 'pose' and list"),
    )
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", HEADS)
def test_heads_run_in_other_precisions(kind):
    body = BODIES["every age"]()
    head = filled(HEADS[kind](body))
    features = wave("features", 2, 8, 4, 3)
    exact = head(features)

    def read(features, **tolerance):
        found = read_prediction(head(features), body)
        expected = read_prediction(exact, body)
        torch.testing.assert_close(found.betas.double(), expected.betas.double(), **tolerance)
        assert found.body_pose.isfinite().all()

    with torch.inference_mode():
        read(features, atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        read(features, atol=0.1, rtol=0.1)
    head.double()
    read(features.double(), atol=1e-5, rtol=1e-5)
    head.bfloat16()
    read(features.bfloat16(), atol=0.1, rtol=0.1)
