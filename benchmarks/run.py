"""Run all benchmarks on one device, each in its own process; options are passed on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pages import CUDA_SUBJECTS, SUBJECTS


def main() -> None:
    options = sys.argv[1:]
    folder = Path(__file__).parent
    on_cuda = any("cuda" in option for option in options)
    failed = []
    for subject in SUBJECTS:
        if subject in CUDA_SUBJECTS and not on_cuda:
            continue
        if subprocess.run([sys.executable, folder / f"{subject}.py", *options]).returncode:
            failed.append(subject)  # continue with the others
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
