"""Commands on bodies: demo, inspect, convert, export, bench, warmup."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import (
    app,
    fail,
    note,
    plain,
    running,
    say,
    show_count,
    show_stages,
    show_table,
)
from agebody.pipelines.outputs import make_output

if TYPE_CHECKING:
    from rich.progress import Progress

    from agebody.body import BodyModel
    from agebody.parameters import BodyParameters
    from agebody.pipelines.bench import Report

_VIDEO_SIZE, _VIDEO_FOV = (640, 640), math.radians(20)
"""Width and height [pixels] and vertical field of view [rad] of videos of a motion."""


@app.command()
def demo(
    body: options.Body = "anny",
    device: options.Device = "cpu",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write, created if it is missing.")
    ] = Path("."),
    width: Annotated[int, typer.Option(min=64, max=4096, help="Width of the picture [pixels].")] = 1600,
) -> None:
    """Pose a body at six ages, time it, and write **ages.png**, **ages.glb** and **ages.npz**.

    The free body is built once, in less than a minute, and kept in the cache folder of the system; set
    AGEBODY_CACHE to choose another folder.
    """
    with running() as bars:
        make_output(output, "agebody demo")
        asset = options.load_body(body, bars)
        from agebody.pipelines.demo import run_demo

        rows = run_demo(asset, output, device=device, width=width, progress=show_stages(bars, "posing"))
    lines = [
        (
            *(row.name, *(f"{number:.3f}" for number in (row.age_offset, row.stature, row.who_median))),
            *(f"{1e3 * seconds:.2f}" for seconds in (row.forward, row.backward)),
        )
        for row in rows
    ]
    headings = ("age", "age offset", "stature [m]", "WHO median [m]", "forward [ms]", "backward [ms]")
    show_table(headings, lines, title=f"{asset.metadata.name} on {device}")
    for name in ("ages.png", "ages.glb", "ages.npz"):
        say(f"wrote {output / name}")


@app.command()
def inspect(body: options.BodyArgument, as_json: options.AsJson = False) -> None:
    """Describe a body: its kind, sizes, ages and licence, and any problems.

    Nothing in the file is ever executed. The exit code is 1 if the file is not a usable body.
    """
    from agebody.assets.report import describe_body, inspect_asset

    with running() as bars:
        if body in options.BUILT_IN:
            report = describe_body(options.load_body(body, bars), body, "built in")
        else:
            report = inspect_asset(body)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        lines = {
            name.replace("num_", "").replace("_", " "): _readable(value)
            for name, value in dataclasses.asdict(report).items()
            if name != "path" and value not in (None, (), {}, [])
        }
        lines |= {} if report.num_vertices is None or report.problems else {"problems": "none"}
        show_table(("", ""), lines.items(), title=body, justify="left")
    if report.num_vertices is None:
        raise typer.Exit(1)


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{plain(name)} ({count})" for name, count in value.items())
    if isinstance(value, (list, tuple)):
        text = all(isinstance(item, str) for item in value)
        return "\n".join(map(plain, value)) if text else ", ".join(f"{item:.4g}" for item in value)
    return plain(str(value))


@app.command()
def convert(
    inputs: Annotated[
        list[Path],
        options.argument(
            "The body file to read; after it, for a body with ages, its infant: "
            "smpl_kid_template.npy or a SMIL file.",
            "IN",
        ),
    ],
    output: Annotated[
        Path,
        options.option(
            "File to write: **.safetensors** (this library's format, complete), **.npz** or **.pkl** (SMPL's "
            "entries; the .pkl opens in smplx).",
            "--output",
            "-o",
        ),
    ],
    regressor: Annotated[
        list[str] | None,
        options.option(
            "Add a keypoint regressor, such as h36m17=J_regressor_h36m.npy; may be repeated.",
            metavar="NAME=FILE",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Join a body file with its infant template and regressors, and write it as one file.

    Example: `agebody convert SMPL_NEUTRAL.pkl smpl_kid_template.npy -o ages.safetensors`
    """
    from agebody.assets.io import export_smpl, load_asset, save_asset

    writers = {".safetensors": save_asset, ".npz": export_smpl, ".pkl": export_smpl}
    write = writers[options.check_suffix(output, *writers)]
    regressors: dict[str, Path] = {}
    for item in regressor or []:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            options.refuse("--regressor", f"expected NAME=FILE, got {item!r}")
        regressors[name] = Path(path)
    if len(inputs) > 2:
        options.refuse("IN", f"expected a body and at most one infant, got {len(inputs)} files")
    with running():
        options.check_output(output, (*inputs, *regressors.values()), overwrite)
        infant = inputs[1] if len(inputs) == 2 else None
        asset = load_asset(inputs[0], infant_template=infant, regressors=regressors)
        write(asset, output, overwrite=overwrite)
    say(f"wrote {output}: {asset!r}")
    if write is not save_asset and (asset.has_age or asset.regressors):
        note(f"{output.suffix} cannot hold age templates and regressors; .safetensors can")


@app.command()
def export(
    body: options.BodyArgument,
    output: options.OutputFile,
    motion: Annotated[
        Path | None,
        options.option(
            "Frames to animate: a file of AMASS, or **.npz** with arrays named as the fields of "
            "BodyParameters, such as body_pose (frames, joints, 3); those that are missing are zeros."
        ),
    ] = None,
    fps: Annotated[
        float | None,
        options.option(
            "Frames per second of the motion; by default those of the file, or 30.", min=1e-3, max=1e5
        ),
    ] = None,
    betas: Annotated[
        str | None,
        options.option("Shape coefficients, in place of those of the motion.", metavar="B0,B1,..."),
    ] = None,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    morph_targets: Annotated[
        bool | None,
        options.option(
            "Displacements to other betas and ages, of a .glb; by default only of a body whose licence is "
            "known to be a free one.",
            "--morph-targets/--no-morph-targets",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a body for animation programs: **.glb** with skeleton and skin, or **.bvh** with the skeleton.

    A motion can also be written as a video, **.mp4**.

    Examples: `agebody export anny --years 4 -o body.glb`,
    `agebody export SMPLH_MALE.pkl --motion amass_poses.npz -o walk.glb`
    """
    import torch

    from agebody.annotations.motions import MotionClip, load_motion
    from agebody.draw.rigged_files import FREE_LICENSES, RIGGED_SUFFIXES, save_rigged
    from agebody.parameters import BodyParameters

    ages = options.read_ages(age_offset, age_class, years)
    numbers = _read_betas(betas)
    video = options.check_suffix(output, *RIGGED_SUFFIXES, ".mp4") == ".mp4"
    options.check_output(output, (Path(body), motion), overwrite)
    with running(ValueError) as bars:
        if video and (motion is None or morph_targets):
            fail(f"{output}: a video shows a motion and holds no morph targets; give --motion FILE alone")
        asset = options.load_body(body, bars)
        recorded = None if motion is None else load_motion(motion)
        offset = options.read_age_offset(asset, ages)
        known = 0 if recorded is None else min(recorded.num_betas, asset.num_betas)
        count = max(len(numbers or ()), known, min(asset.num_betas, 10))
        layer = options.make_layer(asset, num_betas=count)
        clip = MotionClip(BodyParameters.zeros(layer), up="y")
        if recorded is not None:
            clip = recorded.on(layer).turned(layer, "y")
        parameters = clip.parameters
        if numbers is not None:
            padded = torch.tensor([*numbers, *[0.0] * (layer.num_coefficients - len(numbers))])
            parameters = parameters._replace(betas=padded.to(layer.dtype).expand(parameters.betas.shape))
        if offset is not None:
            parameters = parameters._replace(age_offset=torch.full_like(parameters.age_offset, offset))
        given: dict[str, Any] = {
            "fps": fps or clip.fps or 30.0,
            "morph_targets": morph_targets,
            "overwrite": overwrite,
        }
        if video:
            _save_video(layer, parameters, given["fps"], output, overwrite, bars)
            error = 0.0
        else:
            error = save_rigged(layer, output, parameters=parameters, **given)
    metadata = asset.metadata
    say(f"wrote {output}: {metadata.name}, {asset.num_joints} joints")
    for line in clip.notes:
        note(f"{motion}: {line}")
    if video:
        return
    if error > 1e-4:
        note(f"posed by four joints a vertex, the surface is up to {1e3 * error:.1f} mm from the body's own")
    if metadata.license not in FREE_LICENSES:
        note(f"the file contains data of {metadata.name} under its licence: {metadata.license}")
        if morph_targets is None and output.suffix.lower() == ".glb":
            note("it has no morph targets, which are the body's shape space; --morph-targets writes them")


def _save_video(
    body: BodyModel, parameters: BodyParameters, fps: float, path: Path, overwrite: bool, bars: Progress
) -> None:
    """Draw a motion from a fixed camera, slightly to the side, that sees all of it."""
    import torch

    from agebody.annotations.videos import write_video
    from agebody.cameras import Camera
    from agebody.draw import render
    from agebody.files import replacing

    def surface(frame: int) -> torch.Tensor:
        return body(parameters.map(lambda part: part[frame])).vertices.double()

    frames = range(parameters.transl.shape[0])
    with torch.no_grad():
        ends = torch.stack([torch.stack(surface(i).aminmax(dim=0)) for i in frames])
    low, high = ends[:, 0].amin(0), ends[:, 1].amax(0)
    middle, radius = (low + high) / 2, float((high - low).norm()) / 2
    towards = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    eye = middle + towards / towards.norm() * radius / math.sin(_VIDEO_FOV / 2)
    camera = Camera.look_at(eye, middle, size=_VIDEO_SIZE, fov=_VIDEO_FOV)
    drawn = show_count(bars, "drawing", len(frames))

    def pictures() -> Iterator[Any]:
        for i in frames:
            with torch.no_grad():
                vertices = surface(i)
            look = {"ground": float(low[1]), "light_rays": 2}
            yield render(vertices, body.faces, camera, size=_VIDEO_SIZE, **look).rgba[..., :3]
            drawn(i + 1)

    with replacing(path, overwrite=overwrite) as temporary:
        write_video(temporary, pictures(), fps)


def _read_betas(text: str | None) -> list[float] | None:
    try:
        numbers = None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if numbers is not None and not all(map(math.isfinite, numbers)):
        options.refuse("--betas", f"expected numbers such as 1.5,0,-1, got {text!r}")
    return numbers


@app.command()
def bench(
    device: options.Device = "cpu",
    backend: Annotated[
        str, options.choice("engine.backend:BackendName", "Backend of the body: auto, torch or warp.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for each subject at each number of bodies [s].")
    ] = 1.0,
    batch: Annotated[
        list[int] | None,
        options.option("Number of bodies; may be repeated. By default 1, 64 and 1024.", min=1),
    ] = None,
) -> None:
    """Time the built-in body on this machine, and smplx if it is installed.

    Results are compared before anything is timed. The lower bound is the blend-shape product alone, which
    every layer of this kind computes.
    """
    with running() as bars:
        from agebody.assets.mannequin import mannequin
        from agebody.pipelines.bench import run_bench

        given: dict[str, Any] = {"device": device, "backend": backend, "seconds": seconds}
        batches = tuple(batch or (1, 64, 1024))
        report = run_bench(mannequin(), **given, batches=batches, progress=show_stages(bars, "building"))
    _show_bench(report)


def _show_bench(report: Report) -> None:
    lines = []
    for row in report.rows:
        peer, ours, bound = (
            "–" if timing is None else _short(1e6 * timing.median / row.batch)
            for timing in (row.peer, row.agebody, row.bound)
        )
        ratio, over = ("–" if number is None else f"{number:.2f}" for number in (row.speedup, row.over_bound))
        lines.append((row.subject, str(row.batch), peer, ours, ratio, bound, over))
    show_table(
        ("subject", "bodies", "smplx", "agebody", "ratio", "bound", "× bound"),
        lines,
        title=f"agebody ({report.backend}) on {report.device}: µs per body, medians",
        caption="ratio: time of smplx over agebody's; bound: the blend-shape product alone",
    )
    if report.largest_difference is None:
        print("smplx is not installed: `pip install smplx` adds a comparison with it")
    else:
        print(f"vertices of agebody and smplx differ by at most {1e6 * report.largest_difference:.2f} µm")


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


@app.command()
def warmup(
    device: Annotated[
        str | None,
        options.option("cpu, cuda, cuda:1, ... By default all devices.", check=options.check_device),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the layers: **float32**, **float64** or **both**.")
    ] = "float32",
) -> None:
    """Compile the kernels of `backend="warp"` ahead of time, so that no first call waits for them.

    Warp keeps compiled kernels in the cache folder of the user, so once per machine is enough.
    """
    import torch

    types = {"float32": [torch.float32], "float64": [torch.float64], "both": [torch.float32, torch.float64]}
    if dtype not in types:
        options.refuse("--dtype", f"expected {', '.join(types)}, got {dtype!r}")
    devices = [device] if device else ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    rows: list[tuple[str, str, str, str]] = []
    with running(RuntimeError) as bars:
        from agebody.engine.backend import load_kernels

        kernels = load_kernels()
        task = bars.add_task("starting", total=None)
        for place in devices:
            seconds = kernels.warmup(
                place, types[dtype], progress=lambda name: bars.update(task, description=name)
            )
            for name, time in seconds.items():
                *_, subject, scalar = name.split(".")
                rows.append((subject, scalar, place, f"{time:.2f}"))
    caption = "Milliseconds if compiled before."
    show_table(("kernels", "dtype", "device", "seconds"), rows, caption=caption)
