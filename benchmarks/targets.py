"""Performance targets, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Measure = Literal[
    "times as fast",
    "times the time",
    "times the memory",
    "bodies/s",
    "µs a call",
    "GB/s share",
    "mm",
    "times the error",
    "pixels",
    "% converged",
    "% of stature",
]
AT_LEAST: tuple[Measure, ...] = ("times as fast", "bodies/s", "GB/s share", "% converged")
"""Measures whose target is a lower bound; the others have upper bounds."""
LARGEST_ERROR = 0.1
"""Largest error of 16-bit correctives in any pose [mm]."""

Results = Mapping[str, Mapping[str, Any]]
"""Contents of the files of one kind of device, by subject."""


FITS: tuple[tuple[str, Measure, float], ...] = (
    ("clean", "pixels", 3),
    ("clean", "% converged", 99),
    ("depth", "% of stature", 3),
)
"""Targets of fits to keypoints with 2 px of noise, of unknown and of known depth."""


@dataclass(frozen=True)
class Target:
    """A bound on one figure of a contender."""

    device: str
    subject: str
    batch: int
    contender: str
    measure: Measure
    bound: float
    against: str | None = None
    against_batch: int | None = None
    """Batch size of a peer too slow for ``batch``; times per body are compared."""
    which: str | None = None
    """Pass, where a subject has several; the first if None."""

    def achieved(self, results: Results) -> float | None:
        """Return the figure, or None if it was not measured or one of its two sides failed."""
        if self.subject not in results:
            return None
        found = results[self.subject]
        if self.measure == "mm":
            errors = [e["largest_mm"] for e in found["errors"] if e["contender"] == self.contender]
            return max(errors, default=None)
        ours = _row(found, self.contender, self.batch, self.which)
        theirs = (
            _row(found, self.against, self.against_batch or self.batch, self.which) if self.against else {}
        )
        if ours is None or theirs is None:
            return None
        match self.measure:
            case "times as fast":
                return theirs["median_s"] / theirs["batch"] * ours["batch"] / ours["median_s"]
            case "times the time":
                return ours["median_s"] / theirs["median_s"]
            case "times the memory":
                return ours["peak_bytes"] / theirs["peak_bytes"]
            case "bodies/s":
                return self.batch / ours["median_s"]
            case "µs a call":
                return 1e6 * ours["median_s"]
            case "GB/s share":
                return ours["bytes"] / ours["median_s"] / found["ceilings"]["copy_bytes"]
            case "times the error":
                return ours["px"] / theirs["px"]
            case "pixels":
                return ours["px_median"]
            case "% converged":
                return 100 * ours["converged_mean"]
            case "% of stature":
                return 100 * ours["stature_median"]
        raise AssertionError(self.measure)

    def met(self, achieved: float) -> bool:
        return achieved >= self.bound if self.measure in AT_LEAST else achieved <= self.bound


def _row(found: Mapping[str, Any], contender: str, batch: int, which: str | None) -> Mapping[str, Any] | None:
    """Return the first row of a contender at that size (forward, or all people); None if it failed."""
    for row in found["rows"]:
        if (row["contender"], row["batch"]) == (contender, batch) and which in (None, row.get("which")):
            return None if "failed" in row else row
    return None


def _cpu() -> list[Target]:
    def faster(subject: str, ratios: dict[int, float], which: str | None = None) -> list[Target]:
        return [
            Target("cpu", subject, batch, "agebody torch", "times as fast", ratio, "smplx", None, which)
            for batch, ratio in ratios.items()
        ]

    def bounded(subject: str, ratio: float) -> list[Target]:
        return [
            Target("cpu", subject, batch, "agebody torch", "times the time", ratio, "product")
            for batch in (64, 256, 1024)
        ]

    return [
        *faster("forward", {1: 2.5, 64: 2.2, 256: 3.0, 1024: 3.2}),
        *bounded("forward", 1.4),
        *faster("backward", {1: 2.5, 64: 2.5, 256: 3.0}),
        *bounded("backward", 1.6),
        *faster("keypoints", {64: 12, 256: 30}),
        *faster("whole_body", {1: 2.5, 64: 2.2, 256: 3.0}, "forward"),
        *faster("whole_body", {1: 2.5, 64: 2.5, 256: 3.0}, "forward + backward"),
        *faster("whole_body", {64: 10}, "coco133"),
        Target("cpu", "memory", 256, "agebody torch", "times the memory", 0.25, "smplx"),
        Target("cpu", "precision", 256, "agebody torch float16", "mm", LARGEST_ERROR),
        Target("cpu", "precision", 256, "agebody torch bfloat16", "mm", LARGEST_ERROR),
        Target("cpu", "fitting_speed", 64, "agebody", "times as fast", 10, "SPIN's SMPLify"),
        Target("cpu", "fitting_speed", 64, "agebody", "times the error", 1, "SPIN's SMPLify"),
        Target("cpu", "fitting_speed", 64, "agebody", "times as fast", 100, "SLAHMR's schedule", 16),
        *(
            Target("cpu", "fitting_accuracy", 320, f"{body}, {scenario}", measure, bound)
            for body in ("mannequin", "anny")
            for scenario, measure, bound in FITS
        ),
    ]


TARGETS: tuple[Target, ...] = (
    *_cpu(),
    Target("cuda", "forward", 4096, "agebody warp", "times as fast", 8, "smplx"),
    Target("cuda", "forward", 4096, "agebody warp", "times as fast", 1.5, "body-models warp"),
    Target("cuda", "forward", 4096, "agebody warp", "times the time", 1.3, "roofline"),
    Target("cuda", "backward", 4096, "agebody warp", "times as fast", 8, "smplx"),
    Target("cuda", "precision", 4096, "agebody warp bfloat16", "times as fast", 25, "smplx"),
    Target("cuda", "precision", 4096, "agebody warp bfloat16", "bodies/s", 5e6),
    Target("cuda", "precision", 4096, "agebody warp float16", "mm", LARGEST_ERROR),
    Target("cuda", "precision", 4096, "agebody warp bfloat16", "mm", LARGEST_ERROR),
    Target("cuda", "skinning", 4096, "agebody warp", "GB/s share", 0.7),
    Target("cuda", "memory", 4096, "agebody warp", "times the memory", 0.25, "smplx"),
    Target("cuda", "graphs", 1, "agebody warp graph", "µs a call", 100),
)
