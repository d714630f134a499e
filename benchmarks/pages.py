"""The benchmark page, as text made from the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cells import number, per_body, quoted, table
from provenance import QUIET
from targets import AT_LEAST, TARGETS, Results, Target

SUBJECTS = {
    "forward": "Forward",
    "backward": "Forward + backward",
    "keypoints": "Keypoints",
    "whole_body": "Hands and faces",
    "identity": "Identity cached",
    "memory": "Memory",
    "precision": "16-bit correctives",
    "objective": "Losses of a training step",
    "training_step": "HMR2's training step",
    "compiled": "Under torch.compile",
    "graphs": "CUDA graphs",
    "skinning": "Skinning alone",
    "kernels": "Kernels and their rooflines",
    "procrustes": "PA-MPJPE",
    "closest": "Closest points",
    "fitting_speed": "People from keypoints",
    "fitting_accuracy": "Accuracy of fits",
}
"""Scripts and their headings, in the order of the page."""
CUDA_SUBJECTS = ("graphs",)
DEVICES = {"cpu": "On the CPU", "cuda": "On a GPU"}
COMMANDS = {"cpu": ["make bench"], "cuda": ["make gpu", "python benchmarks/report.py"]}
NOT_PEERS = ("product", "roofline")

INTRODUCTION = """\
# Benchmarks

Speed, memory and accuracy of agebody compared with other libraries. All run in one process, on the same
inputs, alternating every few calls, after their vertices and gradients were compared with agebody's
float64 layer. A figure is the median of all calls.

The body is the built-in mannequin: 6890 vertices, 24 joints, 10 betas, 207 pose blend shapes. Times are
µs **per body**. *product* is the blend-shape product alone, `(B, 218) @ (218, 20670)`, or for forward +
backward its two products: the lower bound for every layer of this kind. *roofline* is the least time that
the device needs for that product and for the memory it reads and writes, at the rates measured in the
same run; it does not apply to batches that fit in a cache.
"""
CLOSING = """\
## Reproduce the figures

`benchmarks/report.py` generates this page from the files in `benchmarks/results/`, which also contain the
quartiles, the versions, the machine and the commit; `benchmarks/README.md` describes the method.

```bash
make bench
```
"""

NOTES = {
    "backward": "Gradients with respect to betas, pose and translation, of randomly weighted vertices.",
    "keypoints": "COCO's 17 points. smplx, smplfitter and SOMA cannot avoid the mesh: they build it, and the "
    "points are regressed from it.",
    "whole_body": "A random body of SMPL-X's size and structure: 10475 vertices, 55 joints, 20 coefficients "
    "of identity and expression, 486 pose blend shapes. The last table is COCO-WholeBody's 133 points, for "
    "which smplx builds the mesh.",
    "identity": "`body.shape(betas=...)` once, then poses. smplx and smplfitter recompute the identity.",
    "precision": "The error is the largest distance of a vertex from the float64 layer's.",
    "compiled": "Each library without and with `torch.compile`: as one graph, or what breaks the graph.",
    "graphs": "A forward pass captured once and replayed.",
    "skinning": "From vertices and transforms to posed vertices, with four joints per vertex.",
    "objective": "COCO's 17 points, projected; L1 losses in 2D and 3D; gradients with respect to betas, "
    "pose and translation. agebody uses its camera and losses, peers plain torch without masks or "
    "safeguards.",
    "training_step": "Behind ViT-H's features: HMR2's decoder head, the body, 44 keypoints, their projection "
    "with CLIFF's camera, HMR2's losses, and the gradients of the head's read-outs (*body alone*), or of its "
    "weights and the features (*head and body*). Beside smplx is plain torch, and attention with keys and "
    "values of all tokens, as the published code has it. Gradients are compared before they are timed.",
    "closest": "µs **per point**, for B points in total, 1 cm from the surface of bodies of 13,776 "
    "triangles. Trees are built at every call. trimesh has no gradients.",
    "fitting_speed": "COCO's 17 points of random people of every age with 2 px of noise; agebody starts "
    "from these alone, the others from a simulated prediction of a good network. One call each, "
    "alternating, the median of three; SLAHMR's schedule once. `benchmarks/smplify.py` documents the "
    "reimplementation.",
    "fitting_accuracy": "By scenario and age class, on [a separate page](fitting/evaluation.md).",
    "procrustes": "24 joints. *NumPy loop* aligns one person after the other, as evaluation scripts do; "
    "*torch SVD* is the same formula over the batch.",
}


def page(found: Mapping[str, Results]) -> str:
    parts = [INTRODUCTION]
    for device, title in DEVICES.items():
        parts.append(f"## {title}\n")
        parts += _device(device, found[device]) if found[device] else [_missing(device)]
    parts.append(CLOSING)
    return "\n".join(parts)


def _missing(device: str) -> str:
    commands = "\n".join(COMMANDS[device])
    return f"There are no figures yet. To measure them on such a machine:\n\n```bash\n{commands}\n```\n"


def _device(device: str, results: Results) -> Iterable[str]:
    for name in plots_of(results):
        yield f"![{PLOT_TITLES[name]}](images/bench_{name}_{device}.png)\n"
    for subject, title in SUBJECTS.items():
        if subject in results:
            yield f"### {title}{_suffix(device)}\n"
            if NOTES.get(subject):
                yield NOTES[subject] + "\n"
            yield SECTIONS.get(subject, _times)(results[subject])
    yield f"### Tracked ratios{_suffix(device)}\n"
    yield _summary(device, results)
    if absent := _absent(device, results):
        yield absent
    yield f"### The machine{_suffix(device)}\n"
    yield _machine(results)


def _suffix(device: str) -> str:
    """Return a suffix of headings that makes the anchors of the two parts differ."""
    return "" if device == "cpu" else " (GPU)"


def _machine(results: Results) -> str:
    """Return one line on the machine and the versions, merged over all result files."""
    runs = [found["provenance"] for found in results.values()]

    def each(values: Iterable[Any], join: str = " and ") -> str:
        return join.join(map(str, sorted(set(values))))

    machines = each(o.get("gpu") or f"{o['processor']} ({o['cpu_capability']})" for o in runs)
    threads = each((o["threads"] for o in runs), " or ")
    drivers = each(f", driver {o['driver']}, CUDA {o['cuda']}" for o in runs if "gpu" in o)
    packages = dict.fromkeys(name for origin in runs for name in origin["versions"])
    versions = [
        f"{name} {each(numbers)}"
        for name in packages
        if (numbers := {o["versions"][name] for o in runs if o["versions"].get(name)})
    ]
    days = each(origin["date"][:10] for origin in runs)
    commits = each((f"`{(origin['commit'] or 'unknown')[:9]}`" for origin in runs), ", ")
    changed = [bool(origin.get("uncommitted_changes")) for origin in runs]
    note = "" if not any(changed) else " with" if all(changed) else ", in part with"
    note += " uncommitted changes" if note else ""
    others = max((origin.get("others_cores") or 0.0 for origin in runs), default=0.0)
    if others > QUIET:
        note += f"; **not quiet: other programs used up to {others:g} cores meanwhile**"
    where = f"{machines}{drivers}, {threads} thread{'' if threads == '1' else 's'}"
    python = each(origin["python"] for origin in runs)
    return f"{where}; Python {python}; {', '.join(versions)}. Measured {days} at {commits}{note}.\n"


def _summary(device: str, results: Results) -> str:
    rows = []
    for target in (t for t in TARGETS if t.device == device):
        achieved = target.achieved(results)
        figure = "not measured" if achieved is None else number(achieved)
        rows.append([SUBJECTS[target.subject], str(target.batch), target.contender, _what(target), figure])
    return table(["subject", "B", "contender", "figure", "value"], rows, "lrllr")


def targets_met(found: Mapping[str, Results]) -> list[str]:
    """Return one line per target: whether it was met, missed or not measured."""
    lines = []
    for target in TARGETS:
        achieved = target.achieved(found[target.device])
        state = "not measured" if achieved is None else "met" if target.met(achieved) else "missed"
        figure = "" if achieved is None else f"{number(achieved)}, "
        bound = f"target {'≥' if target.measure in AT_LEAST else '≤'} {number(target.bound)}"
        what = f"{SUBJECTS[target.subject]}, B = {target.batch}, {target.contender}, {_what(target)}"
        lines.append(f"{state}: {what}: {figure}{bound}")
    return lines


def _what(target: Target) -> str:
    match target.measure:
        case "GB/s share":
            return "of the copy bandwidth"
        case "mm":
            return "largest error [mm]"
        case "times as fast":
            return f"times as fast as {target.against}"
        case "times the time" | "times the memory" | "times the error":
            return f"{target.measure} of {target.against}"
        case "pixels" | "% of stature":
            return f"{target.measure}, median"
    return target.measure


def _times(found: Mapping[str, Any]) -> str:
    """Return the times [µs per body]: one row per batch, one column per contender."""
    return "\n".join(
        (f"*{which}*\n\n" if which else "") + _time_table(rows)
        for which, rows in _by_pass(found["rows"]).items()
    )


def _by_pass(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get("which", ""), []).append(row)
    return groups


def _time_table(rows: list[dict[str, Any]]) -> str:
    names = contenders(rows)
    by_key = {(row["batch"], row["contender"]): row for row in rows}
    batches = sorted({row["batch"] for row in rows})
    body = [[str(batch), *(_time(by_key.get((batch, name), {})) for name in names)] for batch in batches]
    notes = [
        f"- {row['contender']}, B = {row['batch']}: {quoted(row['failed'])}\n"
        for row in rows
        if _time(row) == "failed"
    ]
    return table(["B", *names], body, "r" * (1 + len(names))) + "".join(["\n", *notes] if notes else [])


def _time(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return "no memory" if row["failed"] == "does not fit in memory" else "failed"
    return per_body(row)


def contenders(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names in the order of their first rows, the bounds last."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    names.sort(key=lambda name: not name.startswith("agebody"))
    return [n for n in names if n not in NOT_PEERS] + [n for n in NOT_PEERS if n in names]


def _memory(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    kinds = list(dict.fromkeys((row["which"], row["batch"]) for row in rows))
    by_key = {(row["contender"], row["which"], row["batch"]): row for row in rows}
    body = []
    for name in contenders(rows):
        entries = [by_key.get((name, *kind), {}) for kind in kinds]
        body.append([name, *(_megabytes(row) for row in entries)])
    how = (
        "The increase of the peak of torch's allocations by one call."
        if found["device"] == "cuda"
        else "The increase of the resident memory of a new process by one call; the median of three."
    )
    heads = [f"{which}, B = {batch} [MB]" for which, batch in kinds]
    return f"{how} The result is included.\n\n" + table(["contender", *heads], body, "l" + "r" * len(kinds))


def _megabytes(row: Mapping[str, Any]) -> str:
    return number(row["peak_bytes"] / 1e6) if "peak_bytes" in row else row.get("failed", "")[:40]


def _precision(found: Mapping[str, Any]) -> str:
    poses = list(dict.fromkeys(error["poses"] for error in found["errors"]))
    errors: dict[str, dict[str, str]] = {}
    for error in found["errors"]:
        errors.setdefault(error["contender"], {})[error["poses"]] = f"{error['largest_mm']:.4f}"
    body = [[name, *(values[p] for p in poses)] for name, values in errors.items()]
    heads = ["error [mm]", *poses]
    return table(heads, body, "l" + "r" * len(poses)) + "\n" + _time_table(found["rows"])


def _compiled(found: Mapping[str, Any]) -> str:
    by_key = {(row["contender"], row["batch"]): row for row in found["rows"]}
    body = []
    for (name, batch), row in by_key.items():
        if not name.endswith(" compiled"):
            continue
        plain = by_key.get((name.removesuffix(" compiled"), batch), {})
        times = [per_body(plain), per_body(row)]
        graph = row.get("graph", row.get("failed", ""))
        broken = graph if graph == "one graph" else quoted(graph.removeprefix("graph breaks: "), 70)
        body.append([name.removesuffix(" compiled"), str(batch), *times, broken])
    return table(["contender", "B", "eager", "compiled", "graph"], body, "lrrrl")


def _kernels(found: Mapping[str, Any]) -> str:
    ceilings = found["ceilings"]
    rates = [
        f"copy {ceilings['copy_bytes'] / 1e9:.0f} GB/s",
        f"float32 {ceilings['float32_flops'] / 1e12:.2f} TFLOP/s",
    ]
    if ceilings["bfloat16_flops"]:
        rates.append(f"bfloat16 {ceilings['bfloat16_flops'] / 1e12:.0f} TFLOP/s")
    body = []
    for row in found["rows"]:
        name = f"`{row['contender']}`"
        if "failed" in row:
            body.append([name, str(row["batch"]), "", "", "", "", row["failed"][:60]])
            continue
        share = row["roofline_s"] / row["median_s"]
        counts = [number(row["bytes"] / 1e6), number(row["flops"] / 1e9)]
        times = [number(1e6 * row["median_s"]), number(1e6 * row["roofline_s"])]
        body.append([name, str(row["batch"]), *counts, *times, f"{100 * share:.0f} %"])
    heads = ["kernel", "B", "MB", "GFLOP", "µs per call", "roofline [µs]", "of the roofline"]
    text = (
        f"Ceilings measured in the same run: {', '.join(rates)}. Bytes and operations are counted by hand: "
        "every input read once, every output written once."
        + (" On the CPU, Warp runs a kernel in one thread." if found["device"] == "cpu" else "")
        + "\n\n"
    )
    return text + table(heads, body, "lrrrrrr")


def _absent(device: str, results: Results) -> str:
    lines = []
    reasons: dict[str, dict[str, list[str]]] = {}
    for subject, found in results.items():
        for name, why in found["absent"].items():
            reasons.setdefault(name, {}).setdefault(quoted(why), []).append(SUBJECTS[subject].lower())
    for name, whys in reasons.items():
        lines += [f"- {name} ({', '.join(subjects)}): {why}" for why, subjects in whys.items()]
    skipped = CUDA_SUBJECTS if device == "cpu" else ()
    for subject in SUBJECTS:
        if subject not in results and subject not in skipped:
            lines.append(
                f"- {SUBJECTS[subject]}: `python benchmarks/{subject}.py --device {device}` has not run"
            )
    return f"### Not measured{_suffix(device)}\n\n" + "\n".join(lines) + "\n" if lines else ""


def _fitting_speed(found: Mapping[str, Any]) -> str:
    body = []
    for row in found["rows"]:
        rates = [row["batch"] / row["median_s"], row["batch"] / row["cpu_s"]]
        body.append([row["contender"], str(row["batch"]), *map(number, (*rates, row["px"], row["px_90"]))])
    start = found.get("start_of_the_peers")
    if start:
        body.append(["*start of the peers*", "", "", "", number(start["px"]), number(start["px_90"])])
    heads = ["contender", "people", "people/s", "people/s per core", "px, median", "px, 90 %"]
    return table(heads, body, "lrrrrr")


def fitting_tables(found: Mapping[str, Any]) -> str:
    """Return the tables of the page on fitting: one per scenario and body, one row per age class."""
    parts = []
    for contender in dict.fromkeys(row["contender"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["contender"] == contender]
        body = contender.split(", ")[0]
        parts.append(f"### {rows[0]['title']}: {'Anny' if body == 'anny' else body}\n")
        parts.append(table(FIT_HEADS, [_fit_cells(row) for row in rows], "l" + "r" * (len(FIT_HEADS) - 1)))
    return "\n".join(parts)


FIT_HEADS = ["age", "people", "px", "true px", "MPJPE", "PA-MPJPE", "PVE"]
FIT_HEADS += ["stature", "depth", "age offset", "failed", "stature within", "age within"]


def _fit_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["which"],
        str(row["people"]),
        *(f"{row[name]:.1f}" for name in ("px_median", "true_px_median")),
        *(f"{1e3 * row[f'{name}_mean']:.0f}" for name in ("mpjpe", "pa_mpjpe", "pve")),
        *(f"{100 * row[f'{name}_median']:.1f} %" for name in ("stature", "z")),
        f"{row['age_median']:.2f}",
        f"{100 * row['failed_mean']:.1f} %",
        *(f"{row[f'{name}_within_1']:.2f}, {row[f'{name}_within_2']:.2f}" for name in ("stature", "age")),
    ]


LIFTER_ESTIMATES = {
    "fit from nothing": "",
    "lifter alone": ", lifter",
    "fit from the lifter": ", fit from the lifter",
}


def lifter_tables(found: Mapping[str, Any], fits: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the lifter's page by name; ``fits`` are those from nothing of the same people."""
    rows = {(row["contender"], row["which"]): row for row in (*found["rows"], *fits["rows"])}
    scenarios = [row["contender"] for row in fits["rows"] if row["which"] == "all"]
    people = {each: each.split(", ")[0].replace("anny", "Anny") for each in scenarios}
    accuracy = [
        [f"{people[each]}, {rows[each, 'all']['title']}", name, *_lifter_cells(rows[each + end, "all"])]
        for each in scenarios
        for name, end in LIFTER_ESTIMATES.items()
    ]
    heads = ["points", "estimate", "MPJPE", "PA-MPJPE", "stature", "depth", "true px", "failed"]
    kinds = [row["which"] for row in fits["rows"] if row["contender"] == scenarios[0]][1:]
    both = [LIFTER_ESTIMATES[name] for name in ("fit from nothing", "fit from the lifter")]
    ages = [
        [
            f"{body}, {title}",
            *(", ".join(f"{factor * rows[each + end, kind][key]:{form}}" for end in both) for kind in kinds),
        ]
        for each, body in people.items()
        if each.endswith(", clean")
        for title, key, factor, form in (
            ("PA-MPJPE [mm]", "pa_mpjpe_mean", 1e3, ".0f"),
            ("stature [%]", "stature_median", 100, ".1f"),
        )
    ]
    columns = {"2 px": "clean", "2 px, class": "class", "occluded, dropped, wrong": "hard"}
    deviations = [
        [
            f"{body}, {title}",
            *(
                ", ".join(
                    f"{rows[f'{key}, {scenario}{both[1]}', 'all'][f'{name}_within_{k}']:.2f}" for k in (1, 2)
                )
                for scenario in columns.values()
            ),
        ]
        for key, body in {each.split(", ")[0]: body for each, body in people.items()}.items()
        for title, name in (
            ("lifter, age offset", "lifter_age_offset"),
            ("lifter, translation", "lifter_transl"),
            ("lifter, betas", "lifter_betas"),
            ("fit, stature", "stature"),
        )
    ]
    return {
        "accuracy": table(heads, accuracy, "llrrrrrr"),
        "ages": table(["", *kinds], ages, "lrrrr"),
        "deviations": table(["", *columns], deviations, "lrrr"),
    }


def _lifter_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        *(f"{1e3 * row[f'{name}_mean']:.0f}" for name in ("mpjpe", "pa_mpjpe")),
        *(f"{100 * row[f'{name}_median']:.1f} %" for name in ("stature", "z")),
        f"{row['true_px_median']:.1f}",
        f"{100 * row['failed_mean']:.1f} %",
    ]


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "memory": _memory,
    "precision": _precision,
    "compiled": _compiled,
    "kernels": _kernels,
    "fitting_speed": _fitting_speed,
    "fitting_accuracy": lambda found: "",
}
PLOT_TITLES = {
    "times": "Time per body over the number of bodies, forward and forward + backward",
    "ratios": "Speed of agebody relative to each peer",
    "kernels": "Each kernel relative to its roofline",
}


def plots_of(results: Results) -> list[str]:
    """Return the names of plots for which there is data."""
    needs = {
        "times": ("forward", "backward"),
        "ratios": ("forward", "backward", "keypoints"),
        "kernels": ("kernels",),
    }
    return [name for name, subjects in needs.items() if all(subject in results for subject in subjects)]
