"""`agebody crowd`: the people of each image, put in one space by a depth map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agebody.files import replacing
from agebody.pipelines.cli.app import app, clear_errors, fail, find_body, make_folder, progress_bar

if TYPE_CHECKING:
    from agebody.body import BodyModel
    from agebody.pipelines.labels import Labels, PlacedLabels

MAX_SIDE = 640
"""Of the maps on which depths are compared [pixels]."""


@app.command()
def crowd(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", show_default=False, help="An **.npz** by `agebody fit`.")
    ],
    depth: Annotated[
        Path,
        typer.Option(
            show_default=False,
            help="Folder of depth maps, one an image, with the image's name, in folders as the images are or "
            "in none: **.npy**, or 16-bit **.png** in millimetres.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", show_default=False, help="The **.npz** to write.")
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder of maps of whose pixel it is, .npy or .png: 0 nobody, 1 the first person of the "
            "image in LABELS, and so on. If not given, what the bodies cover.",
        ),
    ] = None,
    people: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help='What is known of people, by their id in LABELS: a JSON file such as {"7": {"years": 4, '
            '"sex": "female"}}. For others the age offset of the fit counts.',
        ),
    ] = None,
    disparity: Annotated[
        bool, typer.Option("--disparity", help="The maps grow towards the camera: take their reciprocal.")
    ] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Then put people on one ground, and out of one another.")
    ] = False,
    body: Annotated[str, typer.Option(help="**anny**, **mannequin**, or the path of a body file.")] = "anny",
    views: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Folder for pictures: before and after, from above."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", show_default=False, help="Write what was found, too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Put the people of each image in one space: how far away and how tall they are (DTO).

    Poses stay as they are. A child's age offset or an adult's first beta is changed until the body has its
    new stature, and the body is moved so that it covers the same pixels.
    """
    if output.suffix.lower() != ".npz":
        raise typer.BadParameter(f"expected the suffix .npz, got {output.name!r}", param_hint="--output")
    with clear_errors(), progress_bar() as bar:
        from agebody.pipelines.labels import (
            concatenate_labels,
            flag_labels,
            load_labels,
            place_labels,
        )

        _check_outputs({"--output": output, "--json": report}, (labels, people), overwrite)
        given = load_labels(labels)
        images = _images(given, labels)
        depths = _find_maps(depth, images)
        numbers = None if masks is None else _find_maps(masks, images)
        pictures = {} if views is None else _name_views(views, images, overwrite)
        known = _read_people(people)
        layer = _layer(find_body(body, bar), given, labels)
        task = bar.add_task("placing", total=len(images))
        rows: list[dict[str, Any]] = []
        parts: list[Labels] = []
        for name, chosen in images.items():
            part = given.select(chosen)
            whose = None if numbers is None else numbers[name]
            maps = _read_maps(name, depths[name], whose, part.image_sizes[0], len(part), disparity)
            years, sex = _known_of(part, known)
            try:
                found = place_labels(
                    layer, part, maps.depth, masks=maps.masks, years=years, sex=sex, disparity=disparity,
                    refine=refine,
                )  # fmt: skip
            except ValueError as error:
                fail(f"{labels}: image {name}: {error}")
            rows.append({"image": name, **_report(part, found)})
            parts.append(found.labels)
            if views is not None:
                _draw(layer, part, found.labels, pictures[name])
            bar.advance(task)
        order = np.argsort(np.concatenate([np.zeros(0, int), *images.values()]))
        placed = concatenate_labels(parts).select(order) if parts else flag_labels(given)
        placed.save(output, overwrite=overwrite)
        if report is not None:
            with replacing(report) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n")
    _show(rows)
    print(f"wrote {output}")


def _check_outputs(
    outputs: Mapping[str, Path | None], inputs: tuple[Path | None, ...], overwrite: bool
) -> None:
    """Refuse to write where nothing can be written, where something is, and over what is read."""
    read = {path.resolve() for path in inputs if path is not None}
    seen: set[Path] = set()
    for option, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in read:
            fail(f"{path}: {option} is a file that the command reads; give another")
        if path.resolve() in seen:
            fail(f"{path}: {' and '.join(outputs)} are one file; give another")
        seen.add(path.resolve())
        if path.is_dir():
            fail(f"{path}: a folder, not a file; give {option} a file in it")
        if path.exists() and not overwrite:
            fail(f"{path}: exists; --overwrite replaces it")
        make_folder(path.parent)


def _images(labels: Labels, path: Path) -> dict[str, np.ndarray]:
    """The rows of each image, in the order in which the images come."""
    from agebody.annotations.people import is_file_name

    names, first, inverse = np.unique(labels.image_ids, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    for name in names:
        if not is_file_name(str(name)):
            fail(f"{path}: expected images by paths inside a folder, got {str(name)!r}")
    return {str(names[i]): rows[i] for i in np.argsort(first)}


def _find_maps(folder: Path, images: Mapping[str, Any]) -> dict[str, Path]:
    """The map of each image: in folders as the images are, or in none."""
    found: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    for name in images:
        stems = dict.fromkeys((Path(name).parent / Path(name).stem, Path(Path(name).stem)))
        tried = [folder / f"{stem}{suffix}" for stem in stems for suffix in (".npy", ".png")]
        path = next((candidate for candidate in tried if candidate.is_file()), None)
        if path is None:
            fail(f"{folder}: there is no {' or '.join(str(one.relative_to(folder)) for one in tried)}")
        if path in owner:
            fail(
                f"{path}: would be the map of {owner[path]} and of {name}; "
                "put maps in folders as the images are"
            )
        owner[path] = name
        found[name] = path
    return found


def _name_views(folder: Path, images: Mapping[str, Any], overwrite: bool) -> dict[str, Path]:
    """The picture of each image: its name with its folders."""
    make_folder(folder)
    views: dict[str, Path] = {}
    for name in images:
        path = folder / ("__".join((*Path(name).parent.parts, Path(name).stem)) + ".png")
        if path in views.values():
            fail(f"{path}: would be the picture of two images, one of them {name}")
        if path.exists() and not overwrite:
            fail(f"{path}: exists; --overwrite replaces it")
        views[name] = path
    return views


class _Maps(NamedTuple):
    depth: np.ndarray
    """(H, W)"""
    masks: np.ndarray | None
    """(P, H, W)"""


def _layer(asset: Any, labels: Labels, path: Path) -> BodyModel:
    import torch

    from agebody.body import SMPL, SMPLA

    if asset.metadata.name != labels.body:
        fail(f"{path}: made with the body {labels.body!r}; --body is {asset.metadata.name!r}")
    kind = SMPLA if asset.has_age else SMPL
    return kind(asset, num_betas=labels.betas.shape[1], dtype=torch.float64)


def _known_of(labels: Labels, known: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ages, NaN where they are not known, and sexes."""
    from agebody.age import parse_ages
    from agebody.crowd.height_prior import SEXES

    said = [known.get(str(number), {}) for number in labels.ids]
    years = parse_ages(years=[entry.get("years") for entry in said]).years
    return years, np.array([SEXES.index(entry.get("sex", "neutral")) for entry in said], dtype=np.int64)


def _report(before: Labels, found: PlacedLabels) -> dict[str, Any]:
    finite = lambda tensor: [x if math.isfinite(x) else None for x in tensor.tolist()]  # noqa: E731
    placement, written, after = found.placement, found.written, found.labels
    return {
        "people": [
            {
                "id": int(before.ids[i]), "placed": bool(placement.placed[i]), "far": bool(found.far[i]),
                "pixels": int(found.depths.pixels[i]), "depth_before": float(before.depth[i]),
                "depth": float(after.depth[i]), "height_before": float(found.height[i]),
                "height": float(written.height[i]), "prior_mean": float(found.prior.mean[i]),
                "prior_sd": float(found.prior.sd[i]), "moved_pixels": float(written.pixels[i]),
                "exact": bool(written.exact[i]), "kept": bool(after.kept[i]),
            }
            for i in range(len(before))
        ],
        "slope": finite(placement.slope), "shift": finite(placement.shift),
        "bounded": placement.bounded.tolist(), "deviation": finite(placement.deviation[None])[0],
    }  # fmt: skip


def _read_maps(
    name: str, depth: Path, masks: Path | None, size: np.ndarray, people: int, disparity: bool
) -> _Maps:
    """What is known of the pixels of an image, on a grid of at most ``MAX_SIDE``."""
    values = _read_array(depth)
    floating = values.dtype.kind == "f"
    values = values.astype(np.float64)
    if not floating and not disparity:
        values /= 1000.0
    values[values <= 0] = np.nan  # a pixel without depth
    width, height = map(int, size)
    shrink = min(1.0, MAX_SIDE / max(width, height))
    shape = (max(round(height * shrink), 1), max(round(width * shrink), 1))
    if not values.size or abs(values.shape[1] / values.shape[0] - width / height) > 0.02 * width / height:
        found = f"{values.shape[1]} x {values.shape[0]}"
        fail(f"{depth}: the map of {name} has {found} pixels, the image {width} x {height}")
    values = _resampled(values, shape)
    if disparity:
        values = 1 / values
    if masks is None:
        return _Maps(values, None)
    whose = _read_array(masks)
    if not whose.size:
        fail(f"{masks}: the map of {name} has no pixels")
    numbers = _resampled(whose, shape)
    if numbers.max(initial=0) > people:
        fail(f"{masks}: {name} has a person {int(numbers.max())}, LABELS has {people} people in it")
    return _Maps(values, numbers == np.arange(1, people + 1)[:, None, None])


def _read_array(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    except (ValueError, SyntaxError, UnidentifiedImageError, EOFError) as error:
        fail(f"{path}: cannot be read ({error})")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        fail(f"{path}: expected numbers of shape (H, W), got {array.dtype} {array.shape}")
    return array


def _resampled(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The nearest value at the centre of each cell of another grid: between two bodies there is no mean."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _read_people(path: Path | None) -> dict[str, Any]:
    from agebody.age import AgeError, parse_ages

    if path is None:
        return {}
    expected = 'expected {"id": {"years": number, "sex": "female", "male" or "neutral"}}'
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        fail(f"{path}: no JSON ({error}); {expected}")

    def wrong(what: object) -> NoReturn:
        fail(f"{path}: {expected}, got {what!r}")

    if not isinstance(known, dict):
        wrong(known)
    for entry in known.values():
        if not isinstance(entry, dict) or not set(entry) <= {"years", "sex"}:
            wrong(entry)
        try:
            parse_ages(years=entry.get("years"))
        except AgeError:
            wrong(entry)
        if entry.get("sex", "neutral") not in ("female", "male", "neutral"):
            wrong(entry)
    return known


def _draw(body: BodyModel, before: Labels, after: Labels, path: Path) -> None:
    """The people from above, before and after, to one scale."""
    from agebody.draw import contact_sheet
    from agebody.pipelines.labels.placing import parameters_of

    scenes = [body(parameters_of(body, labels)).vertices.numpy() for labels in (before, after)]
    reach = max(float(np.abs(scene[..., 0]).max()) for scene in scenes) + 0.5
    last = max(float(scene[..., 2].max()) for scene in scenes) + 0.5
    sheet = contact_sheet(
        [top_view(scene, body.faces.numpy(), half_width=reach, depth=last) for scene in scenes], columns=2
    )
    with replacing(path) as temporary:
        sheet.save(temporary)


def top_view(
    vertices: np.ndarray, faces: np.ndarray, *, half_width: float, depth: float, size: int = 480
) -> Any:
    """People seen from above; the camera of their image is at the bottom and looks up.

    Args:
        vertices: (P, V, 3) in camera coordinates [m].
        faces: triangles.
        half_width: what is shown to either side of the camera's axis [m].
        depth: what is shown along it [m].
        size: height of the picture [pixels].
    """
    import torch

    from agebody.cameras import Camera
    from agebody.draw import render

    width = max(round(size * 2 * half_width / depth), 16)
    distance = 40 * depth
    camera = Camera.look_at(
        torch.tensor((0.0, -distance, depth / 2), dtype=torch.float64), (0.0, 0.0, depth / 2),
        size=(width, size), fov=2 * math.atan(depth / 2 / distance), up=(0.0, 0.0, 1.0),
    )  # fmt: skip
    return render(vertices, faces, camera, size=(width, size), light_rays=0)


def _show(rows: list[dict[str, Any]]) -> None:
    people = [person for row in rows for person in row["people"]]
    placed = [person for person in people if person["placed"]]
    table = Table(show_header=False, title="people in one space", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    moved = [person["moved_pixels"] for person in placed] or [0.0]
    change = [abs(math.log(person["depth"] / person["depth_before"])) for person in placed] or [0.0]
    for name, value in (
        ("images", str(len(rows))),
        ("people", str(len(people))),
        ("placed", str(len(placed))),
        ("median change of depth", f"{100 * math.expm1(float(np.median(change))):.1f} %"),
        ("median shift of keypoints", f"{float(np.median(moved)):.1f} px"),
    ):
        table.add_row(Text(name), Text(value))
    Console().print(table)
