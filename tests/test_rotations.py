import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import roma
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from agebody import rotations

ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.2499, 0.2501, 1.0, 3.0, math.pi, 4.0, 2 * math.pi]
AXIS = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3


def exponential(v: torch.Tensor) -> torch.Tensor:
    """exp([v]x): another definition of the same map, analytic everywhere."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.matrix_exp(torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3)))


@pytest.mark.parametrize("angle", ANGLES)
def test_axis_angle_equals_the_matrix_exponential_to_second_order(angle):
    v = angle * AXIS
    f = rotations.axis_angle_to_matrix
    # 1e-12: a thousand roundings of numbers near one; the exponential itself is no better.
    torch.testing.assert_close(f(v), exponential(v), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.func.jacrev(f)(v), torch.func.jacrev(exponential)(v), rtol=0, atol=1e-12)
    second = lambda g: torch.func.jacrev(torch.func.jacrev(g))(v)  # noqa: E731
    torch.testing.assert_close(second(f), second(exponential), rtol=0, atol=1e-11)


def test_second_derivative_at_zero_is_the_published_one():
    for dtype in (torch.float32, torch.float64):
        hessian = torch.func.hessian(lambda v: rotations.axis_angle_to_matrix(v)[0, 0])(
            torch.zeros(3, dtype=dtype)
        )
        assert torch.equal(hessian, torch.diag(torch.tensor([0.0, -1.0, -1.0], dtype=dtype)))


@pytest.mark.parametrize("angle", ANGLES)
def test_float32_is_accurate_to_its_rounding(angle):
    v = angle * AXIS
    exact = rotations.axis_angle_to_matrix(v)
    # Half an ulp of the angle is turned into an error of the matrix: 2 pi * 6e-8, and a few roundings.
    torch.testing.assert_close(rotations.axis_angle_to_matrix(v.float()).double(), exact, rtol=0, atol=1e-6)
    jacobian = torch.func.jacrev(rotations.axis_angle_to_matrix)
    torch.testing.assert_close(jacobian(v.float()).double(), jacobian(v), rtol=0, atol=4e-6)


@given(hnp.arrays(np.float64, (3,), elements=st.floats(-3, 3)))
def test_all_formats_agree_with_scipy(vector):
    expected = Rotation.from_rotvec(vector)
    matrix = rotations.axis_angle_to_matrix(torch.from_numpy(vector))
    np.testing.assert_allclose(matrix, expected.as_matrix(), atol=1e-14)
    quaternion = torch.from_numpy(expected.as_quat()) * 1.7
    np.testing.assert_allclose(rotations.quaternion_to_matrix(quaternion), expected.as_matrix(), atol=1e-14)
    for name in ("axis_angle", "matrix", "quaternion", "rotation_6d"):
        there = rotations.from_matrix(matrix, name)
        assert there.shape == rotations.ENTRY_SHAPES[name]
        # roma's logarithm near a half turn loses half the digits.
        np.testing.assert_allclose(rotations.to_matrix(there, name), matrix, atol=1e-7)


def test_quaternions_and_their_products_agree_with_scipy():
    vectors = 2 * torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    first, second = (Rotation.from_rotvec(part.numpy()) for part in (vectors, vectors.flip(0)))
    left = rotations.left_multiplication(rotations.axis_angle_to_quaternion(vectors))
    product = (left @ rotations.axis_angle_to_quaternion(vectors.flip(0))[..., None])[..., 0]
    found = rotations.quaternion_to_axis_angle(product)
    torch.testing.assert_close(found, torch.from_numpy((first * second).as_rotvec()), rtol=0, atol=1e-14)


def test_6d_is_gram_schmidt_on_the_first_two_columns():
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = roma.special_gramschmidt(torch.stack((x[:, :3], x[:, 3:]), -1))
    torch.testing.assert_close(rotations.rotation_6d_to_matrix(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["axis_angle", "matrix", "quaternion", "rotation_6d"])
def test_identity_of_each_format(name):
    identity = rotations.no_rotation(name, torch.float32, torch.device("cpu"))
    assert torch.equal(rotations.to_matrix(identity, name), torch.eye(3))
    torch.testing.assert_close(rotations.from_matrix(torch.eye(3), name), identity)


@pytest.mark.parametrize("shape", [(), (0,), (2, 1, 3)])
def test_leading_dimensions(shape):
    assert rotations.axis_angle_to_matrix(torch.zeros(*shape, 3)).shape == (*shape, 3, 3)


def test_unknown_format_is_named(unchecked):
    with pytest.raises(ValueError, match="pose_format: expected one of axis_angle.*'euler'"):
        rotations.to_matrix(torch.zeros(3), "euler")


DEGENERATE = {
    "zeros": torch.zeros(6),
    "zero first column": torch.tensor([0.0, 0, 0, 1, 2, 3]),
    "zero second column": torch.tensor([0.0, 1, 0, 0, 0, 0]),
    "parallel": torch.tensor([1.0, 2, 3, 2, 4, 6]),
    "opposite": torch.tensor([1.0, 0, 0, -1, 0, 0]),
    "tiny": torch.full((6,), 1e-20),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DEGENERATE)
def test_6d_without_two_directions_is_a_rotation_with_a_gradient(name, dtype):
    given = DEGENERATE[name].to(dtype).requires_grad_()
    matrix = rotations.rotation_6d_to_matrix(given)
    exact = matrix.double()
    torch.testing.assert_close(exact.mT @ exact, torch.eye(3).double(), rtol=0, atol=1e-5)
    assert torch.linalg.det(exact) > 0
    (gradient,) = torch.autograd.grad((matrix * torch.arange(9).view(3, 3)).sum(), given)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 100
    if name == "zeros":
        assert torch.equal(matrix, torch.eye(3, dtype=matrix.dtype))


def test_a_zero_quaternion_is_the_identity_with_a_gradient():
    given = torch.zeros(2, 4, requires_grad=True)
    matrix = rotations.quaternion_to_matrix(given)
    assert torch.equal(matrix, torch.eye(3).expand(2, 3, 3))
    (gradient,) = torch.autograd.grad(matrix[:, 0, 1].sum(), given)
    assert torch.equal(gradient, torch.tensor([[0.0, 0, -2, 0]]).expand(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", rotations.ENTRY_SHAPES)
def test_16_bits_are_computed_in_float32(name, dtype):
    given = rotations.from_matrix(rotations.axis_angle_to_matrix(torch.tensor([[0.3, -0.5, 1.0]])), name)
    given = torch.cat((given, rotations.no_rotation(name, torch.float32, given.device)[None])).to(dtype)
    found = rotations.to_matrix(given, name)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rotations.to_matrix(given.float(), name), rtol=0, atol=0)
    assert rotations.from_matrix(found.to(dtype), name).dtype == torch.float32


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (rotations.axis_angle_to_matrix, (24, 4)),
        (rotations.axis_angle_to_matrix, (72,)),
        (rotations.axis_angle_to_matrix, ()),
        (rotations.quaternion_to_matrix, (2, 3)),
        (rotations.rotation_6d_to_matrix, (3, 2)),
        (rotations.matrix_to_rotation_6d, (5, 9)),
        (rotations.matrix_to_axis_angle, (3,)),
        (rotations.matrix_to_quaternion, (4, 4)),
    ],
)
def test_other_shapes_are_refused(unchecked, function, shape):
    name = function.__name__.replace("_to_matrix", "").partition("_to_")[0]
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(\*batch, \d.*\), got \("):
        function(torch.zeros(shape))
    with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor of a floating type, got list"):
        function([0.0, 0.0, 0.0])


def test_composing_no_rotation_has_the_gradient_of_a_sum():
    none = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    for part in torch.autograd.grad(rotations.compose(none, none.clone()).sum(), none):
        torch.testing.assert_close(part, torch.full_like(part, 2))
