"""Runs all subjects on one device, each in a process of its own; options are passed on to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUBJECTS = (
    "forward", "backward", "keypoints", "identity", "memory", "precision", "compiled", "skinning", "kernels",
)  # fmt: skip
CUDA_SUBJECTS = ("graphs",)


def main() -> None:
    options = sys.argv[1:]
    folder = Path(__file__).parent
    subjects = SUBJECTS + (CUDA_SUBJECTS if any("cuda" in option for option in options) else ())
    failed = []
    for subject in subjects:
        if subprocess.run([sys.executable, folder / f"{subject}.py", *options]).returncode:
            failed.append(subject)  # the others still have something to say
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
