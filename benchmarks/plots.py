"""The plots of the benchmark page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Results = Mapping[str, Mapping[str, Any]]

# Okabe and Ito's colours, distinct for any colour vision, and different markers.
LOOK = {
    "agebody torch": ("#0072B2", "o"),
    "agebody warp": ("#D55E00", "s"),
    "smplx": ("#4d4d4d", "^"),
    "body-models torch": ("#009E73", "v"),
    "body-models warp": ("#CC79A7", "D"),
    "smplfitter": ("#E69F00", "P"),
    "soma warp": ("#56B4E9", "X"),
}
BOUNDS = {"product": ("--", ""), "roofline": (":", "x")}
TITLES = {"forward": "forward", "backward": "forward + backward", "keypoints": "keypoints (coco17)"}
STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
}


def fingerprint(results: Results) -> str:
    """Return the hash of the data of a plot, which is written into its file."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def drawn_from(name: str, results: Results) -> Results:
    """Return the rows that a plot shows."""
    subjects = {"times": ("forward", "backward"), "ratios": tuple(TITLES), "kernels": ("kernels",)}[name]
    return {subject: {"rows": results[subject]["rows"]} for subject in subjects}


def draw(name: str, results: Results, ours: str, path: Path) -> None:
    shown = drawn_from(name, results)
    with plt.rc_context(STYLE):
        figure = {"times": _times, "ratios": _ratios, "kernels": _kernels}[name](shown, ours)
        figure.savefig(path, dpi=130, metadata={"Software": None, "Description": fingerprint(shown)})
        plt.close(figure)


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "median_s" in row:
            curves.setdefault(row["contender"], []).append(row)
    return {name: sorted(points, key=lambda row: row["batch"]) for name, points in curves.items()}


def _times(results: Results, ours: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    handles: dict[str, Any] = {}
    for ax, (subject, found) in zip(axes, results.items(), strict=True):
        curves = _curves(found["rows"])
        for name, points in curves.items():
            batches = [row["batch"] for row in points]
            values = [1e6 * row["median_s"] / row["batch"] for row in points]
            if name in BOUNDS:
                style, marker = BOUNDS[name]
                (line,) = ax.plot(batches, values, style, color="#888888", lw=1.5, marker=marker, ms=6)
            else:
                color, marker = LOOK[name]
                width = 2.4 if name.startswith("agebody") else 1.3
                (line,) = ax.plot(batches, values, color=color, marker=marker, ms=5, lw=width)
                ax.fill_between(
                    batches,
                    [1e6 * row["low_s"] / row["batch"] for row in points],
                    [1e6 * row["high_s"] / row["batch"] for row in points],
                    color=color,
                    alpha=0.13,
                    lw=0,
                )
            line.set_label(name)
            handles.setdefault(name, line)
        ax.set(title=TITLES[subject], xlabel="bodies in a batch")
        _log_axes(ax, sorted({row["batch"] for row in found["rows"]}))
    axes[0].set_ylabel("µs a body (median; band: quartiles)")
    order = [name for name in (*LOOK, *BOUNDS) if name in handles]
    figure.legend(handles=[handles[name] for name in order], loc="outside right center")
    return figure


def _log_axes(ax: Axes, batches: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(batches, [str(b) for b in batches])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(which="minor", length=0)


def _ratios(results: Results, ours: str) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
    for ax, (subject, found) in zip(axes, results.items(), strict=True):
        curves = {
            name: {r["batch"]: r["median_s"] for r in rows} for name, rows in _curves(found["rows"]).items()
        }
        mine = curves[ours if ours in curves else "agebody torch"]
        peers = [name for name in LOOK if name in curves and not name.startswith("agebody")]
        batches = sorted(mine)
        width = 0.8 / len(peers)
        for i, peer in enumerate(peers):
            there = [k for k, b in enumerate(batches) if b in curves[peer]]
            values = [curves[peer][batches[k]] / mine[batches[k]] for k in there]
            places = [k + (i - (len(peers) - 1) / 2) * width for k in there]
            ax.bar(places, [v - 1 for v in values], width, bottom=1, color=LOOK[peer][0], label=peer)
        ax.axhline(1, color="#444444", lw=1)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(which="minor", length=0)
        ax.grid(axis="x", visible=False)
        ax.set_xticks(range(len(batches)), [str(b) for b in batches])
        ax.set(title=TITLES[subject], xlabel="bodies in a batch")
    axes[0].set_ylabel("peer's time / agebody's\n(above 1: agebody is faster)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _kernels(results: Results, ours: str) -> Figure:
    rows = [row for row in results["kernels"]["rows"] if "median_s" in row]
    largest = max(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == largest][::-1]
    shares = [100 * row["roofline_s"] / row["median_s"] for row in rows]
    figure, ax = plt.subplots(figsize=(9, 1.2 + 0.36 * len(rows)), layout="constrained")
    bars = ax.barh([row["contender"] for row in rows], shares, color=LOOK["agebody torch"][0], height=0.65)
    ax.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3)
    ax.axvline(100, color="#444444", lw=1)
    ax.grid(axis="y", visible=False)
    ax.set(
        title=f"{largest} bodies", xlabel="% of the roofline", xlim=(0, max(110, *(s * 1.1 for s in shares)))
    )
    return figure


__all__ = ["draw", "drawn_from", "fingerprint"]
