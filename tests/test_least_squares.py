"""The solver of least squares: against scipy, torch.linalg and closed forms, and how each problem ends."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agebody.optim.least_squares import Stop, minimize
from agebody.optim.quadratic import ChainQuadratic, Quadratic

EXACT: dict[str, Any] = {"cost_tolerance": 0.0, "step_tolerance": 1e-12, "gradient_tolerance": 1e-14}


def by_autograd(residuals):
    """What `minimize` takes, of a function (b, N), rows -> (b, M)."""

    def quadratize(x: Tensor, rows: Tensor) -> Quadratic:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, row: residuals(x[None], row[None])[0]))(
            x, rows
        )
        return Quadratic.of(residuals(x, rows), jacobian)

    return quadratize


def rosenbrock(x: Tensor, rows: Tensor | None = None) -> Tensor:
    return torch.stack((10 * (x[:, 1] - x[:, 0] ** 2), 1 - x[:, 0]), -1)


def valley(x: Tensor, rows: Tensor) -> Quadratic:
    """Rosenbrock's function, in closed form."""
    one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
    jacobian = torch.stack((-20 * x[:, 0], 10 * one, -one, zero), -1).unflatten(-1, (2, 2))
    return Quadratic.of(rosenbrock(x), jacobian)


def starts(count: int, size: int = 2, dtype: torch.dtype = torch.float64, spread: float = 1.5) -> Tensor:
    return spread * torch.randn(count, size, dtype=dtype, generator=torch.Generator().manual_seed(count))


def linear(count: int, rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """A (B, M, N), y (B, M), and the quadratize of |A x - y|^2 / 2 whose rows do not see each other."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, rows, columns, dtype=dtype, generator=generator)
    target = torch.randn(count, rows, dtype=dtype, generator=generator)

    def quadratize(x: Tensor, which: Tensor) -> Quadratic:
        found = [
            Quadratic.of((matrix[i] @ own - target[i])[None], matrix[i][None])
            for own, i in zip(x, which.tolist(), strict=True)
        ]
        return Quadratic(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    return matrix, target, quadratize


# Minima


def test_rosenbrock():
    found = minimize(valley, starts(12), max_iterations=60)
    assert found.converged.all()
    torch.testing.assert_close(found.x, torch.ones_like(found.x), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.cost, rosenbrock(found.x).square().sum(-1) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_fits_equal_scipys(dtype):
    times = torch.linspace(0, 3, 30, dtype=dtype)
    noise = 0.05 * torch.randn(8, 30, dtype=dtype, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([2.0, 1.3, 0.4], dtype=dtype) * torch.linspace(0.5, 1.5, 8, dtype=dtype)[:, None]
    seen = truth[:, :1] * torch.exp(-truth[:, 1:2] * times) + truth[:, 2:] + noise

    def residuals(x: Tensor, rows: Tensor) -> Tensor:
        return x[:, :1] * torch.exp(-x[:, 1:2] * times) + x[:, 2:] - seen[rows]

    slopes = lambda x: residuals(x[None], torch.tensor([0]))[0]  # noqa: E731
    found = minimize(by_autograd(residuals), torch.ones(8, 3, dtype=dtype), cost_tolerance=1e-12)
    assert found.converged.all()
    for i in range(8):
        peer = scipy.optimize.least_squares(
            lambda x, i=i: residuals(torch.tensor(x)[None].to(dtype), torch.tensor([i]))[0].double().numpy(),
            [1, 1, 1], xtol=1e-12, ftol=1e-12, gtol=1e-12,
            jac=lambda x: torch.func.jacrev(slopes)(torch.tensor(x)).numpy(),  # type: ignore[arg-type]
        )  # fmt: skip
        # A cost of relative precision eps decides x to about its root.
        torch.testing.assert_close(
            found.x[i], torch.tensor(peer.x, dtype=dtype), rtol=0, atol=4 * torch.finfo(dtype).eps ** 0.5
        )


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 6), st.integers(0, 1000))
def test_linear_problems_equal_lstsq(count, columns, more, seed):
    matrix, target, quadratize = linear(count, columns + more, columns, seed=seed)
    # Gauss-Newton on the normal equations, which square the condition number: left out where that is no test.
    if torch.linalg.cond(matrix).max() > 1e4:
        return
    found = minimize(quadratize, torch.zeros(count, columns, dtype=torch.float64), **EXACT)
    best = torch.linalg.lstsq(matrix, target[..., None]).solution[..., 0]
    torch.testing.assert_close(found.x, best, rtol=1e-5, atol=1e-6)


def test_bounds_equal_scipys():
    generator = torch.Generator().manual_seed(3)
    lower = -torch.rand(10, 4, dtype=torch.float64, generator=generator)
    upper = torch.rand(10, 4, dtype=torch.float64, generator=generator)
    lower[0], upper[1] = -torch.inf, torch.inf
    matrix, target, quadratize = linear(10, 8, 4, seed=4)
    found = minimize(
        quadratize, torch.zeros(10, 4, dtype=torch.float64), lower=lower, upper=upper,
        max_iterations=1000, cost_tolerance=1e-14,
    )  # fmt: skip
    assert (found.x >= lower).all()
    assert (found.x <= upper).all()
    assert ((found.x == lower) | (found.x == upper)).any()
    for i in range(10):
        peer = scipy.optimize.lsq_linear(
            matrix[i].numpy(), target[i].numpy(), (lower[i].numpy(), upper[i].numpy()), tol=1e-14
        )
        np.testing.assert_allclose(found.x[i].numpy(), peer.x, atol=1e-6)


def test_bounds_of_a_curved_problem_equal_scipys():
    found = minimize(valley, starts(6), upper=torch.tensor([0.5, 10.0]), **EXACT)
    peer = scipy.optimize.least_squares(
        lambda x: rosenbrock(torch.tensor(x)[None])[0].numpy(), [0, 0], bounds=([-np.inf] * 2, [0.5, 10])
    )
    # scipy stays inside the bounds by about a millionth.
    torch.testing.assert_close(found.x, torch.tensor(peer.x).expand(6, 2), rtol=0, atol=1e-4)


def test_a_bound_costs_no_more_steps_than_none():
    # A step that meets a bound is found again without what was stopped there: one step more solves the rest.
    _, _, quadratize = linear(20, 30, 10)
    start = torch.zeros(20, 10, dtype=torch.float64)
    free = minimize(quadratize, start, damping=1e-12)
    bound = minimize(quadratize, start, damping=1e-12, upper=torch.full((1, 10), 0.05, dtype=torch.float64))
    assert (bound.x == 0.05).any(-1).all()
    assert bound.iterations.max() <= free.iterations.max() + 3


def test_start_is_moved_within_the_bounds_and_lower_equal_to_upper_holds():
    _, _, quadratize = linear(3, 6, 2)
    wall = torch.tensor([0.25, -torch.inf], dtype=torch.float64)
    found = minimize(quadratize, torch.full((3, 2), 9.0, dtype=torch.float64), lower=wall, upper=wall.abs())
    assert (found.x[:, 0] == 0.25).all()
    assert (found.x[:, 1] != 9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_problems_end_at_a_minimum(dtype):
    matrix, target, _ = linear(4, 6, 3, dtype)
    double = torch.cat((matrix, matrix[..., :1], torch.zeros_like(matrix[..., :1])), -1)
    found = minimize(
        lambda x, rows: Quadratic.of((double[rows] @ x[..., None])[..., 0] - target[rows], double[rows]),
        torch.zeros(4, 5, dtype=dtype),
    )
    best = torch.linalg.lstsq(matrix.double(), target.double()[..., None]).solution
    least = ((matrix.double() @ best)[..., 0] - target).square().sum(-1) / 2
    assert found.converged.all()
    assert (found.x[:, 4] == 0).all()
    torch.testing.assert_close(found.cost, least.to(dtype), rtol=1e-4, atol=1e-6)


def test_badly_scaled_variables_in_float32():
    # Columns of 1e-3 to 1e3: a factor of 1e12 in the normal matrix, 1e5 beyond float32.
    scale = torch.logspace(-3, 3, 5)
    matrix, target, _ = linear(6, 12, 5, torch.float32)
    found = minimize(
        lambda x, rows: Quadratic.of(
            (matrix[rows] @ (scale * x)[..., None])[..., 0] - target[rows], matrix[rows] * scale
        ),
        torch.zeros(6, 5),
    )
    best = torch.linalg.lstsq(matrix, target[..., None]).solution[..., 0]
    torch.testing.assert_close(found.x * scale, best, rtol=1e-3, atol=1e-3)


# How problems end


def test_reasons():
    def residuals(x: Tensor, rows: Tensor) -> Tensor:
        x = x[:, 0]
        curved = torch.stack((x - 1, 0.3 * x**2), -1)
        stepped = torch.stack((x.round() + 2, torch.ones_like(x)), -1)
        return torch.where(
            (rows == 2)[:, None], stepped, torch.where((rows == 1)[:, None], x[:, None], curved)
        )

    def quadratize(x: Tensor, rows: Tensor) -> Quadratic:
        found = by_autograd(residuals)(x, rows)
        slope = x.new_tensor([[[1.0], [0.0]]])  # what round() hides
        steep = Quadratic.of(residuals(x, rows), slope.expand(len(x), 2, 1))
        lies = rows == 2
        return Quadratic(
            torch.where(lies, steep.cost, found.cost),
            torch.where(lies[:, None], steep.gradient, found.gradient),
            torch.where(lies[:, None, None], steep.normal, found.normal),
        )

    start = torch.tensor([[3.0], [0.0], [0.1]], dtype=torch.float64)
    found = minimize(quadratize, start, cost_tolerance=1e-3)
    assert found.stop.tolist()[:2] == [Stop.COST, Stop.GRADIENT]
    assert found.converged[:2].all()
    assert found.iterations[1] == 0
    short = minimize(quadratize, start[:1], cost_tolerance=0, step_tolerance=0.05, gradient_tolerance=0)
    assert short.stop.tolist() == [Stop.STEP]
    few = minimize(quadratize, start[:1], max_iterations=2)
    assert few.stop.tolist() == [Stop.ITERATIONS]
    assert not few.converged
    assert few.iterations.tolist() == [2]


def test_stuck_where_the_predicted_reduction_never_comes():
    lie = lambda x, rows: Quadratic.of(x + 1, -torch.ones_like(x)[..., None])  # noqa: E731
    found = minimize(lie, torch.ones(1, 1, dtype=torch.float64), step_tolerance=0, max_iterations=100)
    assert found.stop.tolist() == [Stop.STUCK]
    assert not found.converged
    assert found.x.tolist() == [[1.0]]


def test_a_gradient_of_the_wrong_sign_does_not_converge():
    def astray(x: Tensor, rows: Tensor) -> Quadratic:
        found = valley(x, rows)
        return found._replace(gradient=-found.gradient)

    start = torch.tensor([[-1.2, 1.0], [3.0, -3.0]], dtype=torch.float64)
    found = minimize(astray, start, max_iterations=1500)
    assert not found.converged.any()
    assert found.stop.tolist() == [Stop.STUCK] * 2


@pytest.mark.parametrize("damping", [1e-6, 1e8])
def test_steps_that_damping_holds_back_do_not_count_as_converged(damping):
    start = torch.tensor([[-1.2, 1.0], [3.0, -3.0]], dtype=torch.float64)
    found = minimize(valley, start, damping=damping, max_iterations=200)
    assert found.converged.all()
    torch.testing.assert_close(found.x, torch.ones_like(found.x), rtol=0, atol=1e-4)


def test_a_reduction_that_rounding_hides_counts_as_converged():
    # Reductions below 1e-7 of the cost do not show in float32: the model alone says that none is left.
    def hidden(x: Tensor, rows: Tensor) -> Quadratic:
        residuals = torch.cat((x - 1, torch.full_like(x, 1e3)), -1)
        return Quadratic.of(residuals, torch.eye(2)[:, :1].expand(len(x), 2, 1))

    found = minimize(hidden, torch.tensor([[1.1], [0.95]]), cost_tolerance=0, gradient_tolerance=0)
    assert found.converged.all()
    assert found.iterations.max() <= 3


def test_problems_with_a_nonfinite_start_stay_at_it():
    _, _, quadratize = linear(4, 6, 3)
    start = torch.zeros(4, 3, dtype=torch.float64)
    start[1, 0], start[2, 1] = torch.nan, torch.inf
    found = minimize(quadratize, start, max_iterations=3000)
    assert found.stop[1:3].tolist() == [Stop.NOT_FINITE] * 2
    assert found.converged.tolist() == [True, False, False, True]
    torch.testing.assert_close(found.x[1:3], start[1:3], equal_nan=True)
    assert found.x[[0, 3]].isfinite().all()


def test_steps_into_nan_are_not_accepted():
    # A wall at 0.5, beyond which nothing is known; the minimum of the logarithm's problem is just before it.
    def residuals(x: Tensor, rows: Tensor) -> Tensor:
        return torch.cat((torch.log(0.5 - x), x + 1), -1)

    found = minimize(
        by_autograd(residuals), torch.tensor([[-3.0], [0.49]], dtype=torch.float64),
        max_iterations=800, cost_tolerance=1e-4,
    )  # fmt: skip
    peer = scipy.optimize.minimize_scalar(
        lambda x: math.log(0.5 - x) ** 2 + (x + 1) ** 2, bounds=(-3, 0.499), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found.converged.all()
    torch.testing.assert_close(
        found.x[:, 0], torch.full((2,), peer.x, dtype=torch.float64), rtol=0, atol=1e-2
    )


def test_problems_with_only_nan_steps():
    def quadratize(x: Tensor, rows: Tensor) -> Quadratic:
        found = Quadratic.of(x - 1, torch.eye(2, dtype=x.dtype).expand(len(x), 2, 2))
        astray = (x != 0).any(-1)
        return found._replace(cost=torch.where(astray, torch.nan, found.cost))

    found = minimize(quadratize, torch.zeros(2, 2, dtype=torch.float64), max_iterations=300)
    assert found.stop.tolist() == [Stop.NOT_FINITE] * 2
    assert (found.x == 0).all()
    assert found.cost.isfinite().all()


def test_an_empty_batch():
    found = minimize(valley, torch.zeros(0, 2))
    assert found.x.shape == (0, 2)
    assert found.cost.shape == found.stop.shape == (0,)


# Batches and repetition


def test_problems_are_independent():
    # This quadratize computes each row alone; so whatever differs is the solver's.
    _, _, quadratize = linear(7, 9, 5)
    start = starts(7, 5)
    upper = torch.full((7, 5), 0.3, dtype=torch.float64)
    whole = minimize(quadratize, start, upper=upper, max_iterations=40)
    for i in (0, 3, 6):
        alone = minimize(
            lambda x, rows, i=i: quadratize(x, rows + i), start[i : i + 1], upper=upper[:1],
            max_iterations=40,
        )  # fmt: skip
        # Not to the bit: a product of matrices may take another path for one row.
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=1e-9, atol=1e-9)
        assert alone.stop[0] == whole.stop[i]
        assert alone.iterations[0] == whole.iterations[i]


def test_runs_repeat_to_the_bit():
    _, _, quadratize = linear(6, 20, 8, torch.float32)
    first, second = (minimize(quadratize, torch.zeros(6, 8)) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.cost, second.cost)


def test_only_problems_that_go_on_are_evaluated():
    asked = []

    def quadratize(x: Tensor, rows: Tensor) -> Quadratic:
        asked.append(len(rows))
        return valley(x, rows)

    found = minimize(quadratize, torch.cat((starts(5), torch.ones(3, 2, dtype=torch.float64))))
    assert asked[:2] == [8, 5]
    assert sum(asked[1:]) == found.iterations.sum()


def test_results_are_the_points_of_lowest_cost():
    seen = []

    def quadratize(x: Tensor, rows: Tensor) -> Quadratic:
        found = valley(x, rows)
        seen.append((rows, found.cost))
        return found

    found = minimize(quadratize, starts(4), max_iterations=15)
    least = torch.full((4,), torch.inf, dtype=torch.float64)
    for rows, cost in seen:
        least[rows] = torch.minimum(least[rows], cost)
    torch.testing.assert_close(found.cost, least, rtol=1e-9, atol=1e-12)


# Chains


def chain(count: int, frames: int, own: int, shared: int, coupled: bool, seed: int = 0):
    """A random chain, and the same as a dense problem."""
    generator = torch.Generator().manual_seed(seed)
    size = frames * own + shared
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    normal, gradient = (
        torch.zeros(count, size, size, dtype=torch.float64),
        torch.zeros(count, size, dtype=torch.float64),
    )
    cost = torch.zeros(count, dtype=torch.float64)
    for t in range(frames):  # residuals that see a frame, the next and what is shared
        reach = own * (2 if coupled and t + 1 < frames else 1)
        columns = [*range(t * own, t * own + reach), *range(frames * own, size)]
        jacobian, residuals = draw(count, 2 * own + shared, len(columns)), draw(count, 2 * own + shared)
        index = torch.tensor(columns)
        normal[:, index[:, None], index] += jacobian.mT @ jacobian
        gradient[:, index] += (residuals[:, None] @ jacobian)[:, 0]
        cost += residuals.square().sum(-1) / 2
    inner = normal[:, : frames * own, : frames * own].unflatten(2, (frames, own)).unflatten(1, (frames, own))
    return Quadratic(cost, gradient, normal), ChainQuadratic(
        cost,
        gradient[:, : frames * own].unflatten(1, (frames, own)),
        gradient[:, frames * own :],
        torch.stack([inner[:, t, :, t] for t in range(frames)], 1),
        torch.stack([inner[:, t, :, t + 1] for t in range(frames - 1)], 1) if coupled and frames > 1
        else inner.new_zeros(count, 0, own, own) if coupled else None,
        normal[:, : frames * own, frames * own :].unflatten(1, (frames, own)),
        normal[:, frames * own :, frames * own :],
    )  # fmt: skip


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(("frames", "own", "shared"), [(1, 3, 2), (2, 1, 1), (6, 4, 3), (5, 3, 0)])
def test_chains_equal_dense_matrices(coupled, frames, own, shared):
    dense, found = chain(3, frames, own, shared, coupled)
    generator = torch.Generator().manual_seed(1)
    size = frames * own + shared
    vector = torch.randn(3, size, dtype=torch.float64, generator=generator)
    added = torch.rand(3, size, dtype=torch.float64, generator=generator)
    fixed = torch.rand(3, size, generator=generator) < 0.4
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}  # conditions of up to 1e4
    torch.testing.assert_close(found.gradient, dense.gradient)
    torch.testing.assert_close(found.diagonal(), dense.diagonal())
    torch.testing.assert_close(found.product(vector), dense.product(vector))
    for pinned in (None, fixed):
        solved = found.solve(vector, added, pinned)
        torch.testing.assert_close(solved, dense.solve(vector, added, pinned), **close)
        # The definition of both, by another decomposition.
        matrix = dense.normal + torch.diag_embed(added)
        keep = torch.ones_like(vector) if pinned is None else (~pinned).double()
        matrix = matrix * keep[:, None] * keep[:, :, None] + torch.diag_embed(1 - keep)
        torch.testing.assert_close(solved, torch.linalg.solve(matrix, keep * vector), **close)
    for pinned in (torch.zeros_like(fixed), fixed):  # each frame's own target
        targets = torch.where(pinned, 0, torch.randn(frames, *vector.shape, generator=generator).to(vector))
        end, places = frames * own, torch.arange(frames)[:, None] * own + torch.arange(own)
        inside = torch.zeros(frames, size, dtype=torch.bool).scatter(1, places, True)
        inside[:, end:] = True
        targets = torch.where(inside[:, None], targets, 0)
        by_frame = targets[torch.arange(frames)[:, None], :, places].permute(2, 0, 1)
        at_frames, at_shared = found.solve_frames(by_frame, targets[..., end:].movedim(0, 1), pinned)
        for t, target in enumerate(targets):
            solved = dense.solve(target, torch.zeros_like(vector), pinned)
            torch.testing.assert_close(at_frames[:, t], solved[:, places[t]], **close)
            torch.testing.assert_close(at_shared[:, t], solved[:, end:], **close)


def test_indefinite_matrices_have_no_step():
    dense, found = chain(3, 4, 2, 1, True)
    worse = torch.zeros(3, 9, dtype=torch.float64)
    worse[1, 0] = worse[2, 8] = -1e3
    for model in (dense, found):
        assert model.solve(dense.gradient, worse, None).isnan().all(1).tolist() == [False, True, True]


def test_chains_equal_dense_problems():
    # Frames of an oscillation whose frequency and amplitude are shared: phases of frames drift.
    frames = 6
    times = torch.arange(frames, dtype=torch.float64)
    seen = torch.stack([1.3 * torch.sin(0.8 * times + p) + 0.2 * torch.cos(3 * times) for p in (0.1, 0.7)])

    def residuals(x: Tensor, rows: Tensor) -> Tensor:
        phase, omega, size = x[:, :frames], x[:, frames : frames + 1], x[:, frames + 1 :]
        off = size * torch.sin(omega * times + phase) - seen[rows]
        return torch.cat((off, 0.5 * phase.diff(dim=-1), 0.1 * phase), -1)

    def chained(x: Tensor, rows: Tensor) -> ChainQuadratic:
        cost, gradient, normal = by_autograd(residuals)(x, rows)
        inner = normal[:, :frames, :frames]
        return ChainQuadratic(
            cost, gradient[:, :frames, None], gradient[:, frames:],
            inner.diagonal(dim1=1, dim2=2)[..., None, None], inner.diagonal(1, 1, 2)[..., None, None],
            normal[:, :frames, None, frames:], normal[:, frames:, frames:],
        )  # fmt: skip

    start = torch.cat((torch.zeros(2, frames), torch.ones(2, 2)), 1).double()
    for upper in (None, torch.full((8,), 0.9, dtype=torch.float64)):
        dense, found = (minimize(q, start, upper=upper) for q in (by_autograd(residuals), chained))
        torch.testing.assert_close(found.x, dense.x, rtol=1e-7, atol=1e-8)
        assert torch.equal(found.stop, dense.stop)
        assert torch.equal(found.iterations, dense.iterations)


# Errors


def test_errors(unchecked):
    quadratize, start = valley, starts(3)
    with pytest.raises(
        ValueError, match=r"start: expected floats of shape \(B, N\), got torch.float64 \(2,\)"
    ):
        minimize(quadratize, start[0])
    with pytest.raises(ValueError, match=r"start: expected floats"):
        minimize(quadratize, start.long())
    with pytest.raises(ValueError, match=r"lower: expected a shape that broadcasts to \(3, 2\), got \(3,\)"):
        minimize(quadratize, start, lower=torch.zeros(3))
    for bad in (torch.tensor([2.0, 0.0]), torch.tensor([torch.nan, 0.0])):
        with pytest.raises(ValueError, match=r"lower: expected numbers that are not above"):
            minimize(quadratize, start, lower=bad, upper=torch.ones(2))
    with pytest.raises(ValueError, match=r"quadratize: expected costs and gradients of \(3, 2\) variables"):
        minimize(lambda x, rows: quadratize(x[:1], rows[:1]), start)
    wrong = {
        "damping": 0.0, "cost_tolerance": math.nan, "step_tolerance": -1e-3,
        "gradient_tolerance": math.inf, "max_iterations": -1,
    }  # fmt: skip
    for name, number in wrong.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            minimize(quadratize, start, **{name: number})  # type: ignore[arg-type]
