"""The body layer on the CPU against smplx and against its own floor, the blend-shape product."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
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

import agebody
from agebody.assets.io import export_smpl_pkl

BATCHES = (1, 64, 256, 1024)
CALLS_IN_TURN = 5
TARGETS = {
    ("forward", 1): 2.5, ("forward", 64): 2.2, ("forward", 256): 3.0, ("forward", 1024): 3.2,
    ("forward + backward", 1): 2.5, ("forward + backward", 64): 2.5, ("forward + backward", 256): 3.0,
    ("keypoints", 64): 12.0, ("keypoints", 256): 30.0,
}  # fmt: skip


def interleaved(seconds: float, **functions: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each function's time [s], all of them run in turn, a few calls at a time."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, function in functions.items():
            for _ in range(CALLS_IN_TURN):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    summary = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        summary[name] = {"median": middle, "quartile_distance": high - low, "runs": len(values)}
    return summary


MEMORY_SCRIPT = """
import ctypes, re, torch
from pathlib import Path
from forward import arguments, load_models
torch.set_num_threads({threads})
model = load_models({path!r})[{index}]
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
with torch.no_grad():
    model(**arguments(1))
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed must not be lent to the forward pass
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    model(**arguments({batch}))
print(status("VmHWM") - before)
"""


def peak_memory(path: Path, index: int, batch: int) -> int:
    """By how much one forward pass raises the resident memory of a fresh process [bytes]; Linux only."""
    script = MEMORY_SCRIPT.format(path=str(path), index=index, batch=batch, threads=torch.get_num_threads())
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def load_models(path: str) -> tuple[agebody.BodyModel, smplx.SMPL]:
    with contextlib.redirect_stdout(io.StringIO()):
        peer = smplx.SMPL(
            path, create_betas=False, create_body_pose=False, create_global_orient=False, create_transl=False
        )
    return agebody.SMPL(path), peer


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


def measure(path: Path, batches: tuple[int, ...], seconds: float) -> dict[str, Any]:
    body, peer = load_models(str(path))
    low = agebody.SMPL(body.asset, corrective_dtype=torch.bfloat16)
    exact = agebody.SMPL(body.asset, dtype=torch.float64)
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
        difference = low(**given).vertices - exact(**{k: v.double() for k, v in given.items()}).vertices
    results["peak_memory_bytes_at_256"] = {
        name: peak_memory(path, index, 256) for index, name in enumerate(("agebody", "smplx"))
    }
    results["bfloat16_error_mm"] = {
        "largest": 1e3 * float(difference.norm(dim=-1).max()),
        "mean": 1e3 * float(difference.norm(dim=-1).mean()),
    }
    return results


def show(results: dict[str, Any]) -> None:
    caption = "floor: the blend-shape product alone, or its two products"
    table = Table(title="µs a body (medians)", caption=caption)
    columns = ("subject", "B", "smplx", "agebody", "ratio", "target", "floor", "x floor", "shaped", "bf16")
    for name in columns:
        table.add_column(name, justify="left" if name == "subject" else "right")
    for row in results["rows"]:
        us = row["us_per_body"]
        floor = us.get("product")
        optional = [us.get("agebody_shaped"), us.get("agebody_bfloat16")]
        table.add_row(
            row["subject"], str(row["batch"]),
            f"{us['smplx']:.0f}", f"{us['agebody']:.1f}", f"{row['ratio']:.2f}",
            f">= {row['target']:g}" if row["target"] else "", f"{floor:.0f}" if floor else "",
            f"{us['agebody'] / floor:.2f}" if floor else "", *(f"{v:.0f}" if v else "" for v in optional),
        )  # fmt: skip
    console = Console(width=110)
    console.print(table)
    memory = results["peak_memory_bytes_at_256"]
    theirs, ours = memory["smplx"] / 1e6, memory["agebody"] / 1e6
    console.print(
        f"peak memory at B=256: smplx {theirs:.0f} MB, agebody {ours:.0f} MB (1/{theirs / ours:.1f})"
    )
    error = results["bfloat16_error_mm"]
    worst, mean = error["largest"], error["mean"]
    console.print(f"bfloat16 correctives: error {worst:.3f} mm at most, {mean:.4f} mm on average")


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "SMPL_NEUTRAL.pkl"
        export_smpl_pkl(asset, path)
        results = measure(path, tuple(options.batches), options.seconds)
    results["body"] = repr(asset)
    results["provenance"] = provenance("agebody", "smplx", "numpy")
    show(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
