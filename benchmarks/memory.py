"""By how much a forward pass, and a forward + backward pass, raise the peak of memory."""

from __future__ import annotations

import ctypes
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Session, attempt
from peers import LOADERS, Contender, Files

import agebody
from agebody.pipelines.bench import forward_and_gradient, sample_arguments

BATCHES = {"cpu": (256,), "cuda": (256, 4096, 16384)}
PROCESSES = 3
PASSES = ("forward", "forward + backward")


def passes(
    contender: Contender, batch: int, num_vertices: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Calls that keep what they return, as a caller does; their inputs exist before."""
    given = sample_arguments(batch, device=device)
    weights = torch.ones(batch, num_vertices, 3, device=device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return contender.forward(**given)

    return {"forward": forward, PASSES[1]: lambda: forward_and_gradient(contender.forward, given, weights)}


def cuda_peak(function: Callable[[], object]) -> int:
    """Bytes that one call takes from torch at most, beyond what was taken before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(name: str, which: str, batch: int, processes: int) -> int:
    """By how much one call raises the resident memory of a fresh process [bytes]; Linux only.

    The median of some processes: where the allocator finds room differs from one to the next.
    """
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--child", name, which, str(batch), threads]
    peaks = []
    for _ in range(processes):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"the process ended with {result.returncode}: {result.stderr.strip()[-200:]}")
        peaks.append(int(result.stdout.split()[-1]))
    return statistics.median(peaks)


def child(name: str, which: str, batch: int, threads: int) -> None:
    """What the fresh process does: warm up with one body, then measure one call."""
    torch.set_num_threads(threads)
    device, asset = torch.device("cpu"), agebody.mannequin()
    with tempfile.TemporaryDirectory() as folder:
        contender = LOADERS[name](name, Files.write(asset, Path(folder), device))
        passes(contender, 1, asset.num_vertices, device)[which]()
        call = passes(contender, batch, asset.num_vertices, device)[which]
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed must not be lent to the call
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _status("VmRSS")
        kept = call()
        print(_status("VmHWM") - before)
        del kept


def _status(name: str) -> int:
    found = re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    session = Session("memory", __doc__, batches=BATCHES)
    processes = 1 if session.options.quick else PROCESSES
    for contender in session.contenders():
        for batch in session.batches:
            calls = passes(contender, batch, session.asset.num_vertices, session.device)
            for which, function in calls.items():
                found: list[int] = []
                if session.device.type == "cuda":
                    measure = lambda: found.append(cuda_peak(function))  # noqa: E731
                else:
                    measure = lambda: found.append(  # noqa: E731
                        resident_peak(contender.name, which, batch, processes)
                    )
                failure = attempt(measure)
                values = {"failed": failure} if failure else {"peak_bytes": found[0]}
                session.note(batch, contender.name, which=which, **values)
    session.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
