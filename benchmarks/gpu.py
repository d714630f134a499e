"""An ordered plan for a GPU: each step has a limit and a log, and none stops the next."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

FIRST, LAST = ("kernels", "backend"), ("warmup", "proximity", "collisions", "blend_skin")
BATCHES = (1, 64, 1024, 4096, 16384)
FOLDERS = ("build/bench", "benchmarks/results")


class Step(NamedTuple):
    """A command, and the seconds after which it is ended."""

    name: str
    command: list[str]
    limit: float


def plan(device: str, quick: bool) -> list[Step]:
    """Return the steps: the most informative ten minutes first."""
    on_cuda = device.startswith("cuda")

    def tests(names: tuple[str, ...], limit: float) -> Step:
        files = [f"tests/test_{name}.py" for name in names]
        chosen = ["-m", "cuda"] if on_cuda else ["-k", "devices or warp"]
        return Step(
            f"test {' '.join(names)}",
            ["-m", "pytest", "-W", "default", "-p", "no:cacheprovider", *chosen, *files],
            limit / 3 if quick else limit,
        )

    def bench(subject: str, *options: str, limit: float = 120) -> Step:
        chosen = ["--quick", "--batch", "1"] if quick else list(options)
        command = [f"benchmarks/{subject}.py", "--device", device, *chosen]
        return Step(subject, command, limit / 4 if quick else limit)

    sizes = [part for batch in BATCHES for part in ("--batch", str(batch))]
    steps = [
        tests(FIRST, 150),
        bench("kernels", "--seconds", "0.5", "--batch", "4096"),
        bench("forward", "--seconds", "1", *sizes),
        bench("backward", "--seconds", "1", *sizes),
        *([bench("graphs", "--seconds", "1")] if on_cuda else []),
        bench("precision", "--seconds", "1", "--batch", "4096"),
        tests(LAST, 150),
    ]
    steps += [
        bench(name, "--seconds", "1") for name in ("closest", "skinning", "keypoints", "identity", "memory")
    ]
    return [*steps, bench("objective", "--seconds", "1"), bench("compiled", "--batch", "4096", limit=300)]


def run(steps: list[Step], output: Path) -> list[str]:
    """Run the steps, each with a log; gather results after each. Return the lines that sum up what failed."""
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, step in enumerate(steps, 1):
        start = time.perf_counter()
        log = output / f"{number:02d}_{step.name.replace(' ', '_')}.log"
        with log.open("w") as file:
            try:
                command = [sys.executable, "-u", *step.command]
                code = subprocess.run(command, stdout=file, stderr=file, timeout=step.limit).returncode
                end = "passed" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                end = f"ended after {step.limit:.0f} s"
        line = f"{step.name}: {end} ({time.perf_counter() - start:.0f} s), {log}"
        print(line, flush=True)
        if end != "passed":
            failed.append(line)
        with tarfile.open(output / "results.tar", "w") as tar:
            for path in (*sorted(output.glob("*.log")), *map(Path, FOLDERS)):
                if path.exists():
                    tar.add(path)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: a moment each")
    parser.add_argument(
        "--output", type=Path, default=Path("build/gpu"), help="folder of logs and results.tar"
    )
    options = parser.parse_args()
    failed = run(plan(options.device, options.quick), options.output)
    if failed:
        raise SystemExit("\n".join(("not passed:", *failed)))


if __name__ == "__main__":
    main()
