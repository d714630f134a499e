"""Draw the pictures of the documentation: ``python docs/pictures [NAME.png ...]``; all without names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
IMAGES = FOLDER.parent / "images"


def main() -> None:
    """Draw the pictures named on the command line."""
    drawn = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        drawn |= importlib.import_module(path.stem).IMAGES
    wanted = sys.argv[1:] or list(drawn)
    for name in wanted:
        if name not in drawn:
            raise SystemExit(f"{name}: expected {', '.join(drawn)}")
        draw, width = drawn[name]
        draw(IMAGES / name, width)
        print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
