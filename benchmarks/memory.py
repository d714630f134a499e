"""The increase of peak memory by a forward pass, and by a forward + backward pass."""

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
    """Return calls that keep their results, as a user does; their inputs exist before."""
    given = sample_arguments(batch, device=device)
    weights = torch.ones(batch, num_vertices, 3, device=device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return contender.forward(**given)

    return {"forward": forward, PASSES[1]: lambda: forward_and_gradient(contender.forward, given, weights)}


def cuda_peak(function: Callable[[], object]) -> int:
    """Return the peak of torch's allocations during one call above those before it [bytes]."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(name: str, which: str, batch: int, processes: int) -> int:
    """Return by how much one call raises the resident memory of a new process [bytes]; Linux only.

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
    """Run in the new process: warm up with one body, then measure one call."""
    torch.set_num_threads(threads)
    device, asset = torch.device("cpu"), agebody.mannequin()
    with tempfile.TemporaryDirectory() as folder:
        contender = LOADERS[name](name, Files.write(asset, Path(folder), device))
        passes(contender, 1, asset.num_vertices, device)[which]()
        call = passes(contender, batch, asset.num_vertices, device)[which]
        ctypes.CDLL(None).malloc_trim(0)  # memory freed after loading must not be reused by the call
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
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

                    def measure():
                        return found.append(cuda_peak(function))
                else:

                    def measure():
                        return found.append(resident_peak(contender.name, which, batch, processes))

                failure = attempt(measure)
                values = {"failed": failure} if failure else {"peak_bytes": found[0]}
                session.note(batch, contender.name, which=which, **values)
    session.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
