"""Write docs/benchmarks.md, its plots, the README's row and the tables of fits from benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import number
from pages import DEVICES, fitting_tables, lifter_tables, page, plots_of, targets_met
from targets import Results, Target

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
README = ROOT / "README.md"
FITTING = ROOT / "docs" / "fitting" / "evaluation.md"
LIFTER = ROOT / "docs" / "fitting" / "lifter.md"
DEFAULT_BACKEND = {"cpu": "agebody torch", "cuda": "agebody warp"}
"""The backend that ``backend="auto"`` chooses."""


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Read the results by kind of device and subject."""
    found: dict[str, dict[str, Any]] = {device: {} for device in DEVICES}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        found[results["device"]][results["subject"]] = results
    return found


def speed_row(found: Mapping[str, Results]) -> str:
    """Return the row on speed of the README."""

    def ratio(device: str, subject: str, batch: int, measure: Any = "times as fast") -> str:
        target = Target(device, subject, batch, DEFAULT_BACKEND[device], measure, 0, "smplx")
        value = target.achieved(found[device])
        return (
            "?" if value is None else f"1/{1 / value:.0f}" if measure == "times the memory" else number(value)
        )

    smaller = ratio("cpu", "memory", 256, "times the memory")
    forward, both = ([ratio("cpu", name, n) for n in (1, 16, 256)] for name in ("forward", "backward"))
    said = (
        f"on a CPU, compared with smplx, for 1, 16 and 256 bodies: forward {', '.join(forward)} times as "
        f"fast, with gradients {', '.join(both)} times; keypoints {ratio('cpu', 'keypoints', 256)} times "
        f"for 256; {smaller} of the memory"
    )
    if found["cuda"]:
        gpu = next(iter(found["cuda"].values()))["provenance"]["gpu"]
        said += (
            f"; on one {gpu}, for 4096 bodies: forward {ratio('cuda', 'forward', 4096)} times, "
            f"forward + backward {ratio('cuda', 'backward', 4096)} times"
        )
    return f"| Speed | {said} ([method](docs/benchmarks.md)) |"


def with_speed_row(readme: str, found: Mapping[str, Results]) -> str:
    row = speed_row(found)
    return re.sub(r"^\| Speed \|.*\|$", lambda _: row, readme, count=1, flags=re.MULTILINE)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with tables by name, each between two comments."""
    for name, made in tables.items():
        between = re.compile(rf"(<!-- {name} -->\n).*(<!-- end of {name} -->)", re.DOTALL)
        text, count = between.subn(lambda marks, made=made: f"{marks[1]}\n{made}\n{marks[2]}", text)
        if count != 1:
            raise ValueError(f"{name}: expected the page to have a place for this table, got {count}")
    return text


def pages_with_tables(found: Mapping[str, Results]) -> dict[Path, str]:
    """Return the pages on fits and on the lifter, with the tables of their results."""
    fits, lifter = (found["cpu"][name] for name in ("fitting_accuracy", "lifter_accuracy"))
    tables = {FITTING: {"tables": fitting_tables(fits)}, LIFTER: lifter_tables(lifter, fits)}
    return {path: with_tables(path.read_text(), made) for path, made in tables.items()}


def main() -> None:
    from plots import draw

    found = load()
    PAGE.write_text(page(found))
    README.write_text(with_speed_row(README.read_text(), found))
    for path, text in pages_with_tables(found).items():
        path.write_text(text)
    for device, results in found.items():
        for name in plots_of(results):
            path = IMAGES / f"bench_{name}_{device}.png"
            draw(name, results, DEFAULT_BACKEND[device], path)
            print(f"wrote {path.relative_to(ROOT)}")
    print(f"wrote {PAGE.relative_to(ROOT)}", *targets_met(found), sep="\n")


if __name__ == "__main__":
    main()
