"""The body layer on the CPU against smplx and against its own floor, the blend-shape product."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import smplx
import torch
from provenance import provenance
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import agebody
from agebody.assets.io import export_smpl_pkl

BATCHES = (1, 64, 256, 1024)
TARGETS = {
    ("forward", 1): 2.5, ("forward", 64): 2.2, ("forward", 256): 3.0, ("forward", 1024): 3.2,
    ("forward + backward", 1): 2.5, ("forward + backward", 64): 2.5, ("forward + backward", 256): 3.0,
    ("keypoints", 64): 12.0, ("keypoints", 256): 30.0,
}  # fmt: skip


def interleaved(seconds: float, **functions: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each function's time [s], all of them run in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    summary = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        summary[name] = {"median": middle, "quartile_distance": high - low, "runs": len(values)}
    return summary


def peak_memory(function: Callable[[], Any]) -> int:
    """Largest sum of live tensors [bytes] while the function runs, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = function()
    live = top = 0
    for event in record.events():
        if event.name == "[memory]":
            live += event.cpu_memory_usage
            top = max(top, live)
    del result
    return top


def arguments(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    normal = lambda *shape: torch.randn(batch, *shape, generator=generator)  # noqa: E731
    return {
        "betas": normal(10), "body_pose": 0.3 * normal(69), "global_orient": normal(3), "transl": normal(3),
    }  # fmt: skip


def backward(model: Callable[..., Any], given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    given = {name: value.requires_grad_() for name, value in given.items()}
    vertices = model(**given).vertices
    return torch.autograd.grad(vertices.sum(), tuple(given.values()))


def check_answers(body: agebody.BodyModel, peer: smplx.SMPL) -> float:
    """Largest distance between the two bodies' vertices [m]; their gradients are compared too."""
    given = arguments(16)
    torch.testing.assert_close(body(**given).vertices, peer(**given).vertices, rtol=0, atol=4e-6)
    for ours, theirs in zip(backward(body, arguments(16)), backward(peer, arguments(16)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    return float((body(**given).vertices - peer(**given).vertices).abs().max())


def measure(asset: agebody.BodyAsset, batches: tuple[int, ...], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "SMPL_NEUTRAL.pkl"
        export_smpl_pkl(asset, path)
        peer = smplx.SMPL(
            str(path), create_betas=False, create_body_pose=False, create_global_orient=False,
            create_transl=False,
        )  # fmt: skip
    body = agebody.SMPL(asset)
    low = agebody.SMPL(asset, corrective_dtype=torch.bfloat16)
    exact = agebody.SMPL(asset, dtype=torch.float64)
    results: dict[str, Any] = {"largest_difference_m": check_answers(body, peer), "rows": []}

    def row(subject: str, batch: int, times: dict[str, dict[str, float]]) -> None:
        per_body = {name: 1e6 * t["median"] / batch for name, t in times.items()}
        entry = {"subject": subject, "batch": batch, "us_per_body": per_body, "times": times}
        entry["ratio"] = per_body["smplx"] / per_body["agebody"]
        entry["target"] = TARGETS.get((subject, batch))
        results["rows"].append(entry)

    num_coefficients = body.num_betas + 9 * (body.num_joints - 1) + 1
    directions = torch.randn(num_coefficients, 3 * body.num_vertices)
    for batch in batches:
        given = arguments(batch)
        coefficients = torch.randn(batch, num_coefficients)
        pose = {k: v for k, v in given.items() if k != "betas"}
        shaped = body.shape(betas=given["betas"])
        with torch.no_grad():
            times = interleaved(
                seconds,
                smplx=lambda: peer(**given),
                agebody=lambda: body(**given),
                agebody_shaped=lambda: shaped(**pose),
                agebody_bfloat16=lambda: low(**given),
                product=lambda: coefficients @ directions,
            )
            row("forward", batch, times)
            times = interleaved(
                seconds / 2, smplx=lambda: peer(**given), agebody=lambda: body.keypoints("coco17", **given)
            )
            row("keypoints", batch, times)
        gradient = torch.randn(batch, 3 * body.num_vertices)
        times = interleaved(
            seconds,
            smplx=lambda: backward(peer, given),
            agebody=lambda: backward(body, given),
            product=lambda: (coefficients @ directions, gradient @ directions.T),
        )
        row("forward + backward", batch, times)
    given = arguments(256)
    with torch.no_grad():
        memory = {"smplx": peak_memory(lambda: peer(**given)), "agebody": peak_memory(lambda: body(**given))}
        difference = low(**given).vertices - exact(**{k: v.double() for k, v in given.items()}).vertices
    results["peak_memory_bytes_at_256"] = memory
    results["bfloat16_error_mm"] = {
        "largest": 1e3 * float(difference.norm(dim=-1).max()),
        "mean": 1e3 * float(difference.norm(dim=-1).mean()),
    }
    return results


def show(results: dict[str, Any]) -> None:
    table = Table(title="µs a body (medians)", caption="floor: the blend-shape product alone, or its two products")
    for name in ("subject", "B", "smplx", "agebody", "ratio", "target", "floor", "x floor", "shaped", "bf16"):
        table.add_column(name, justify="left" if name == "subject" else "right")
    for row in results["rows"]:
        us = row["us_per_body"]
        floor = us.get("product")
        optional = [us.get("agebody_shaped"), us.get("agebody_bfloat16")]
        table.add_row(
            row["subject"], str(row["batch"]), f"{us['smplx']:.0f}", f"{us['agebody']:.1f}", f"{row['ratio']:.2f}",
            f">= {row['target']:g}" if row["target"] else "", f"{floor:.0f}" if floor else "",
            f"{us['agebody'] / floor:.2f}" if floor else "", *(f"{v:.0f}" if v else "" for v in optional),
        )  # fmt: skip
    console = Console(width=110)
    console.print(table)
    memory = results["peak_memory_bytes_at_256"]
    console.print(
        f"peak memory at B=256: smplx {memory['smplx'] / 1e6:.0f} MB, agebody {memory['agebody'] / 1e6:.0f} MB "
        f"(1/{memory['smplx'] / memory['agebody']:.1f})"
    )
    error = results["bfloat16_error_mm"]
    console.print(f"bfloat16 correctives: error {error['largest']:.3f} mm at most, {error['mean']:.4f} mm on average")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--body", type=Path, help="a model file; the built-in mannequin if not given")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "forward_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asset = agebody.load_asset(options.body) if options.body else agebody.mannequin()
    results = measure(asset, tuple(options.batches), options.seconds)
    results["body"] = repr(asset)
    results["provenance"] = provenance("agebody", "smplx", "numpy")
    show(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
