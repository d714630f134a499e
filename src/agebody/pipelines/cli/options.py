"""Options that several commands share, how they are checked, and how bodies are loaded."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer

from agebody import files
from agebody.pipelines.cli.app import fail, show_stages

if TYPE_CHECKING:
    from rich.progress import Progress

    from agebody.assets.asset import BodyAsset
    from agebody.body import BodyModel
    from agebody.pipelines.labels import Labels


def refuse(option: str, problem: str) -> NoReturn:
    """Raise BadParameter for an option."""
    raise typer.BadParameter(problem, param_hint=option)


def given_options(options: Mapping[str, Any]) -> list[str]:
    """Return the names of options that have a value, by the names of their parameters."""
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]


def check_finite(value: float | None) -> float | None:
    """Return the value of an option, or raise BadParameter if it is NaN or infinite."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, got {value}")
    return value


def check_device(value: str | None) -> str | None:
    """Return the value of an option, or raise BadParameter if torch has no such device."""
    import torch

    try:
        device = torch.device(value or "cpu")
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "mps":
        raise typer.BadParameter("mps: the commands need float64, which Apple's GPUs do not have; use cpu")
    if device.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:N, got {value!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise typer.BadParameter(f"{value!r} does not exist: torch {torch.__version__} finds {count} GPUs")
    return value


def one_of(known: Iterable[str] | str) -> Callable[[str | None], str | None]:
    """Return the check of an option with a few values: these, or those of ``"module:NAME"``."""

    def check(value: str | None) -> str | None:
        choices: Any = known
        if isinstance(known, str):
            module, _, name = known.partition(":")
            found = getattr(importlib.import_module(f"agebody.{module}"), name)
            choices = get_args(found) or found  # of a Literal, or a collection
        if value is not None and value not in choices:
            raise typer.BadParameter(f"expected {', '.join(choices)}, got {value!r}")
        return value

    return check


def check_size(value: str | None) -> str | None:
    """Return the value of an option, or raise BadParameter if it is not a size such as 1920x1080."""
    if value is not None and parse_size(value) is None:
        raise typer.BadParameter(f"expected width x height, such as 1920x1080, got {value!r}")
    return value


def option(text: str, *names: str, check: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """Return a typer option whose help does not show its default."""
    return typer.Option(*names, help=text, callback=check, show_default=False, **settings)


def argument(text: str, metavar: str) -> Any:
    """Return a typer argument whose help does not show its default."""
    return typer.Argument(metavar=metavar, show_default=False, help=text)


def choice(known: Iterable[str] | str, text: str) -> Any:
    """Return a typer option with a few values; see `one_of`."""
    return typer.Option(callback=one_of(known), help=text)


BUILT_IN = ("anny", "anny-hands", "mannequin")
BUILT_IN_HELP = "**anny** (free, realistic), **anny-hands** (with fingers), **mannequin** (built in)"
Body = Annotated[str, typer.Option(help=f"{BUILT_IN_HELP}, or the path of a body file.")]
BodyArgument = Annotated[str, argument(f"{BUILT_IN_HELP}, or the path of a body file.", "BODY")]
BodyOfLabels = Annotated[
    str | None, option(f"The body of the labels: {BUILT_IN_HELP}, or a file. By default found by its name.")
]
Device = Annotated[str, typer.Option(callback=check_device, help="Where to compute: cpu, cuda, cuda:1, ...")]
OutputFolder = Annotated[Path, option("Folder to write, created if it is missing.", "--output", "-o")]
OutputFile = Annotated[Path, option("File to write.", "--output", "-o")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes; more than one need Ray.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DetectorName = Annotated[
    str | None,
    option(
        "What finds people in photographs: **rtmlib**, the default, which downloads its weights, or a file "
        "of weights, **movenet:**, **blazepose:**, **rtmo:** or **rtmpose:** and its path.",
        "--detector",
        metavar="NAME|KIND:FILE",
    ),
]
Images = Annotated[
    Path | None, option("Folder of the images, or one image; for sizes, overlays and training shards.")
]
Annotations = Annotated[
    Path | None, option("COCO annotations that results belong to; for names and sizes of the images.")
]
Layout = Annotated[
    str | None,
    option(
        "Layout of the keypoints, such as coco17, if the file does not name them.",
        check=one_of("keypoints:LAYOUTS"),
    ),
]
ImageSize = Annotated[
    str | None,
    option("Size of images of unknown size, such as 1920x1080.", "--size", check=check_size, metavar="WxH"),
]
Focal = Annotated[
    float | None,
    option("Focal length [pixels]; the diagonal of the image by default.", check=check_finite, min=1.0),
]
Fov = Annotated[
    float | None,
    option("Vertical field of view [degrees], instead of --focal.", check=check_finite, min=1.0, max=179.0),
]
AgeOffset = Annotated[
    float | None, option("Age of people without one in the file: 0 adult, 1 infant.", check=check_finite)
]
AgeClassName = Annotated[str | None, option("The same as a class: **adult**, **teen**, **kid** or **baby**.")]
Years = Annotated[float | None, option("The same in years.", check=check_finite)]
MinConfidence = Annotated[
    float, typer.Option(min=0.0, max=1.0, callback=check_finite, help="Least confidence of keypoints to use.")
]
Every = Annotated[
    int, typer.Option(min=1, help="Every n-th frame of a video, or n-th photograph, alone; 1 for all.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of people to fit at once.")]
Overlays = Annotated[
    int, typer.Option(min=0, help="Number of images to draw the bodies over, evenly spaced; 0 for none.")
]
Shards = Annotated[
    bool, typer.Option("--shards", help="Write **.tar** shards with the images, too, for training.")
]


def check_exclusive(**options: Any) -> None:
    """Raise BadParameter if more than one of the options is given."""
    given = given_options(options)
    if len(given) > 1:
        refuse(given[1], f"expected one of {', '.join(given)}")


def check_renderer(overlays: int, depth: Path | None = None) -> None:
    """Refuse options that draw if the renderer is not installed."""
    from agebody.engine.backend import is_installed

    if not is_installed("embreex"):
        if overlays:
            fail('overlays need embreex; pip install "agebody[render]", or give --overlays 0')
        if depth is not None:
            fail('--depth needs embreex; pip install "agebody[render]"')


def check_suffix(path: Path, *known: str) -> str:
    """Return the suffix of the file to write, or raise BadParameter if it is not one of those known."""
    try:
        return files.check_suffix(path, *known)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None


def check_output(path: Path, inputs: tuple[Path | None, ...], overwrite: bool) -> None:
    """Refuse to write over inputs or existing files, and where nothing can be written."""
    real = os.path.realpath  # a link to itself has no resolve(), and is refused where it is read
    if real(path) in [real(each) for each in inputs if each is not None]:
        fail(f"{path}: --output is a file that the command reads; give another")
    if path.is_dir():
        fail(f"{path}: expected a file for --output, got a folder")
    if path.exists() and not overwrite:
        fail(f"{path}: exists; give --overwrite to replace it")
    files.make_folder(path.parent)


def read_lens(focal: float | None, fov: float | None) -> dict[str, float | None]:
    """Return ``focal`` and ``fov`` [rad] as keyword arguments of a fit."""
    check_exclusive(focal=focal, fov=fov)
    return {"focal": focal, "fov": None if fov is None else math.radians(fov)}


def read_ages(age_offset: float | None, age_class: str | None, years: float | None) -> dict[str, Any]:
    """Return the ages as keyword arguments of a fit."""
    from agebody.age import parse_ages
    from agebody.age.classes import AgeError

    ages = {"age_offset": age_offset, "age_class": age_class, "years": years}
    check_exclusive(**ages)
    try:
        parse_ages(**ages)
    except AgeError as error:
        raise typer.BadParameter(error.problem, param_hint=f"--{error.name.replace('_', '-')}") from None
    return ages


def read_age_offset(asset: BodyAsset, ages: dict[str, Any]) -> float | None:
    """Return the age offset that the options of a command state, None without one."""
    from agebody.age import AGE_CLASSES, AgeCurve, parse_ages

    found = parse_ages(**ages, shape=(1,))
    if not found.known[0]:
        return None
    if not asset.has_age:
        fail(f"{asset.metadata.name} has one age; give a body with ages, or no age")
    if not math.isnan(found.years[0]):
        return float(AgeCurve.from_asset(asset).years_to_offset(float(found.years[0])))
    offset = float(found.age_offset[0])
    return AGE_CLASSES[found.age_class[0]].mid if math.isnan(offset) else offset


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height of an option such as 1920x1080, or None."""
    found = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", (text or "").strip())
    return None if found is None else (int(found[1]), int(found[2]))


def load_body(name: str, bars: Progress) -> BodyAsset:
    """Load the body of a ``--body`` option: a built-in one by name, or a file."""
    if name == "mannequin":
        from agebody.assets.mannequin import mannequin

        return mannequin()
    if name in BUILT_IN:
        from agebody.assets.anny import anny_body

        return anny_body(hands=name == "anny-hands", progress=show_stages(bars, "free body"))
    from agebody.assets.asset import AssetError
    from agebody.assets.io import load_asset

    if not Path(name).suffix and not Path(name).exists():
        raise AssetError(f"{name}: neither a file nor a built-in body ({', '.join(BUILT_IN)})")
    return load_asset(name)


def make_layer(asset: BodyAsset, **options: Any) -> BodyModel:
    """Return the layer of a body, with ages and expressions if it has them; options as of the layer."""
    from agebody.body import SMPL, SMPLA
    from agebody.body.model import usual_expressions

    given: dict[str, Any] = {"num_expression": usual_expressions(asset)} | options
    return (SMPLA if asset.has_age else SMPL)(asset, **given)


def has_hands(asset: BodyAsset) -> bool:
    """Return whether a body has joints of fingers."""
    return any("hand" in part for part in asset.pose_parts)


def one_age(body: BodyModel) -> list[str]:
    """Return a note on a body of one age that is fitted to people of all ages."""
    if body.age_anchors:
        return []
    kind = "infant" if body.asset.metadata.kind == "smil" else "adult"
    name = body.asset.metadata.name
    return [
        f"{name} has one age: everybody is fitted as an {kind}, whatever their age; "
        "give a body with ages (--body anny, or agebody convert with an infant template)"
    ]


def load_layer(name: str | None, path: Path, labels: Labels, bars: Progress, **options: Any) -> BodyModel:
    """Return the layer of the body that labels were made with; ``name`` is that of a ``--body`` option."""
    from agebody.body.model import usual_expressions

    if name is None:
        name = labels.body.split(" ")[0].lower()
        if name not in BUILT_IN:
            fail(f"{path}: made with the body {labels.body!r}; give its file with --body")
    asset = load_body(name, bars)
    if asset.metadata.name != labels.body:
        fail(f"{path}: made with the body {labels.body!r}; --body is {asset.metadata.name!r}")
    num_betas = labels.betas.shape[1] - usual_expressions(asset)
    if asset.joint_names != labels.joint_names or not 0 <= num_betas <= asset.num_betas:
        fail(f"{path}: made with another body named {labels.body!r}, of other joints or more betas")
    return make_layer(asset, num_betas=num_betas, **options)
