"""The machine, the versions and the commit of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import agebody

PACKAGES = ("smplx", "body-models", "smplfitter", "py-soma-x", "anny", "trimesh", "warp-lang", "numpy")

QUIET = 0.2
"""Cores that other programs, and other virtual machines, may use on a quiet machine."""


def _busy() -> tuple[float, float]:
    """Return time, and CPU time of all but this program and its children, both in seconds."""
    try:
        user, nice, system, _, _, _, _, stolen, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:  # not Linux: unknown
        return time.perf_counter(), float("nan")
    # Stolen time is that in which other virtual machines had this one's cores.
    spent = (user + nice + system + stolen) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), spent - sum(os.times()[:4])


_BEGIN = _busy()


def others_cores(seconds: float = 0.0) -> float | None:
    """Return how many cores others use, for some seconds from now on, or else since the import.

    None if the system does not report it.
    """
    begin = _busy() if seconds else _BEGIN
    time.sleep(seconds)
    end = _busy()
    cores = (end[1] - begin[1]) / (end[0] - begin[0])
    return round(max(cores, 0.0), 2) if cores == cores else None


def provenance(device: torch.device, *, commit: str | None = None) -> dict[str, Any]:
    """Return versions, machine and commit; the argument is the commit outside a repository."""
    found = commit or _output("git", "rev-parse", "HEAD")
    # Results are rewritten by each script of one run, and change none of its figures.
    changed = _output("git", "status", "--porcelain", "-uno", "--", ":/", ":!results")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": found,
        "uncommitted_changes": None if commit else bool(changed),
        **_processor(),
        **(_gpu(device) if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "others_cores": others_cores(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {"agebody": agebody.__version__, "torch": torch.__version__} | _versions(),
    }


def save_result(
    path: Path, subject: str, *, device: str = "cpu", commit: str | None = None, **found: Any
) -> None:
    """Write the figures of a benchmark, with versions, machine and commit."""
    made_with = provenance(torch.device(device), commit=commit)
    result = {"subject": subject, "device": torch.device(device).type, **found, "provenance": made_with}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(names) or None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
    }


def _output(*command: str) -> str | None:
    """Return what a program prints, or None if it is missing or fails."""
    try:
        folder = Path(__file__).parent
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
