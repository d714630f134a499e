"""`agebody crowd`: the people of each image, put in one space by a depth map."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agebody.cli.app import app, clear_errors, fail, find_body, make_folder, progress_bar
from agebody.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from agebody.body import BodyModel
    from agebody.crowd import HeightPrior
    from agebody.fitting.parameters import BodyParameters
    from agebody.labels import Labels

MAX_SIDE = 640
"""Of the maps on which depths are compared [pixels]."""
MIN_SHARE = 1 / 400
"""Of the image that a person must cover to be placed (DTO's code)."""


@app.command()
def crowd(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", show_default=False, help="An **.npz** by `agebody fit`.")
    ],
    depth: Annotated[
        Path,
        typer.Option(
            show_default=False,
            help="Folder of depth maps, one an image, with the image's name: **.npy**, or 16-bit **.png** "
            "in millimetres.",
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
) -> None:
    """Put the people of each image in one space: how far away and how tall they are (DTO).

    Poses stay as they are. A child's age offset or an adult's first beta is changed until the body has its
    new stature, and the body is moved so that it covers the same pixels.
    """
    if output.suffix.lower() != ".npz":
        raise typer.BadParameter(f"expected the suffix .npz, got {output.name!r}", param_hint="--output")
    with clear_errors(), progress_bar() as bar:
        from agebody.labels import LabelError, load_labels

        try:
            given = load_labels(labels)
        except LabelError as error:
            fail(str(error))
        known = _read_people(people)
        layer = _layer(find_body(body, bar), given, labels)
        if views is not None:
            make_folder(views)
        task = bar.add_task("placing", total=len(np.unique(given.image_ids)))
        rows: list[dict[str, Any]] = []
        placed = given
        for name, chosen in _images(given):
            maps = _read_maps(name, depth, masks, given.image_sizes[chosen[0]], len(chosen), disparity)
            found = _place(layer, given.select(chosen), maps, known, disparity, refine)
            rows.append({"image": name, **found.report})
            placed = _put(placed, chosen, found.labels)
            if views is not None:
                _draw(layer, given.select(chosen), found.labels, views / f"{Path(name).stem}.png")
            bar.advance(task)
        placed.save(output)
        if report is not None:
            with replacing(report) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n")
    _show(rows)
    print(f"wrote {output}")


class _Maps(NamedTuple):
    depth: np.ndarray
    """(H, W)"""
    masks: np.ndarray | None
    """(P, H, W)"""


class _Placed(NamedTuple):
    labels: Labels
    report: dict[str, Any]


def _images(labels: Labels) -> Iterator[tuple[str, np.ndarray]]:
    for name in dict.fromkeys(labels.image_ids.tolist()):
        yield str(name), np.flatnonzero(labels.image_ids == name)


def _layer(asset: Any, labels: Labels, path: Path) -> BodyModel:
    import torch

    from agebody.body import SMPL, SMPLA

    if asset.metadata.name != labels.body:
        fail(f"{path}: made with the body {labels.body!r}; --body is {asset.metadata.name!r}")
    kind = SMPLA if asset.has_age else SMPL
    return kind(asset, num_betas=labels.betas.shape[1], dtype=torch.float64)


def _place(
    body: BodyModel, labels: Labels, maps: _Maps, known: dict[str, Any], disparity: bool, refine: bool
) -> _Placed:
    """The people of one image."""
    import torch

    from agebody.cameras import Camera
    from agebody.crowd import DISPARITY_MIN_SLOPE, is_far, mask_depths, place_people, rest_height, write_back

    tensor = lambda array: torch.from_numpy(np.array(array)).to(torch.float64)  # noqa: E731
    parameters = _parameters(labels)
    camera = Camera(tensor(labels.focal), tensor(labels.center))
    vertices = body(**parameters.arguments(body), pose_format="axis_angle").vertices
    rendered, covered = _rendered(body, vertices, camera, labels.image_sizes[0], maps.depth.shape)
    masks = torch.from_numpy(covered if maps.masks is None else maps.masks)
    seen = mask_depths(torch.from_numpy(maps.depth), torch.from_numpy(rendered), masks)
    weights = (seen.pixels >= MIN_SHARE * maps.depth.size).double()
    height = rest_height(body, parameters.betas, parameters.age_offset)
    prior, child = _prior(body, labels, parameters, height, known)
    z = torch.where(weights > 0, seen.rendered_depth, tensor(labels.depth))
    sides = labels.image_sizes[0].tolist()
    far = is_far(z, camera.focal[:, 1], (sides[0], sides[1]))
    if disparity:
        far |= seen.depth > 0.02
    placement = place_people(
        seen.depth, z, height, prior, weights=weights, far=far, spread=seen.spread,
        body_slope=seen.slope, body_correlation=seen.correlation,
        min_slope=DISPARITY_MIN_SLOPE if disparity else 0.0,
    )  # fmt: skip
    scale = torch.where(placement.placed, placement.scale, 1)
    written = write_back(body, parameters, scale, camera, child=child)
    if refine and len(labels) > 1:
        written = _refined(body, written.parameters, camera, prior, written.height)
    changed = _described(body, labels, written.parameters, camera)
    finite = lambda tensor: [x if math.isfinite(x) else None for x in tensor.tolist()]  # noqa: E731
    report = {
        "people": [
            {
                "id": int(labels.ids[i]), "placed": bool(placement.placed[i]), "far": bool(far[i]),
                "pixels": int(seen.pixels[i]), "depth_before": float(labels.depth[i]),
                "depth": float(changed.depth[i]), "height_before": float(height[i]),
                "height": float(written.height[i]), "prior_mean": float(prior.mean[i]),
                "prior_sd": float(prior.sd[i]), "moved_pixels": float(written.pixels[i]),
                "exact": bool(written.exact[i]),
            }
            for i in range(len(labels))
        ],
        "slope": finite(placement.slope), "shift": finite(placement.shift),
        "bounded": placement.bounded.tolist(), "deviation": finite(placement.deviation[None])[0],
    }  # fmt: skip
    return _Placed(changed, report)


def _refined(
    body: BodyModel, parameters: BodyParameters, camera: Any, prior: HeightPrior, height: Tensor
) -> Any:
    """All people on one ground and out of one another; sizes free."""
    from agebody.cameras import Camera
    from agebody.crowd import refine_crowd, write_back
    from agebody.losses import FEET, part_vertices

    posed = body(**parameters.arguments(body), pose_format="axis_angle")
    points = body.keypoints("smpl24", **parameters.arguments(body), pose_format="axis_angle")
    soles = part_vertices(body.asset, FEET, facing=(0, -1, 0))
    found = refine_crowd(
        points, Camera(camera.focal[0], camera.center[0]), posed.joints[:, 0], feet=posed.vertices[:, soles],
        height=height, prior=prior, vertices=posed.vertices, faces=body.faces,
    )  # fmt: skip
    return write_back(body, parameters, found.scale, camera, root=found.new_root)


def _prior(
    body: BodyModel, labels: Labels, parameters: BodyParameters, height: Tensor, known: dict[str, Any]
) -> tuple[HeightPrior, Tensor]:
    """How tall each is likely to be, and who is a child."""
    import torch

    from agebody.age import AgeCurve
    from agebody.crowd import SEXES, HeightPrior, prior_of_age

    said = [known.get(str(number), {}) for number in labels.ids]
    sex = torch.tensor([SEXES.index(entry.get("sex", "neutral")) for entry in said])
    years = torch.tensor([entry.get("years", math.nan) for entry in said], dtype=torch.float64)
    guess, doubt = torch.full_like(years, 19.0), torch.zeros_like(years)
    if body.age_anchors:
        curve = AgeCurve.from_asset(body.asset)
        guess = curve.offset_to_years(parameters.age_offset)
        older, younger = (curve.offset_to_years(parameters.age_offset + way) for way in (-0.1, 0.1))
        doubt = (older - younger) / 2
    unknown = years.isnan()
    years = torch.where(unknown, guess, years)
    child = years < 15
    prior = prior_of_age(years, sex=sex, years_sd=torch.where(unknown, doubt, 0))
    return HeightPrior(*prior).towards(height, share=torch.where(child, 0.0, 0.5)), child


def _parameters(labels: Labels) -> BodyParameters:
    import torch

    from agebody.fitting.parameters import BodyParameters

    return BodyParameters(
        *(torch.from_numpy(np.array(getattr(labels, name))).double() for name in BodyParameters._fields)
    )


def _rendered(
    body: BodyModel, vertices: Tensor, camera: Any, size: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Depth of each body alone, (P, H, W), and which pixels it covers before the others."""
    from agebody.cameras import Camera
    from agebody.render import render

    height, width = shape
    stretch = camera.focal.new_tensor((width / float(size[0]), height / float(size[1])))
    depths = []
    for person, focal, center in zip(vertices, camera.focal, camera.center, strict=True):
        lens = Camera(focal * stretch, center * stretch)
        picture = render(person, body.faces, lens, size=(width, height), background=None, light_rays=0)
        depths.append(picture.depth.astype(np.float64))
    each = np.stack(depths)
    nearest = each.argmin(0) == np.arange(len(each))[:, None, None]
    return each, nearest & np.isfinite(each)


def _described(body: BodyModel, labels: Labels, parameters: BodyParameters, camera: Any) -> Labels:
    """The labels with other bodies, and what follows from them."""
    from agebody.labels import Labels

    arguments = {**parameters.arguments(body), "pose_format": "axis_angle"}
    joints = body(**arguments).joints
    pixels = camera.project(body.keypoints(labels.keypoint_layout, **arguments)).pixels.numpy()
    weights = labels.observed[..., 2]
    off = np.linalg.norm(np.where(weights[..., None] > 0, pixels - labels.observed[..., :2], 0), axis=-1)
    arrays: dict[str, np.ndarray] = {
        name: tensor.numpy() for name, tensor in parameters._asdict().items()
    } | {
        "joints": joints.numpy(), "depth": joints[:, 0, 2].numpy(), "keypoints": pixels,
        "reprojection": (weights * off).sum(1) / np.maximum(weights.sum(1), 1e-9),
    }  # fmt: skip
    assert isinstance(labels, Labels)
    return replace(labels, **{name: a.astype(getattr(labels, name).dtype) for name, a in arrays.items()})


def _put(labels: Labels, rows: np.ndarray, part: Labels) -> Labels:
    changed = {}
    for name in (
        "global_orient", "body_pose", "betas", "age_offset", "transl", "joints", "depth", "keypoints",
        "reprojection",
    ):  # fmt: skip
        array = getattr(labels, name).copy()
        array[rows] = getattr(part, name)
        changed[name] = array
    return replace(labels, **changed)


def _read_maps(
    name: str, depth: Path, masks: Path | None, size: np.ndarray, people: int, disparity: bool
) -> _Maps:
    """What is known of the pixels of an image, on a grid of at most ``MAX_SIDE``."""
    values = _read_array(depth, name)
    floating = values.dtype.kind == "f"
    values = values.astype(np.float64)
    if not floating and not disparity:
        values /= 1000.0
    values[values <= 0] = np.nan  # a pixel without depth
    width, height = map(int, size)
    shrink = min(1.0, MAX_SIDE / max(width, height))
    shape = (max(round(height * shrink), 1), max(round(width * shrink), 1))
    if abs(values.shape[1] / values.shape[0] - width / height) > 0.02 * width / height:
        found = f"{values.shape[1]} x {values.shape[0]}"
        fail(f"{depth}: the map of {name} has {found} pixels, the image {width} x {height}")
    values = _resampled(values, shape)
    if disparity:
        values = 1 / values
    if masks is None:
        return _Maps(values, None)
    numbers = _resampled(_read_array(masks, name), shape)
    if numbers.max(initial=0) > people:
        fail(f"{masks}: {name} has a person {int(numbers.max())}, LABELS has {people} people in it")
    return _Maps(values, numbers == np.arange(1, people + 1)[:, None, None])


def _read_array(folder: Path, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    candidates = [folder / f"{Path(name).stem}{suffix}" for suffix in (".npy", ".png")]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        fail(f"{folder}: there is no {candidates[0].name} or {candidates[1].name}")
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    except (ValueError, UnidentifiedImageError, EOFError) as error:
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
        years, sex = entry.get("years", 0.0), entry.get("sex", "neutral")
        if isinstance(years, bool) or not isinstance(years, (int, float)) or not 0 <= years < 130:
            wrong(entry)
        if sex not in ("female", "male", "neutral"):
            wrong(entry)
    return known


def _draw(body: BodyModel, before: Labels, after: Labels, path: Path) -> None:
    """The people from above, before and after, to one scale."""
    from agebody.render import contact_sheet

    scenes = [
        body(**_parameters(labels).arguments(body), pose_format="axis_angle").vertices.numpy()
        for labels in (before, after)
    ]
    reach = max(float(np.abs(scene[..., 0]).max()) for scene in scenes) + 0.5
    last = max(float(scene[..., 2].max()) for scene in scenes) + 0.5
    contact_sheet(
        [top_view(scene, body.faces.numpy(), half_width=reach, depth=last) for scene in scenes], columns=2
    ).save(path)


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
    from agebody.render import render

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
