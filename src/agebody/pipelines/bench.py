"""A benchmark of bodies on this machine: results compared, calls interleaved, ratios to smplx and a bound."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from agebody.assets.asset import BodyAsset
from agebody.assets.io import export_smpl
from agebody.body import SMPL, BodyModel
from agebody.engine.backend import BackendName

WARM_UP = 2
"""Untimed calls of each function: the first compiles and allocates, the second has warm caches."""
CALLS_IN_TURN = 5
"""Consecutive calls of a function: four of five then find their own data in the caches."""
SLOW = 0.05
"""Longer calls are timed once per turn, since they move more data than any cache holds [s]."""
FEWEST_CALLS = 5
"""Least number of calls of each function: a median and quartiles of fewer mean little."""
STABLE = 0.02
"""How much medians of the first and of the second half of the calls may differ, relative to each other."""
LONGEST = 3
"""How many times as long as asked for calls are repeated if medians are not stable."""
POSE_SD = 0.3
"""Standard deviation of the coordinates of sampled rotation vectors [rad]."""
VERTEX_TOLERANCE = 1e-5
"""Ten times the rounding of float32 in a body of 2 m; a wrong joint or blend shape moves more [m]."""
GRADIENT_TOLERANCE = 1e-3
"""Relative to the largest entry: gradients are float32 sums over 20,670 coordinates."""


@dataclass(frozen=True)
class Timing:
    """Time per call [s]."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    calls: int


@dataclass(frozen=True)
class Row:
    """One subject at one batch size, with interleaved calls."""

    subject: str
    batch: int
    agebody: Timing
    peer: Timing | None
    """smplx, if it is installed."""
    bound: Timing | None
    """The blend-shape products alone, if the subject contains them."""

    @property
    def speedup(self) -> float | None:
        """Time of smplx over that of agebody."""
        return None if self.peer is None else self.peer.median / self.agebody.median

    @property
    def over_bound(self) -> float | None:
        """Time of agebody over that of the lower bound."""
        return None if self.bound is None else self.agebody.median / self.bound.median


@dataclass(frozen=True)
class Report:
    """The result of `run_bench`."""

    device: str
    backend: str
    rows: tuple[Row, ...]
    largest_difference: float | None
    """Between vertices of agebody and smplx [m]; None if smplx is not installed."""


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, device: torch.device | str = "cpu", seconds: float = 1.0
) -> dict[str, Timing]:
    """Time functions in turn, a few calls at a time, so that a change of the machine's speed affects all.

    Args:
        functions: functions by name; their results are dropped.
        device: where they compute. On CUDA the clock of the GPU runs from the end of one call's work to the
            end of the next one's, so launch overhead counts; elsewhere it is `time.perf_counter`.
        seconds: for all functions together; each is called at least five times, and for up to three times as
            long if medians of the first and the second half of the calls differ by over 2 %.
    """
    device = torch.device(device)
    measure = _seconds_on_cuda if device.type == "cuda" else _seconds
    times: dict[str, list[float]] = {name: [] for name in functions}
    turns = {}
    for name, function in functions.items():
        slowest = max(measure(function, WARM_UP, device)[1:])
        turns[name] = 1 if slowest > SLOW else CALLS_IN_TURN
    order = list(functions)
    begin = time.perf_counter()

    def goes_on() -> bool:
        passed = time.perf_counter() - begin
        few = passed < seconds or min(map(len, times.values())) < FEWEST_CALLS
        return few or (passed < LONGEST * seconds and not all(map(_is_stable, times.values())))

    while order and goes_on():
        for name in order:
            times[name] += measure(functions[name], turns[name], device)
        order = [*order[1:], order[0]]  # so that none always follows the same one
    return {name: _summary(values) for name, values in times.items()}


def _seconds(function: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(calls):
        function()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def _seconds_on_cuda(function: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def _is_stable(values: list[float]) -> bool:
    half = len(values) // 2
    first, second = statistics.median(values[:half]), statistics.median(values[half:])
    return abs(first - second) <= STABLE * min(first, second)


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values))


def sample_arguments(
    batch: int,
    *,
    num_betas: int = 10,
    num_joints: int = 24,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return random betas, pose and translation as arguments of `BodyModel.forward`, equal in every call."""
    generator = torch.Generator().manual_seed(batch)
    sizes = {"betas": num_betas, "body_pose": 3 * (num_joints - 1), "global_orient": 3, "transl": 3}
    scales = {"betas": 1.0, "body_pose": POSE_SD, "global_orient": 1.0, "transl": 1.0}
    return {
        name: (scales[name] * torch.randn(batch, size, generator=generator)).to(device, dtype)
        for name, size in sizes.items()
    }


def forward_and_gradient(
    forward: Callable[..., Tensor], arguments: Mapping[str, Tensor], weights: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of ``(weights * forward(**arguments)).sum()`` by every argument."""
    wanted = {name: value.detach().requires_grad_() for name, value in arguments.items()}
    return torch.autograd.grad(forward(**wanted), tuple(wanted.values()), weights)


def blend_products(
    num_coefficients: int, num_vertices: int, batch: int, *, device: torch.device | str = "cpu"
) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, Tensor]]]:
    """Return float32 lower bounds: the matrix product of a forward pass, and the two of forward + backward.

    Every layer of this kind computes the product of B rows of coefficients (the constant 1, betas, pose
    feature) with their displacements (coefficients, 3 V).
    """
    coefficients = torch.randn(batch, num_coefficients, device=device)
    directions = torch.randn(num_coefficients, 3 * num_vertices, device=device)
    gradient = torch.randn(batch, 3 * num_vertices, device=device)
    return (
        lambda: coefficients @ directions,
        lambda: (coefficients @ directions, gradient @ directions.T),
    )


def num_coefficients(body: BodyModel) -> int:
    """Return the number of coefficients of a body: the template, betas and pose blend shapes."""
    return 1 + body.num_coefficients + body.num_correctives


def load_smplx(path: Path, device: torch.device | str) -> Any:
    """Load the SMPL layer of smplx from one file, without stored pose parameters."""
    import smplx

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning about 10 betas
        layer = smplx.SMPL(
            str(path),
            create_betas=False,
            create_body_pose=False,
            create_global_orient=False,
            create_transl=False,
        )
    return layer.to(device)


def compare(forward: Callable[..., Tensor], exact: BodyModel, batch: int = 16) -> float:
    """Compare vertices and gradients of a float32 layer with those of the float64 layer.

    Returns:
        The largest distance between vertices [m].
    """
    sizes = {"num_betas": exact.num_coefficients, "num_joints": exact.num_joints, "device": exact.device}
    given = sample_arguments(batch, **sizes)
    doubled = {name: value.double() for name, value in given.items()}
    truth = vertices_of(exact)
    with torch.no_grad():
        difference = float((forward(**given).double() - truth(**doubled)).norm(dim=-1).max())
    if not difference <= VERTEX_TOLERANCE:
        raise ValueError(f"vertices differ by {1e3 * difference:.3g} mm from the float64 layer's")
    weights = torch.randn(batch, exact.num_vertices, 3, generator=torch.Generator().manual_seed(0))
    weights = weights.to(exact.device)
    ours = forward_and_gradient(forward, given, weights)
    theirs = forward_and_gradient(truth, doubled, weights.double())
    for name, a, b in zip(given, ours, theirs, strict=True):
        error = float((a - b).abs().max() / b.abs().max())
        if not error <= GRADIENT_TOLERANCE:
            raise ValueError(f"the gradient in {name} differs by {error:.2g} of its largest entry")
    return difference


def run_bench(
    asset: BodyAsset,
    *,
    device: torch.device | str = "cpu",
    backend: BackendName = "auto",
    batches: tuple[int, ...] = (1, 64, 1024),
    seconds: float = 1.0,
    layout: str = "coco17",
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Report:
    """Time forward, forward + backward and keypoints, compared with smplx if it is installed.

    Each subject is timed for some ``seconds`` at each batch. Age templates are left out, since smplx has
    none; it is timed up to the mesh that keypoints would be regressed from. ``progress`` is called with what
    is being timed, and the fraction done, 0 to 1.
    """
    device = torch.device(device)
    body = SMPL(asset, device=device, backend=backend)
    exact = SMPL(asset, device=device, dtype=torch.float64, backend="torch")
    progress("comparing results", 0)
    compare(vertices_of(body), exact)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "SMPL_NEUTRAL.pkl"
        export_smpl(asset, file)
        try:
            peer = vertices_of(load_smplx(file, device))
        except ImportError:
            peer = None
    largest = None
    if peer is not None:
        compare(peer, exact)
        given = sample_arguments(
            16, num_betas=body.num_coefficients, num_joints=body.num_joints, device=device
        )
        with torch.no_grad():
            largest = float((vertices_of(body)(**given) - peer(**given)).norm(dim=-1).max())
    rows = []
    for i, batch in enumerate(batches):
        progress(f"{batch} bodies", i / len(batches))
        rows += _rows(body, peer, batch, seconds, layout)
    progress("done", 1)
    return Report(str(device), body.backend, tuple(rows), largest)


def vertices_of(layer: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return a layer as a function that gives its vertices alone."""
    return lambda **arguments: layer(**arguments).vertices


def _rows(
    body: BodyModel, peer: Callable[..., Tensor] | None, batch: int, seconds: float, layout: str
) -> list[Row]:
    given = sample_arguments(
        batch, num_betas=body.num_coefficients, num_joints=body.num_joints, device=body.device
    )
    weights = torch.randn(batch, body.num_vertices, 3, device=body.device)
    forward, keypoints = vertices_of(body), cast(Callable[..., Tensor], body.keypoints)
    product, products = blend_products(num_coefficients(body), body.num_vertices, batch, device=body.device)
    subjects: dict[str, dict[str, Callable[[], Any] | None]] = {
        "forward": {
            "agebody": lambda: forward(**given),
            "peer": peer and (lambda: peer(**given)),
            "bound": product,
        },
        "forward + backward": {
            "agebody": lambda: forward_and_gradient(forward, given, weights),
            "peer": peer and (lambda: forward_and_gradient(peer, given, weights)),
            "bound": products,
        },
        f'keypoints("{layout}")': {
            "agebody": lambda: keypoints(layout, **given),
            "peer": peer and (lambda: peer(**given)),
        },
    }
    rows = []
    for subject, functions in subjects.items():
        present = {name: function for name, function in functions.items() if function is not None}
        with torch.set_grad_enabled("backward" in subject):
            times = interleaved(present, device=body.device, seconds=seconds)
        rows.append(Row(subject, batch, times["agebody"], times.get("peer"), times.get("bound")))
    return rows
