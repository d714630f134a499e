"""Two functions that promise the same number give it: under translation, rotation, regressors of any scale, a
switch to an infant, both precisions, and every pose format."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bodies import random_body
from scipy import sparse

from agebody import SMPL, SMPLA, BodyParameters, KeypointLayout, cameras, measure, rotations
from agebody.age import AgeCurve, age_class, parse_ages
from agebody.compat.smplx import lbs
from agebody.measure import Measurements
from agebody.optim.jacobian import SurfaceJacobian
from agebody.optim.state import by_all, keypoint_jacobian

ASSET = random_body()
ROW_SUMS = (1.0, 0.9, 1.0139, 0.0, -0.4)


def _layout() -> KeypointLayout:
    """Points whose rows have these sums, as regressors of papers nearly have, and two joints."""
    rows = np.random.default_rng(0).random((len(ROW_SUMS), ASSET.num_vertices))
    rows *= (np.array(ROW_SUMS) / rows.sum(1))[:, None]
    rows[3] = np.linspace(-1, 1, ASSET.num_vertices)  # a difference of points
    names = tuple(f"point{i}" for i in range(len(ROW_SUMS)))
    own = KeypointLayout.from_regressor(sparse.csr_array(rows), names, name="own")
    joints = tuple(("joints", name) for name in ASSET.joint_names[1:3])
    return dataclasses.replace(own, names=(*names, "a", "b"), sources=(*own.sources, *joints))


LAYOUT = _layout()
BODIES: dict[str, Callable[[torch.dtype], Any]] = {
    "one age": lambda dtype: SMPL(ASSET, dtype=dtype),
    "ages": lambda dtype: SMPLA(ASSET, dtype=dtype, infant_corrective_scale=0.35),
    "switch": lambda dtype: SMPLA(ASSET, smil=ASSET.at_age(0.9), dtype=dtype),
    "transition": lambda dtype: SMPLA(ASSET, smil=ASSET.at_age(0.9), dtype=dtype, transition=0.6),
    "warp": lambda dtype: SMPLA(ASSET, dtype=dtype, backend="warp"),
}


def _given(body: Any) -> BodyParameters:
    """Two bodies far from the origin, turned about; one of them beyond the infant's threshold."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    age = torch.tensor([0.4, 1.0]) if body.age_anchors else torch.zeros(2)
    given = BodyParameters(
        2 * normal(2, 3),
        0.6 * normal(2, 3, 3),
        normal(2, 3),
        age.double(),
        normal(2, 3) + torch.tensor([0, 0, 5.0]),
    )
    return given.map(lambda part: part.to(body.dtype))


def _by_name(body: Any, p: BodyParameters, pose_format: str = "axis_angle") -> dict[str, Any]:
    convert = lambda v: rotations.from_matrix(rotations.axis_angle_to_matrix(v), pose_format)  # noqa: E731
    ages = {"age_offset": p.age_offset} if body.age_anchors else {}
    pose = {"body_pose": convert(p.body_pose), "global_orient": convert(p.global_orient), "transl": p.transl}
    return {"betas": p.betas, **ages, **pose, "pose_format": pose_format}


def _posed(p: BodyParameters) -> dict[str, Any]:
    return {"body_pose": p.body_pose, "global_orient": p.global_orient, "transl": p.transl}


def _regressor(body: Any) -> torch.Tensor:
    return torch.from_numpy(LAYOUT.resolve(ASSET)[1].toarray()).to(body.dtype)


def _points_by_vertices(body: Any, p: BodyParameters) -> torch.Tensor:
    out = body(p)
    points = lbs.vertices2joints(_regressor(body), out.vertices)
    return torch.cat((points[:, : len(ROW_SUMS)], out.joints[:, 1:3]), 1)


def _to_device(body: Any, p: BodyParameters) -> torch.Tensor:
    rotation, shift = _motion(body)
    shaped = body.shape(p)
    orient, transl = shaped.move(rotation, shift, global_orient=p.global_orient, transl=p.transl)
    return shaped(body_pose=p.body_pose, global_orient=orient, transl=transl).vertices


def _motion(body: Any) -> tuple[torch.Tensor, torch.Tensor]:
    turn = torch.tensor([0.3, -1.0, 0.7], dtype=body.dtype)
    return rotations.axis_angle_to_matrix(turn), torch.tensor([1.0, -2.0, 3.0], dtype=body.dtype)


def _rigidly(body: Any, p: BodyParameters) -> torch.Tensor:
    rotation, shift = _motion(body)
    return body(p).vertices @ rotation.mT + shift


def _surface(body: Any, p: BodyParameters) -> Any:
    pose = torch.cat((p.global_orient[:, None], p.body_pose), 1)
    shares = torch.tensor([0.2, 0.5, 0.4], dtype=body.dtype).expand(2, 4, 3)  # a sum of 1.1
    surface, corners = SurfaceJacobian(body), body.faces[:4].expand(2, 4, 3)
    posed = surface.posed(pose, p.betas, p.age_offset, p.transl)
    return surface.rows(posed, corners, shares, along=torch.ones_like(shares))


def _surface_by_vertices(body: Any, p: BodyParameters) -> torch.Tensor:
    shares = torch.tensor([0.2, 0.5, 0.4], dtype=body.dtype)
    return (body(p).vertices[:, body.faces[:4]] * shares[:, None]).sum(-2)


def _jacobian(body: Any, p: BodyParameters) -> Any:
    pose = torch.cat((p.global_orient[:, None], p.body_pose), 1)
    return keypoint_jacobian(body, LAYOUT)(pose, p.betas, p.age_offset, p.transl)


def _by_autograd(body: Any, p: BodyParameters) -> torch.Tensor:
    def points(vector: torch.Tensor) -> torch.Tensor:
        return body.keypoints(LAYOUT, BodyParameters.from_vector(vector, body))

    return torch.stack([torch.func.jacrev(points)(vector) for vector in p.vector()])


Way = Callable[[Any, BodyParameters], torch.Tensor]
ONE_BODY = ("one age", "ages", "warp")
PAIRS: dict[str, tuple[Way, Way, tuple[str, ...]]] = {
    "keypoints, regress": (
        lambda body, p: body.keypoints(LAYOUT, p),
        lambda body, p: body.regress(LAYOUT, body(p).vertices, body(p).joints),
        tuple(BODIES),
    ),
    "keypoints, vertices2joints": (
        lambda body, p: body.keypoints(LAYOUT, p),
        _points_by_vertices,
        tuple(BODIES),
    ),
    "keypoints, of a shaped body": (
        lambda body, p: body.keypoints(LAYOUT, p),
        lambda body, p: body.shape(p).keypoints(LAYOUT, **_posed(p)),
        tuple(BODIES),
    ),
    "keypoints, of all joints": (
        lambda body, p: body.keypoints(
            KeypointLayout("all", ASSET.joint_names, tuple(("joints", name) for name in ASSET.joint_names)), p
        ),
        lambda body, p: body(p).joints,
        tuple(BODIES),
    ),
    "forward, of a shaped body": (
        lambda body, p: body(p).vertices,
        lambda body, p: body.shape(p)(**_posed(p)).vertices,
        tuple(BODIES),
    ),
    "joints, transforms": (
        lambda body, p: body(p).joints,
        lambda body, p: body(p).joint_transforms[..., :3, 3],
        tuple(BODIES),
    ),
    "move, rigid motion": (_to_device, _rigidly, tuple(BODIES)),
    "rest surface, the rest pose": (
        lambda body, p: body.shape(p).rest_vertices,
        lambda body, p: body.shape(p)().vertices,
        tuple(BODIES),
    ),
    "rest joints, the rest pose": (
        lambda body, p: body.shape(p).rest_joints,
        lambda body, p: body.shape(p)().joints,
        tuple(BODIES),
    ),
    **{
        f"parameters, {name}": (
            lambda body, p: torch.cat((body(p).vertices, body.keypoints(LAYOUT, p)), 1),
            lambda body, p, name=name: torch.cat(
                (
                    body(**_by_name(body, p, name)).vertices,
                    body.keypoints(LAYOUT, **_by_name(body, p, name)),
                ),
                1,
            ),
            tuple(BODIES),
        )
        for name in rotations.ENTRY_SHAPES
    },
    "a batch, one after the other": (
        lambda body, p: body(p).vertices,
        lambda body, p: torch.stack([body(p.map(lambda part, i=i: part[i])).vertices for i in range(2)]),
        tuple(BODIES),
    ),
    "keypoints, of a fit": (
        lambda body, p: body.keypoints(LAYOUT, p),
        lambda body, p: _jacobian(body, p).points,
        ONE_BODY,
    ),
    "derivatives, of a fit": (_by_autograd, lambda body, p: by_all(_jacobian(body, p)), ONE_BODY),
    "points of triangles, of a fit": (
        _surface_by_vertices,
        lambda body, p: _surface(body, p).points,
        ONE_BODY,
    ),
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
"""Of coordinates of up to 10 m and derivatives of some metres per radian: some tens of roundings."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("pair", "which"), [(pair, which) for pair in PAIRS for which in PAIRS[pair][2]])
def test_of_bodies(pair, which, dtype):
    body = BODIES[which](dtype)
    given = _given(body)
    first, second, _ = PAIRS[pair]
    torch.testing.assert_close(
        first(body, given), second(body, given), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("which", BODIES)
def test_a_translation_counts_as_often_as_a_row_says(which):
    body = BODIES[which](torch.float64)
    given = _given(body)
    shift = torch.tensor([1.0, -20.0, 300.0], dtype=torch.float64)
    moved = body.keypoints(LAYOUT, given._replace(transl=given.transl + shift)) - body.keypoints(
        LAYOUT, given
    )
    sums = torch.cat((_regressor(body).sum(1)[: len(ROW_SUMS)], torch.ones(2).double()))
    torch.testing.assert_close(moved, (sums[:, None] * shift).expand(2, -1, -1), rtol=0, atol=1e-11)


def test_stature_by_both_ways(mannequin_asset):
    surface = SMPLA(mannequin_asset).shape(age_offset=torch.tensor([0.0, 0.6])).rest_vertices
    measured = Measurements(mannequin_asset, ["stature"])(surface)[..., 0]
    torch.testing.assert_close(measure.stature(surface), measured, rtol=0, atol=1e-6)


def test_projections_by_both_ways():
    points = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    camera = cameras.Camera(torch.full((2,), 800.0), torch.tensor([320.0, 240.0]))
    weak, box = torch.tensor([[0.8, 0.1, 0.2], [0.3, 0.0, -0.4]]), torch.tensor([100.0, 50.0, 324.0, 274.0])
    placed = points + cameras.weak_to_translation(weak, box, camera)[:, None]
    by_weak, by_camera = cameras.project_weak(points, weak, box, camera), camera.project(placed)
    torch.testing.assert_close(by_weak, by_camera, rtol=1e-4, atol=1e-3)
    by_matrix = placed @ camera.intrinsics.mT
    torch.testing.assert_close(
        by_camera.pixels, by_matrix[..., :2] / by_matrix[..., 2:], rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(
        camera.unproject(by_camera.pixels, by_camera.depth), placed, rtol=1e-4, atol=1e-4
    )
    in_crop = camera.cropped(box, size=(224, 224)).project(placed).pixels
    expected = cameras.to_crop(by_camera.pixels, box, size=(224, 224))
    torch.testing.assert_close(in_crop, expected, rtol=1e-5, atol=1e-3)


def test_ages_by_every_way(mannequin_asset):
    curve = AgeCurve.from_asset(mannequin_asset)
    for years in (0.0, 0.4, 1.5, 3.0, 7.0, 12.5, 18.0, 40.0):
        offset = curve.years_to_offset(years)
        for given in (np.array([years]), torch.tensor([years], dtype=torch.float64)):
            assert float(curve.years_to_offset(given)[0]) == pytest.approx(offset, abs=1e-12)
        assert curve.offset_to_years(offset) == pytest.approx(min(years, 19.0), abs=1e-9)
        assert curve.years_to_stature(years) == pytest.approx(curve.offset_to_stature(offset), abs=1e-9)
        for given in (years, torch.tensor(years), np.float64(years), np.float32(years)):
            assert parse_ages(years=given).classes() == parse_ages(years=years).classes()
        assert parse_ages(age_offset=offset).classes() == age_class(offset)
