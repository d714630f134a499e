"""The formats of keypoint files: how each is recognised and converted to COCO's terms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Frame(NamedTuple):
    """An image of a file with its people, in COCO's terms.

    A person is the place in the file that errors name, and an entry as of COCO's results: ``keypoints``,
    ``bbox``, ``score``, ``track_id``, ages. Values that do not have the form of the format are passed on as
    they are, for the reader of entries to refuse.
    """

    image: Any
    """Name or number of the image; None for the one that has the file's name."""
    people: list[tuple[str, Any]]
    size: Any = None
    """Width and height of the image that the coordinates belong to, which may be of another resolution."""
    names: Sequence[str] | None = None
    """Names of the keypoints, where the file has them."""


class Format(NamedTuple):
    """A kind of file."""

    name: str
    fits: Callable[[Any], bool]
    """Whether a document, such as JSON holds, is of this format."""
    frames: Callable[..., Iterator[Frame]] | None
    """The images of a document. None for a format that is not read; its name then says what it is."""
    order: str | None = None
    """Title of the order of the keypoints, where their number does not say it."""
    shares: bool = False
    """Whether coordinates may be shares of the width and height of the image."""
    boxes_only: bool = False
    """Whether people have boxes and no keypoints."""


def _objects(value: Any, *keys: str) -> bool:
    """Return whether a value is a list of objects of which the first has one of the keys."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(key in first for key in keys)


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and any(key in value for key in keys)


def _listed(value: Any) -> list[Any]:
    """Return a list unchanged; wrap anything else, so that the reader of entries refuses it."""
    return value if isinstance(value, list) else [value]


def triples(xy: Any, third: Any = None) -> Any:
    """Return x, y, c of points given as pairs and, optionally, confidences; invalid values unchanged."""
    if not isinstance(xy, list):
        return xy
    odd = [pair for pair in xy if not isinstance(pair, list) or len(pair) != 2]
    if odd:
        return str(odd[0])
    third = [1.0] * len(xy) if third is None else third
    if not isinstance(third, list) or len(third) != len(xy):
        return third
    return [number for pair, c in zip(xy, third, strict=True) for number in (*pair, c)]


def _coordinates(points: Any, *third: str) -> Any:
    """Return x, y, c of points given as objects with x, y and one of the keys of a confidence."""
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        return points
    rows = []
    for point in points:
        c = next((point[key] for key in third if point.get(key) is not None), 1.0)
        rows += [point.get("x"), point.get("y"), c]
    return rows


def _from_corners(box: Any) -> Any:
    """Return x, y, width, height of a box of two corners; invalid values unchanged."""
    box = box[0] if isinstance(box, list) and len(box) == 1 else box
    try:
        x0, y0, x1, y1 = box
        return [x0, y0, x1 - x0, y1 - y0]
    except (TypeError, ValueError, OverflowError):
        return box


def _with(row: Any, **changes: Any) -> Any:
    """Return an object with added values, except those that are None."""
    if not isinstance(row, dict):
        return row
    return {**row, **{key: value for key, value in changes.items() if value is not None}}


# --- OpenPose, and what writes its format


def _openpose_person(where: str, person: Any) -> tuple[str, Any]:
    for key in ("pose_keypoints_2d", "pose_keypoints", "joints"):
        if _has(person, key):
            return f"{where}.{key}", _with(
                {k: v for k, v in person.items() if k != key}, keypoints=person[key]
            )
    return where, person


def _openpose_people(document: Any, prefix: str = "") -> list[tuple[str, Any]]:
    key = "people" if "people" in document else "bodies"
    return [
        _openpose_person(f"{prefix}{key}[{i}]", person) for i, person in enumerate(_listed(document[key]))
    ]


def _canvas(document: Any) -> Any:
    size = [document.get("canvas_width"), document.get("canvas_height")]
    return None if size == [None, None] else size


def _openpose(document: Any) -> Iterator[Frame]:
    yield Frame(None, _openpose_people(document), _canvas(document))


def _openpose_list(document: Any) -> Iterator[Frame]:
    for i, one in enumerate(document):
        if not _has(one, "people"):
            yield Frame(None, [(f"[{i}]", one)])
        else:
            yield Frame(None, _openpose_people(one, f"[{i}]."), _canvas(one))


def _openpose_by_name(document: Any) -> Iterator[Frame]:
    for name, one in document.items():
        people = _openpose_people(one, f"{name}.") if _has(one, "people", "bodies") else [(name, one)]
        yield Frame(name, people)


def _is_poseflow(document: Any) -> bool:
    """Return whether an object has lists of people by the names of their images, as AlphaPose's tracker."""
    if not isinstance(document, dict) or not all("." in name for name in document):
        return False
    lists = document.values()
    return all(isinstance(one, list) for one in lists) and any(_objects(one, "keypoints") for one in lists)


def _poseflow(document: Any) -> Iterator[Frame]:
    for name, people in document.items():
        scored = [one | {"score": one.get("scores")} if isinstance(one, dict) else one for one in people]
        yield Frame(name, [(f"{name}[{i}]", one) for i, one in enumerate(scored)])


# --- MMPose


def _mmpose_people(instances: Any, prefix: str) -> list[tuple[str, Any]]:
    found = []
    for i, one in enumerate(_listed(instances)):
        if isinstance(one, dict):
            points = triples(one.get("keypoints"), one.get("keypoint_scores"))
            one = _with(
                one, keypoints=points, score=one.get("bbox_score"), bbox=_from_corners(one.get("bbox"))
            )
        found.append((f"{prefix}[{i}]", one))
    return found


def _mmpose(document: Any) -> Iterator[Frame]:
    names, prefix = None, ""
    if isinstance(document, dict):
        about = document.get("meta_info")
        listed = about.get("keypoint_id2name") if isinstance(about, dict) else None
        if isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values()):
            names = tuple(listed[key] for key in sorted(listed, key=lambda key: (len(key), key)))
        prefix = "instance_info" if "instance_info" in document else "frames"
        document = document[prefix]
    if _objects(document, "instances"):
        for i, one in enumerate(document):
            one = one if isinstance(one, dict) else {"instances": one}
            people = _mmpose_people(one.get("instances"), f"{prefix}[{i}].instances")
            yield Frame(one.get("image_name"), people, names=names)
    else:
        yield Frame(None, _mmpose_people(document, prefix), names=names)


# --- ViTPose, of transformers and of easy_ViTPose; OpenPifPaf

_VITPOSE = 17
"""Points of the models of transformers."""


def _in_place(points: Any, labels: Any) -> Any:
    """Return x, y, c of all points, where a file has those above a threshold and their numbers."""
    count = len(points) // 3 if isinstance(points, list) else 0
    if not isinstance(labels, list) or len(labels) != count or labels == [*range(count)]:
        return points
    if not all(isinstance(label, int) and 0 <= label < _VITPOSE for label in labels):
        return str(labels)
    placed = [0.0] * 3 * _VITPOSE
    for k, label in enumerate(labels):
        placed[3 * label : 3 * label + 3] = points[3 * k : 3 * k + 3]
    return placed


def _vitpose(document: Any) -> Iterator[Frame]:
    """Read results of transformers, of an image or several; their boxes lie elsewhere, and are left out."""
    several = isinstance(document[0], list)
    for i, one in enumerate(document if several else [document]):
        people = []
        for k, person in enumerate(_listed(one)):
            if isinstance(person, dict):
                points = triples(person.get("keypoints"), person.get("scores"))
                person = {"keypoints": _in_place(points, person.get("labels"))}
            people.append((f"[{i}][{k}]" if several else f"[{k}]", person))
        yield Frame(None, people)


def _easy_vitpose(document: Any) -> Iterator[Frame]:
    listed, frames = document["skeleton"], document["keypoints"]
    names = tuple(map(str, listed.values())) if isinstance(listed, dict) else None
    for i, one in enumerate(frames):
        people = []
        for track, points in one.items() if isinstance(one, dict) else [("", one)]:
            triples = isinstance(points, list) and all(isinstance(p, list) and len(p) == 3 for p in points)
            flat = [n for y, x, c in points for n in (x, y, c)] if triples else points
            row = {"keypoints": flat, "track_id": int(track) if track.isdecimal() else None}
            people.append((f"keypoints[{i}].{track}", row))
        yield Frame(None, people, names=names)


def _is_openpifpaf(document: Any) -> bool:
    """Return whether a list has the people of one image, which has the file's name, or frames of a video."""
    if _objects(document, "predictions") and "frame" in document[0]:
        return True
    if not _objects(document, "keypoints") or not {"bbox", "score", "category_id"} <= document[0].keys():
        return False
    return not any(_has(one, "image_id", "file_name") for one in document)


def _openpifpaf(document: Any) -> Iterator[Frame]:
    if "predictions" not in document[0]:
        yield Frame(None, [(f"[{i}]", one) for i, one in enumerate(document)])
        return
    for i, one in enumerate(document):
        people = _listed(one.get("predictions") if isinstance(one, dict) else one)
        yield Frame(None, [(f"[{i}].predictions[{k}]", person) for k, person in enumerate(people)])


# --- EasyMocap


def _easymocap(document: Any) -> Iterator[Frame]:
    people = []
    for i, one in enumerate(_listed(document["annots"])):
        if isinstance(one, dict):
            box = one.get("bbox")  # corners and a confidence
            box = _from_corners(box[:4]) if isinstance(box, list) else box
            one = _with(one, bbox=box)  # a personID may be a place in the list, and is no track
        people.append((f"annots[{i}]", one))
    yield Frame(document.get("filename"), people, [document.get("width"), document.get("height")])


# --- Ultralytics


def _ultralytics(document: Any) -> Iterator[Frame]:
    people = []
    for i, one in enumerate(document):
        if isinstance(one, dict):
            points, box = one.get("keypoints"), one.get("box")
            if isinstance(points, dict):
                x: Any = points.get("x")
                y: Any = points.get("y")
                pairs = isinstance(x, list) and isinstance(y, list) and len(x) == len(y)
                xy = [list(pair) for pair in zip(x, y, strict=True)] if pairs else points
                points = triples(xy, points.get("visible"))
            if isinstance(box, dict):
                box = _from_corners([box.get(key) for key in ("x1", "y1", "x2", "y2")])
            kind = 1 if one.get("name") == "person" else one.get("name")
            one = _with(one, keypoints=points, bbox=box, score=one.get("confidence"), category_id=kind)
        people.append((f"[{i}]", one))
    yield Frame(None, people)


# --- MediaPipe, TensorFlow.js

_WORLD = ("pose_world_landmarks", "poseWorldLandmarks", "worldLandmarks")
_POSES = ("pose_landmarks", "poseLandmarks", "landmarks", "landmark", "keypoints")


def _landmarks(value: Any) -> list[Any] | None:
    """Return the people of an image, each a list of points; None if the value is something else."""
    if isinstance(value, dict):
        key = next((key for key in _POSES if key in value), None)
        return None if key is None else [] if value[key] is None else _landmarks(value[key])
    if not isinstance(value, list):
        return None
    if _objects(value, "x") and "y" in value[0]:
        return [value]
    people = [_landmarks(one) for one in value]
    return [pose for found in people if found is not None for pose in found] if None not in people else None


def _is_mediapipe(document: Any) -> bool:
    frames = document if isinstance(document, list) and not _objects(document, "x") else [document]
    poses = [_landmarks(one) for one in frames]
    return _has(document, *_POSES[:-1]) or (None not in poses and any(poses))


def _mediapipe(document: Any) -> Iterator[Frame]:
    alone = _objects(document, "keypoints")  # TensorFlow.js: a list of the people of one image
    frames = [document] if alone or isinstance(document, dict) or _objects(document, "x") else document
    for i, one in enumerate(frames):
        place = f"[{i}]" if len(frames) > 1 else ""
        image = next((one[key] for key in ("image", "file_name", "image_id") if _has(one, key)), None)
        people, names = [], None
        poses = _landmarks(one)
        if poses is None:
            people.append((place, one))
        for k, points in enumerate(poses or []):
            named = [str(point.get("name", "")) for point in points if isinstance(point, dict)]
            names = named if all(named) else None
            row = {"keypoints": _coordinates(points, "visibility", "score", "presence")}
            people.append((f"{place}.pose[{k}]".lstrip("."), row))
        yield Frame(image, people, names=names)


# --- annotations of other data sets


def _ai_challenger(document: Any) -> Iterator[Frame]:
    for i, one in enumerate(document):
        people = []
        points = one.get("keypoint_annotations") if isinstance(one, dict) else None
        if not isinstance(points, dict):
            yield Frame(None, [(f"[{i}].keypoint_annotations", points)])
            continue
        boxes = one.get("human_annotations") or {}
        for name, values in points.items():
            box = _from_corners(boxes.get(name)) if isinstance(boxes, dict) else None
            people.append((f"[{i}].keypoint_annotations.{name}", _with({"keypoints": values}, bbox=box)))
        yield Frame(one.get("image_id"), people)


def _mpii(document: Any) -> Iterator[Frame]:
    for i, one in enumerate(document):
        if not isinstance(one, dict):
            yield Frame(None, [(f"[{i}]", one)])
            continue
        joints = one.get("joints")
        if isinstance(joints, list) and all(_is_pair(pair) for pair in joints):
            joints = [[x - 1, y - 1] for x, y in joints]  # Matlab counts from 1
        points = triples(joints, one.get("joints_vis", one.get("joints_visible")))
        rest = {k: v for k, v in one.items() if k not in ("center", "scale")}
        yield Frame(one.get("image"), [(f"[{i}].joints", _with(rest, keypoints=points))])


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, (int, float)) for n in value)


def _is_results(document: Any) -> bool:
    """Return whether a list has the results of people, or lists of them by batch or image."""
    batched = isinstance(document, list) and all(isinstance(batch, list) for batch in document)
    return _objects(document, "keypoints", "image_id", "file_name") or (
        batched and any(_objects(batch, "image_id", "file_name") for batch in document)
    )


def _results(document: Any) -> Iterator[Frame]:
    """COCO's results, with the names of AlphaPose's fields."""
    batches = document if all(isinstance(batch, list) for batch in document) else [document]
    for i, one in enumerate(itertools.chain(*batches)):
        image = None
        if isinstance(one, dict):
            image = one.get("file_name", one.get("image_id"))
            image = False if image is None else image  # the entry has to name it
            box = one.get("bbox", one.get("box"))
            if isinstance(box, list) and len(box) == 5:  # corners and a score, of MMPose 0.x
                box = _from_corners(box[:4])
            one = _with(one, bbox=box)
        yield Frame(image, [(f"results[{i}]", one)])


def is_annotations(document: Any) -> bool:
    """Return whether a document is of COCO's annotations."""
    other = _has(document, "annolist") or (_has(document, "data") and not _has(document, "images"))
    return _has(document, "annotations") and not other


_TASK, _SCORES = ("annotations", "completions"), "keypoints_scores"
_BOXES = "detections without keypoints, boxes only"

FORMATS = (
    Format("torchvision's detections", lambda d: _objects([d], _SCORES) or _objects(d, _SCORES), None),
    Format(
        "DWPose's candidates",
        lambda d: _has(d, "bodies") and ("body_scores" in d or isinstance(d["bodies"], dict)),
        None,
    ),
    Format("OpenPose", lambda d: _has(d, "people", "bodies"), _openpose, shares=True),
    Format("OpenPose, several images", lambda d: _objects(d, "people"), _openpose_list, shares=True),
    Format(
        "OpenPose, written by AlphaPose",
        lambda d: isinstance(d, dict) and bool(d) and all(_has(v, "people", "bodies") for v in d.values()),
        _openpose_by_name,
    ),
    Format("AlphaPose's PoseFlow", _is_poseflow, _poseflow),
    Format(
        "MMPose",
        lambda d: (
            _has(d, "instance_info")
            or _objects(d, "keypoint_scores", "instances")
            or (_has(d, "frames") and _objects(d["frames"], "instances"))
        ),
        _mmpose,
    ),
    Format(
        "Ultralytics",
        lambda d: _objects(d, "box") and _objects(d, "class") and any(_has(one, "keypoints") for one in d),
        _ultralytics,
        shares=True,
    ),
    Format(
        "ViTPose of transformers",
        lambda d: any(
            _objects(one, "scores") and _objects(one, "keypoints")
            for one in (d, *(d if d and isinstance(d, list) else ()))
        ),
        _vitpose,
    ),
    Format(
        "easy_ViTPose", lambda d: _has(d, "skeleton") and isinstance(d.get("keypoints"), list), _easy_vitpose
    ),
    Format("OpenPifPaf", _is_openpifpaf, _openpifpaf),
    Format("EasyMocap", lambda d: _has(d, "annots"), _easymocap),
    Format("AI Challenger", lambda d: _objects(d, "keypoint_annotations"), _ai_challenger, "AI Challenger"),
    Format("MPII", lambda d: _objects(d, "joints") and _objects(d, "image"), _mpii, "MPII"),
    Format("MediaPipe", _is_mediapipe, _mediapipe, shares=True),
    Format(
        _BOXES,
        lambda d: _objects(d, "bbox", "box") and not any(_has(o, "keypoints") for o in d),
        _results,
        boxes_only=True,
    ),
    Format("COCO's results", _is_results, _results),
    Format("LabelMe's shapes", lambda d: _has(d, "shapes"), None),
    Format("an annotation list of PoseTrack 2017 or MPII", lambda d: _has(d, "annolist", "RELEASE"), None),
    Format("VGG Image Annotator's regions", lambda d: _has(d, "_via_img_metadata", "regions"), None),
    Format(
        "Label Studio's tasks",
        lambda d: (
            _objects([d], *_TASK)
            or _objects(d, *_TASK)
            or any(
                _objects(v, "keypointlabels")
                for one in _listed(d)[:1]
                if _has(one, "id")
                for v in one.values()
            )
        ),
        None,
    ),
    Format("MMPose 0.x's predictions", lambda d: _objects(d, "preds"), None),
    Format("Supervisely's labels of an image", lambda d: _has(d, "objects") and _has(d, "size"), None),
    Format("OCHuman's annotations", lambda d: _has(d, "keypoint_visible"), None),
    Format("a skeleton sequence of Kinetics", lambda d: _has(d, "label_index") and _has(d, "data"), None),
    Format("FiftyOne's samples", lambda d: _has(d, "samples"), None),
    Format("fits of EFT", lambda d: _has(d, "smpltype") or (_has(d, "data") and _has(d, "ver")), None),
    Format("MediaPipe's points in metres, not in an image", lambda d: _has(d, *_WORLD), None),
)
"""The formats besides COCO's annotations, of which the first that fits counts."""

READ = (
    "COCO, OpenPose, AlphaPose, MMPose, ViTPose, OpenPifPaf, EasyMocap, Ultralytics, YOLO-pose, MediaPipe, "
    "AI Challenger and MPII"
)
"""Names of the formats that are read, for error messages."""


def find_format(document: Any) -> Format | None:
    """Return the format of a document; None if it is unknown."""
    return next((one for one in FORMATS if one.fits(document)), None)
