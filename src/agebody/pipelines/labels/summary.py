"""Summarize labels in numbers, for a report and for a table."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import Any

import numpy as np

from agebody.age import AGE_CLASSES
from agebody.annotations.people import People
from agebody.pipelines.labels.quality import NOTES, RULES
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.outputs import amount

_MEDIANS = {
    "median_reprojection_px": ("reprojection", "median error [px]"),
    "median_age_offset": ("age_offset", "median age offset"),
    "median_depth_m": ("depth", "median depth [m]"),
    "median_stature_m": ("stature", "median stature [m]"),
    "median_stature_sd_m": ("stature_sd", "its standard error [m]"),
}
"""Medians of each age class: of which array of labels, and their headings."""


def summarize(labels: Labels, people: People | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Return counts and medians of labels as JSON values, and, of ``people``, who was left out, and why."""
    kinds = labels.classes()
    unknown = labels.flags.get("age_unknown", np.zeros(len(labels), bool))
    person = np.where(labels.track >= 0, labels.track, -1 - np.arange(len(labels)))
    found: dict[str, Any] = {
        "agebody": version("agebody"),
        "body": labels.body,
        "keypoint_layout": labels.keypoint_layout,
        "images": len(np.unique(labels.image_ids)),
        "people": len(labels),
        "different_people": len(np.unique(person)),
        "people_of_unknown_age": len(np.unique(person[unknown])),
        "kept": int(labels.kept.sum()),
        "converged": int(labels.converged.sum()),
        "median_reprojection_px": _median(labels.reprojection),
        "median_reprojection_kept_px": _median(labels.reprojection[labels.kept]),
        "median_iterations": _median(labels.iterations),
        "flags": {name: int(flag.sum()) for name, flag in labels.flags.items()},
        "stop": dict(Counter(labels.stop.tolist()).most_common()),
        "ages": [
            {
                "age_class": kind.name,
                "people": int((kinds == i).sum()),
                "kept": int(labels.kept[kinds == i].sum()),
                **{key: _median(getattr(labels, name)[kinds == i]) for key, (name, _) in _MEDIANS.items()},
            }
            for i, kind in enumerate(AGE_CLASSES)
        ],
    }
    if people is not None:
        empty = len(people.images) - len(np.unique(people.image))
        found["left_out"] = dict(people.left_out)
        found["images_without_people"] = empty
        found["notes"] = list(people.notes)
    if seconds is not None:
        found["seconds"] = round(seconds, 3)
        found["people_per_second"] = round(len(labels) / seconds, 1) if seconds > 0 else None
    return found


def to_markdown(summary: dict[str, Any]) -> str:
    """Return a summary as a Markdown page."""
    lines = [f"# Labels: {count_kept(summary)}", ""]
    lines += _table(
        ("", ""),
        [
            ("body", summary["body"]),
            ("keypoints", summary["keypoint_layout"]),
            ("images with people", summary["images"]),
            *(
                (("images without", summary["images_without_people"]),)
                if "images_without_people" in summary
                else ()
            ),
            ("converged", summary["converged"]),
            ("median reprojection error [px]", _number(summary["median_reprojection_px"])),
            ("of those kept [px]", _number(summary["median_reprojection_kept_px"])),
            ("median iterations", _number(summary["median_iterations"])),
            *((("seconds", _number(summary["seconds"])),) if "seconds" in summary else ()),
            *((("left out: " + why, count) for why, count in summary.get("left_out", {}).items())),
        ],
    )
    lines += ["", "## By age", ""]
    lines += _table(
        ("age class", "people", "kept", *(heading for _, heading in _MEDIANS.values())),
        [
            (row["age_class"], row["people"], row["kept"], *(_number(row[key]) for key in _MEDIANS))
            for row in summary["ages"]
        ],
    )
    lines += ["", "## What is wrong", ""]
    lines += [f"One person may have several flags. {', '.join(NOTES)}: such people are kept.", ""]
    lines += _table(
        ("flag", "people", "meaning"),
        [(name, count, {**RULES, **NOTES}.get(name, "")) for name, count in summary["flags"].items()],
    )
    lines += ["", "## Why fits ended", ""]
    lines += _table(("reason", "people"), list(summary["stop"].items()))
    notes = [*unknown_ages(summary["people_of_unknown_age"]), *summary.get("notes", ())]
    lines += ["", *(f"Note: {note}." for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def count_kept(summary: dict[str, Any]) -> str:
    """Return how many are kept; a person of a video is detected in many frames."""
    kept, count, different = (summary[key] for key in ("kept", "people", "different_people"))
    if different == count:
        return f"{kept} of {count} people kept"
    return f"{kept} of {count} detections kept, of {amount(different, 'people')}"


def unknown_ages(count: int) -> list[str]:
    """Return a line on the number of people of unknown age, if there are any."""
    if not count:
        return []
    whose = "1 person of unknown age: stature and depth are guesses"
    whose = whose if count == 1 else f"{count} people of unknown age: their statures and depths are guesses"
    return [f"{whose}; give --age-class, --years, or ages in the file"]


def _table(heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [
        f"| {' | '.join(heading)} |",
        "|---" * len(heading) + "|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def _median(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return round(float(np.median(values)), 4) if len(values) else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
