"""The common parts of all benchmarks: options, comparison of results, rows, and the result file."""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peers import LOADERS, Contender, Files, load, reason
from provenance import QUIET, others_cores, save_result
from rich.console import Console
from rich.table import Table

import agebody
from agebody.pipelines.bench import Timing, compare, interleaved

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path(__file__).parents[1] / "build" / "bench"
BATCHES = {"cpu": (1, 16, 64, 256, 1024), "cuda": (1, 16, 64, 256, 1024, 4096, 16384, 65536)}
QUICK_BATCHES = (1, 64)
QUICK_SECONDS = 0.1


class Session:
    """One run of one subject.

    Args:
        subject: name of the script.
        description: for ``--help``.
        batches: numbers of bodies by kind of device.
        seconds: for each comparison.
    """

    def __init__(
        self,
        subject: str,
        description: str | None,
        *,
        batches: Mapping[str, tuple[int, ...]] = BATCHES,
        seconds: float = 8.0,
    ) -> None:
        self.options = options = _options(description, seconds)
        self.subject = subject
        self.device = torch.device(options.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise SystemExit(f"--device {options.device}: torch {torch.__version__} sees no CUDA device")
        published = not (options.quick or options.output or options.busy)
        if published and (cores := others_cores(seconds=1.0) or 0.0) > QUIET:
            raise SystemExit(
                f"other programs use {cores} cores: expected a quiet machine for figures in {RESULTS.name}/; "
                "wait, or --busy for figures that are marked"
            )
        torch.set_num_threads(options.threads)
        self.seconds = QUICK_SECONDS if options.quick else options.seconds
        chosen = QUICK_BATCHES if options.quick else batches[self.device.type]
        self.batches: tuple[int, ...] = tuple(options.batch or chosen)
        self.asset = agebody.mannequin()
        self.exact = agebody.SMPL(self.asset, device=self.device, dtype=torch.float64, backend="torch")
        self.absent: dict[str, str] = {}
        self.answers: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self._folder = tempfile.TemporaryDirectory()

    def contenders(self, names: list[str] | None = None) -> list[Contender]:
        """Return contenders that run with correct results; record the reason for each other one."""
        files = Files.write(self.asset, Path(self._folder.name), self.device)
        found, absent = load(names or list(LOADERS), files)
        self.absent |= absent
        right = []
        for contender in found:
            try:
                self.answers[contender.name] = compare(contender.forward, self.exact)
            except Exception as error:
                self.absent[contender.name] = reason(error)
                if contender.name.startswith("agebody"):
                    raise
            else:
                right.append(contender)
        return right

    def time(self, batch: int, functions: Mapping[str, Callable[[], Any]], **extra: Any) -> dict[str, Timing]:
        """Time functions in turn and record a row for each, or the reason why it fails."""
        running = {}
        for name, function in functions.items():
            failure = attempt(function)
            if failure is None:
                running[name] = function
            else:
                self.rows.append({"batch": batch, "contender": name, "failed": failure, **extra})
        times = interleaved(running, device=self.device, seconds=self.seconds)
        for name, timing in times.items():
            self.note(
                batch,
                name,
                median_s=timing.median,
                low_s=timing.low,
                high_s=timing.high,
                calls=timing.calls,
                **extra,
            )
        return times

    def note(self, batch: int, contender: str, **values: Any) -> None:
        self.rows.append({"batch": batch, "contender": contender, **values})

    def finish(self) -> None:
        """Write the results and print them."""
        self._folder.cleanup()
        found = {
            "body": repr(self.asset),
            "seconds": self.seconds,
            "absent": self.absent,
            "vertex_difference_m": self.answers,
            **self.extra,
            "rows": self.rows,
        }
        default = QUICK_RESULTS if self.options.quick else RESULTS
        path = self.options.output or default / f"{self.subject}_{self.device.type}.json"
        save_result(path, self.subject, device=str(self.device), commit=self.options.commit, **found)
        self._print()
        print(f"wrote {path}")

    def _print(self) -> None:
        table = Table(title=f"{self.subject} on {self.device}", title_justify="left")
        table.add_column("contender")
        for heading in ("bodies", "µs a body", "quartiles", "calls"):
            table.add_column(heading, justify="right")
        table.add_column("note", overflow="fold")
        for row in self.rows:
            table.add_row(*_cells(row))
        console = Console()
        console.print(table)
        for name, why in self.absent.items():
            console.print(f"{name} is absent: {why}", markup=False, highlight=False)


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one printed row."""
    name = f"{row['contender']}, {row['which']}" if "which" in row else row["contender"]
    cells = [name, str(row["batch"]), "", "", "", ""]
    scale = 1e6 / row["batch"]
    if "median_s" in row:
        cells[2] = f"{scale * row['median_s']:.1f}"
    if "calls" in row:
        cells[3] = f"{scale * row['low_s']:.1f} – {scale * row['high_s']:.1f}"
        cells[4] = str(row["calls"])
    if "roofline_s" in row:
        cells[5] = f"{100 * row['roofline_s'] / row['median_s']:.0f} % of the roofline"
    elif "peak_bytes" in row:
        cells[5] = f"{row['peak_bytes'] / 1e6:.1f} MB"
    else:
        cells[5] = row.get("failed", row.get("graph", ""))
    return cells


def attempt(function: Callable[[], Any]) -> str | None:
    """Call a function once; return why it fails, or None."""
    try:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except (torch.cuda.OutOfMemoryError, MemoryError):
        failure = "does not fit in memory"
    except Exception as error:
        no_memory = "allocate memory" in str(error) or "not enough memory" in str(error)
        failure = "does not fit in memory" if no_memory else reason(error)
    else:
        return None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure


def _options(description: str | None, seconds: float) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=seconds, help="for each comparison")
    parser.add_argument("--batch", type=int, action="append", help="number of bodies; may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few sizes, a moment each, into build/bench")
    parser.add_argument("--busy", action="store_true", help="run beside other programs, and mark the figures")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--commit", help="what ran, where there is no repository to ask")
    return parser.parse_args()
