"""Files of keypoints as their tools write them: one table of samples, one of damaged ones."""

import copy
import gzip
import json
import lzma
import math
import pickle
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from agebody.annotations import AnnotationError, ImageEntry, read_people, read_shard, write_shards
from agebody.annotations.formats import FORMATS
from agebody.annotations.orders import ORDERS
from agebody.annotations.photographs import Photographs
from agebody.annotations.yolo import YOLO
from agebody.keypoints import LAYOUTS

SIZE = (200, 100)
BODY = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]
FEET = ["left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel"]
BODY25 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "mid_hip",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
    *FEET,
]
HALPE = [
    *BODY,
    None,
    "neck",
    "mid_hip",
    *(f"{side}_{part}" for part in ("big_toe", "small_toe", "heel") for side in ("left", "right")),
]
COCO18 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
]
MPI15 = [None, None, *COCO18[2:14], None]
CROWDPOSE = [
    *(f"{s}_{p}" for p in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for s in ("left", "right")),
    None,
    None,
]
AIC = [*COCO18[2:14], None, None]
MPII = (
    ["right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"]
    + 4 * [None]
    + ["right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"]
)
MEDIAPIPE = [
    "nose",
    None,
    "left_eye",
    None,
    None,
    "right_eye",
    None,
    "left_ear",
    "right_ear",
    None,
    None,
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    *6 * [None],
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_heel",
    "right_heel",
    None,
    None,
]


def xyc(count: int) -> list[tuple[float, float, float]]:
    """Return a person's points, no two of them equal."""
    return [(20.0 + k, 30.0 + k / 2, round(0.3 + 0.005 * k, 3)) for k in range(count)]


def flat(points: Any) -> list[float]:
    return [float(number) for point in points for number in point]


def pairs(points: Any) -> list[list[float]]:
    return [[x, y] for x, y, _ in points]


class Sample(NamedTuple):
    """What a tool writes, and what it means."""

    content: Any
    names: list[Any]
    """Meaning of each of the points; None where layouts have none."""
    layout: str = "openpose25"
    weights: Any = None
    """Of the points; None for those of `xyc`."""
    points: Any = None
    file: str = "a.json"
    box: Any = None
    track: int = -1
    number: int = 0
    """Of the person whose points these are."""
    people: int = 1
    image: str = "a.png"


def coco(row: dict[str, Any], names: Any = None, **image: Any) -> dict[str, Any]:
    category = {"id": 1, "name": "person"} | ({} if names is None else {"keypoints": names})
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 200, "height": 100, **image}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, **row}],
        "categories": [category],
    }


def results(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"image_id": "a.png", "category_id": 1, "keypoints": flat(xyc(count)), "score": 0.9, **more}]


def visible(count: int, flags: Any = 2) -> list[float]:
    return flat((x, y, flags) for x, y, _ in xyc(count))


def landmarks(third: str = "visibility") -> list[dict[str, float]]:
    return [{"x": x / 200, "y": y / 100, "z": -0.1, third: c} for x, y, c in xyc(33)]


ONES = [1.0] * 136
BOX = {"box": (10, 20, 40, 60)}
GOLIATH = [
    *(*BODY[:9], *BODY[11:], *FEET),
    *(*20 * [None], "right_wrist", *20 * [None], "left_wrist", *245 * [None]),
]
VITPOSE = {"scores": [c for *_, c in xyc(17)], "labels": [*range(17)], "keypoints": pairs(xyc(17))}
ABOVE = [0, 5, 6, 11, 12]  # what a threshold leaves
EASY25 = [*BODY[:5], "neck", *BODY[5:13], "hip", *BODY[13:], *FEET]
INSTANCE = {
    "keypoints": pairs(xyc(17)),
    "keypoint_scores": [c for *_, c in xyc(17)],
    "bbox": [[10.0, 20.0, 40.0, 60.0]],
    "bbox_score": 0.9,
}
ULTRALYTICS = {
    "name": "person",
    "class": 0,
    "confidence": 0.9,
    "track_id": 3,
    "box": {"x1": 10.0, "y1": 20.0, "x2": 40.0, "y2": 60.0},
    "keypoints": dict(zip(("x", "y", "visible"), map(list, zip(*xyc(17), strict=True)), strict=True)),
}
SHARES17 = flat((x / 200, y / 100, c) for x, y, c in xyc(17))
YOLO_LINE = "0 .125 .4 .15 .4 " + " ".join(map(str, SHARES17))

SAMPLES = {
    "COCO annotations": Sample(
        coco({"keypoints": visible(17), "bbox": [10, 20, 30, 40], "track_id": 5}, BODY),
        BODY,
        "coco17",
        ONES,
        track=5,
        **BOX,
    ),
    "COCO results": Sample(results(17, bbox=[10, 20, 30, 40]), BODY, "coco17", **BOX),
    "COCO results, names without suffix": Sample(results(17, image_id="a"), BODY, "coco17"),
    "COCO-WholeBody annotations": Sample(
        coco({"keypoints": visible(17), "foot_kpts": visible(23)[51:], "face_kpts": visible(68)}, BODY),
        [*BODY, *FEET],
        weights=ONES,
    ),
    "COCO-WholeBody results (RTMW, DWPose, ViTPose)": Sample(results(133), [*BODY, *FEET]),
    "body and feet": Sample(results(23), [*BODY, *FEET]),
    "Halpe-26 (AlphaPose)": Sample(results(26, box=[10, 20, 30, 40], idx=4), HALPE, track=4, **BOX),
    "MMPose 0.x, a box of corners and score": Sample(
        results(17, bbox=[10, 20, 40, 60, 0.9], idx=[[2.0]]), BODY, "coco17", track=2, **BOX
    ),
    "Halpe-136 (AlphaPose)": Sample(results(136, idx=[0.0]), HALPE, track=0),
    "Halpe without the face (AlphaPose)": Sample(results(68), HALPE),
    "AlphaPose, in OpenPose's form": Sample(
        {"a.png": {"version": "AlphaPose v0.3", "people": [{"pose_keypoints_2d": flat(xyc(18))}]}}, COCO18
    ),
    "AlphaPose, in CMU's form": Sample(
        {"a.png": {"version": "AlphaPose v0.3", "bodies": [{"joints": flat(xyc(18))}]}}, COCO18
    ),
    "AlphaPose, tracked by PoseFlow": Sample(
        {"a.png": [{"keypoints": flat(xyc(17)), "scores": 2.5, "idx": 3}]},
        BODY,
        "coco17",
        track=3,
    ),
    "OpenPose BODY_25": Sample(
        {"version": 1.3, "people": [{"person_id": [2], "pose_keypoints_2d": flat(xyc(25))}]},
        BODY25,
        file="a_keypoints.json",
        track=2,
    ),
    "OpenPose COCO": Sample({"people": [{"pose_keypoints_2d": flat(xyc(18)), "person_id": [-1]}]}, COCO18),
    "OpenPose MPI": Sample({"people": [{"pose_keypoints_2d": flat(xyc(15))}]}, MPI15, "coco17"),
    "OpenPose 1.0": Sample({"version": 1.0, "people": [{"pose_keypoints": flat(xyc(18))}]}, COCO18),
    "OpenPose --keypoint_scale 3": Sample(
        {"people": [{"pose_keypoints_2d": flat((x / 200, y / 100, c) for x, y, c in xyc(25))}]}, BODY25
    ),
    "ComfyUI, pixels of half the size": Sample(
        [
            {
                "version": "ap10k",
                "animals": [],
                "canvas_width": 100,
                "canvas_height": 50,
                "people": [
                    {
                        "pose_keypoints_2d": flat((x / 2, y / 2, c) for x, y, c in xyc(18)),
                        "face_keypoints_2d": None,
                    }
                ],
            }
        ],
        COCO18,
    ),
    "ComfyUI, shares": Sample(
        [
            {
                "canvas_width": 512,
                "canvas_height": 256,
                "people": [{"pose_keypoints_2d": flat((x / 200, y / 100, c) for x, y, c in xyc(18))}],
            }
        ],
        COCO18,
    ),
    "MMPose, one image": Sample([INSTANCE], BODY, "coco17", **BOX),
    "MMPose, demo": Sample(
        {
            "meta_info": {"dataset_name": "coco", "keypoint_id2name": dict(enumerate(BODY))},
            "instance_info": [INSTANCE],
        },
        BODY,
        "coco17",
        file="results_a.json",
        **BOX,
    ),
    "MMPose, names out of order": Sample(
        {
            "meta_info": {"keypoint_id2name": {k: BODY[k] for k in sorted(range(17), key=str)}},
            "instance_info": [INSTANCE],
        },
        BODY,
        "coco17",
        **BOX,
    ),
    "MMPose, video": Sample(
        {"meta_info": {}, "instance_info": [{"frame_id": 1, "instances": [INSTANCE]}]}, BODY, "coco17", **BOX
    ),
    "MMPose, frames": Sample([{"frame_id": 0, "instances": [INSTANCE]}], BODY, "coco17", **BOX),
    "Sapiens": Sample(
        {"instance_info": [{"keypoints": pairs(xyc(308)), "keypoint_scores": [1.0] * 308}]},
        GOLIATH,
        weights=[1.0] * 308,
    ),
    "Sapiens 2": Sample(
        {
            "video": "x",
            "image_size": [100, 200],
            "frames": [{"image_name": "a.png", "instances": [INSTANCE]}],
        },
        BODY,
        "coco17",
        **BOX,
    ),
    "ViTPose of transformers, one image": Sample([VITPOSE | {"bbox": [5.0, 6.0, 5.1, 6.1]}], BODY, "coco17"),
    "ViTPose of transformers, images": Sample([[VITPOSE]], BODY, "coco17"),
    "ViTPose of transformers, above a threshold": Sample(
        [[{"labels": ABOVE} | {key: [VITPOSE[key][k] for k in ABOVE] for key in ("keypoints", "scores")}]],
        BODY,
        "coco17",
        [c if k in ABOVE else 0 for k, (*_, c) in enumerate(xyc(17))],
    ),
    "easy_ViTPose": Sample(
        {
            "keypoints": [{"4": [[y, x, c] for x, y, c in xyc(25)]}],
            "skeleton": {str(k): name for k, name in enumerate(EASY25)},
        },
        ["mid_hip" if name == "hip" else name for name in EASY25],
        track=4,
    ),
    "OpenPifPaf": Sample(
        [{"keypoints": flat(xyc(17)), "bbox": [10, 20, 30, 40], "score": 0.9, "category_id": 1}],
        BODY,
        "coco17",
        file="a.png.predictions.json",
        **BOX,
    ),
    "OpenPifPaf, video": Sample(
        [
            {
                "frame": 1,
                "predictions": [
                    {"keypoints": flat(xyc(17)), "bbox": [10, 20, 30, 40], "score": 0.9, "category_id": 1}
                ],
            }
        ],
        BODY,
        "coco17",
        **BOX,
    ),
    "EasyMocap": Sample(
        {
            "filename": "images/0/a.png",
            "height": 100,
            "width": 200,
            "annots": [{"personID": 2, "bbox": [10, 20, 40, 60, 0.9], "keypoints": xyc(25)}],
            "isKeyframe": False,
        },
        BODY25,
        file="000000.json",
        **BOX,
    ),
    "Ultralytics to_json": Sample([ULTRALYTICS], BODY, "coco17", track=3, **BOX),
    "Ultralytics to_json, without confidences": Sample(
        [ULTRALYTICS | {"keypoints": {k: v for k, v in ULTRALYTICS["keypoints"].items() if k != "visible"}}],
        BODY,
        "coco17",
        ONES,
        track=3,
        **BOX,
    ),
    "YOLO-pose": Sample(YOLO_LINE, BODY, "coco17", file="a.txt", **BOX),
    "YOLO-pose, confidence and track": Sample(
        YOLO_LINE + " 0.9 12", BODY, "coco17", file="a.txt", track=12, **BOX
    ),
    "YOLO-pose, a track alone": Sample(YOLO_LINE + " 12", BODY, "coco17", file="a.txt", track=12, **BOX),
    "YOLO-pose, the first track": Sample(YOLO_LINE + " 1", BODY, "coco17", file="a.txt", track=1, **BOX),
    "YOLO-pose, without confidences": Sample(
        "0 .125 .4 .15 .4 " + " ".join(f"{x / 200} {y / 100}" for x, y, _ in xyc(17)),
        BODY,
        "coco17",
        ONES,
        file="a.txt",
        **BOX,
    ),
    "MediaPipe, points": Sample(landmarks(), MEDIAPIPE),
    "MediaPipe, message": Sample({"landmark": landmarks()}, MEDIAPIPE),
    "MediaPipe, tasks": Sample(
        {"pose_landmarks": [landmarks()], "pose_world_landmarks": [landmarks()]}, MEDIAPIPE
    ),
    "MediaPipe, frames": Sample([{"file_name": "a.png", "poseLandmarks": landmarks()}], MEDIAPIPE),
    "TensorFlow.js": Sample(
        [
            {
                "score": 0.9,
                "keypoints": [
                    {"x": x, "y": y, "score": c, "name": n}
                    for (x, y, c), n in zip(xyc(17), BODY, strict=True)
                ],
            }
        ],
        BODY,
        "coco17",
    ),
    "MPII": Sample(
        [
            {
                "image": "a.png",
                "center": [1, 2],
                "scale": 2.0,
                "joints_vis": [1] * 16,
                "joints": [[x + 1, y + 1] for x, y, _ in xyc(16)],
            }
        ],
        MPII,
        "coco17",
        ONES,
    ),
    "AI Challenger": Sample(
        [
            {
                "image_id": "a",
                "url": "",
                "human_annotations": {"human1": [10, 20, 40, 60]},
                "keypoint_annotations": {
                    "human1": flat((x, y, (1, 2, 3)[k % 3]) for k, (x, y, _) in enumerate(xyc(14)))
                },
            }
        ],
        AIC,
        "coco17",
        [1, 1, 0] * 5,
        **BOX,
    ),
    "AI Challenger, in COCO's form": Sample(
        coco(
            {"keypoints": flat((x, y, (1, 2, 3)[k % 3]) for k, (x, y, _) in enumerate(xyc(14)))},
            [
                "right_shoulder",
                "right_elbow",
                "right_wrist",
                "left_shoulder",
                "left_elbow",
                "left_wrist",
                "right_hip",
                "right_knee",
                "right_ankle",
                "left_hip",
                "left_knee",
                "left_ankle",
                "head_top",
                "neck",
            ],
        ),
        AIC,
        "coco17",
        [1, 1, 0] * 5,
    ),
    "CrowdPose": Sample(
        coco({"keypoints": visible(14)}, [n or ("head", "neck")[k % 2] for k, n in enumerate(CROWDPOSE)]),
        CROWDPOSE,
        "coco17",
        ONES,
    ),
    "CrowdPose results": Sample(results(14), CROWDPOSE, "coco17"),
    "PoseTrack": Sample(
        coco({"keypoints": visible(17), "track_id": 6}, ["nose", "head_bottom", "head_top", *BODY[3:]]),
        ["nose", None, None, *BODY[3:]],
        "coco17",
        ONES,
        track=6,
    ),
    "Human3.6M of MMPose": Sample(
        coco(
            {"keypoints": visible(17)},
            [
                "root",
                "right_hip",
                "right_knee",
                "right_foot",
                "left_hip",
                "left_knee",
                "left_foot",
                "spine",
                "thorax",
                "neck_base",
                "head",
                "left_shoulder",
                "left_elbow",
                "left_wrist",
                "right_shoulder",
                "right_elbow",
                "right_wrist",
            ],
        ),
        [
            "pelvis",
            "right_hip",
            "right_knee",
            "right_ankle",
            "left_hip",
            "left_knee",
            "left_ankle",
            "spine",
            "neck",
            "nose",
            "head",
            "left_shoulder",
            "left_elbow",
            "left_wrist",
            "right_shoulder",
            "right_elbow",
            "right_wrist",
        ],
        "h36m17",
        ONES,
    ),
    "two categories with the same points": Sample(
        coco({"keypoints": visible(17), "category_id": 2})
        | {
            "categories": [
                {"id": i, "name": name, "keypoints": BODY} for i, name in ((1, "child"), (2, "adult"))
            ]
        },
        BODY,
        "coco17",
        ONES,
    ),
    "animals beside people": Sample(
        coco({"keypoints": visible(17)})
        | {
            "categories": [
                {"id": 2, "name": "dog", "keypoints": ["tail"]},
                {"id": 1, "name": "person", "keypoints": BODY},
            ]
        },
        BODY,
        "coco17",
        ONES,
    ),
    "ids of any kind": Sample(
        coco({"keypoints": visible(17), "id": "p-1", "image_id": 7.0}, BODY, width=200.0),
        BODY,
        "coco17",
        ONES,
    ),
    "scores a little below 0": Sample(
        results(17, keypoints=flat((x, y, -0.002 if k == 4 else c) for k, (x, y, c) in enumerate(xyc(17)))),
        BODY,
        "coco17",
        [0 if k == 4 else c for k, (*_, c) in enumerate(xyc(17))],
    ),
    "points at (0, 0), as of Ultralytics below 0.5": Sample(
        results(
            17, keypoints=flat((0, 0, c) if k > 12 else (x, y, c) for k, (x, y, c) in enumerate(xyc(17)))
        ),
        BODY,
        "coco17",
        [0 if k > 12 else c for k, (*_, c) in enumerate(xyc(17))],
    ),
    "gaps": Sample(
        coco({"keypoints": [*visible(17)[:45], math.nan, None, 0, None, None, None]}, BODY),
        BODY,
        "coco17",
        [1.0] * 15 + [0, 0],
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "photos" / "a.png")
    return tmp_path


def write(folder, content, file="a.json", encoding="utf-8"):
    path = folder / file
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding=encoding)
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_files_are_read_as_their_tools_write_them(folder, name):
    sample = SAMPLES[name]
    found = read_people(write(folder, sample.content, sample.file), images=folder / "photos")
    assert found.layout.name == sample.layout
    assert len(found) == sample.people
    points = xyc(len(sample.names)) if sample.points is None else sample.points
    weights = [c for *_, c in points] if sample.weights is None else sample.weights
    for k, point in enumerate(found.layout.names):
        i = sample.names.index(point) if point in sample.names else None
        weight = 0 if i is None else weights[i]
        assert found.weights[0, k] == pytest.approx(weight), point
        np.testing.assert_allclose(
            found.keypoints[0, k], points[i][:2] if weight else (0, 0), rtol=1e-9, err_msg=point
        )
    entry = found.images[found.image[0]]
    assert (entry.name, entry.size) == (sample.image, SIZE)
    if sample.box is None:
        assert np.isnan(found.boxes).all()
    else:
        np.testing.assert_allclose(found.boxes[0], sample.box)
    assert (-1 if found.tracks is None else found.tracks[0]) == sample.track


def test_hands_of_whole_bodies_have_each_tools_names(folder):
    names = [*BODY, *FEET, *(f"face-{k}" for k in range(68)), *(f"forefinger{k}" for k in range(42))]
    instance = {"keypoints": pairs(xyc(133)), "keypoint_scores": [1.0] * 133}
    content = {"meta_info": {"keypoint_id2name": dict(enumerate(names))}, "instance_info": [instance]}
    found = read_people(write(folder, content), size=SIZE, layout="coco133")
    np.testing.assert_allclose(found.keypoints[0], pairs(xyc(133)))
    sapiens = {"instance_info": [{"keypoints": pairs(xyc(308)), "keypoint_scores": [1.0] * 308}]}
    found = read_people(write(folder, sapiens), size=SIZE, layout="coco133")
    points = dict(zip(found.layout.names, found.keypoints[0, :, 0] - 20, strict=True))
    at = {"right_thumb": 21, "right_thumb1": 24, "right_index": 25, "left_pinky": 58, "left_pinky1": 61}
    assert {name: points[name] for name in at} == at


def test_all_formats_and_orders_have_a_sample():
    written = [sample.content for sample in SAMPLES.values() if not isinstance(sample.content, str)]
    used = {
        next(kind.name for kind in FORMATS if kind.fits(one)) for one in written if "annotations" not in one
    }
    assert used == {kind.name for kind in FORMATS if kind.frames and not kind.boxes_only}
    assert YOLO.frames is not None
    sizes = {len(names) for names in (sample.names for sample in SAMPLES.values())} | {68, 133, 136, 137}
    assert {order.size for order in ORDERS} <= sizes | {44}


def test_files_without_people(folder):
    """Detectors that found nobody."""
    nobody = [
        [],
        {"people": []},
        [{"image_id": "a", "human_annotations": {}, "keypoint_annotations": {}}],
        {"meta_info": {}, "instance_info": []},
        {"pose_landmarks": None},
        {"pose_landmarks": []},
        {"images": coco({})["images"], "annotations": []},
    ]
    for content in nobody:
        assert len(read_people(write(folder, content), images=folder / "photos")) == 0, content


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty one"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (gzip.compress(b"[]", mtime=0), "a packed one; unpack it first"),
        (lzma.compress(b"[]"), "a packed one; unpack it first"),
        (pickle.dumps({"poses2d": 1}), "one of arrays, as npz or pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "HDF5, as of DeepLabCut or SLEAP; write"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB's arrays; write"),
        (b'<?xml version="1.0"?><annotations/>', "XML, as of CVAT; export"),
        (b"<annotations/>", "XML, as of CVAT; export"),
        (b"%YAML:1.0\n---\n", "YAML, as of OpenPose's older versions; write"),
        (b"scorer,DLC,DLC\nbodyparts,nose,nose\n", "a table; write the keypoints as COCO's JSON"),
        (b'{"image_id": 1}\n{"image_id": 2}\n', "lines of JSON; join them to one list"),
        ('[{"image_id": "\xe9"}]'.encode("latin-1"), "a damaged one, or not in UTF-8"),
    ],
)
def test_files_that_are_not_json_are_named(tmp_path, data, what):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(AnnotationError, match=f"a.json: not a JSON file, but {what}"):
        read_people(tmp_path / "a.json", size=SIZE)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_encoding_of_json(folder, encoding):
    path = write(folder, results(17), encoding=encoding)
    assert len(read_people(path, images=folder / "photos")) == 1


# --- what is refused, in one line that names the file and what is wrong

REFUSED = {
    "boxes only": ([{"image_id": "a.png", "bbox": [1, 2, 3, 4], "score": 1.0}], "boxes only"),
    "annotations with boxes only": (coco({"bbox": [1, 2, 3, 4]}), "boxes only"),
    "LabelMe": ({"shapes": [], "imagePath": "a.png"}, "LabelMe.*reads the keypoints of COCO, OpenPose"),
    "PoseTrack 2017": ({"annolist": []}, "PoseTrack 2017"),
    "world landmarks": ({"pose_world_landmarks": [landmarks()]}, "in metres"),
    "unknown": ({"frames": [1]}, "not a file of keypoints that agebody knows; it reads COCO"),
    "unknown list": ([{"x": 3}, {"z": 4}], "not a file of keypoints"),
    "shares in COCO": (
        coco({"keypoints": flat((x / 200, y / 100, 2) for x, y, _ in xyc(17))}),
        "between 0 and 1.*expected pixels",
    ),
    "shares in results": (results(17, keypoints=SHARES17), "between 0 and 1.*expected pixels"),
    "boxes in shares": (
        coco({"keypoints": visible(17), "bbox": [0.1, 0.2, 0.3, 0.4]}),
        "boxes: all coordinates lie between 0 and 1, as shares",
    ),
    "boxes in percent": (
        coco({"keypoints": flat((x + 100, y + 40, 2) for x, y, _ in xyc(17)), "bbox": [60, 70, 5, 6]}),
        "boxes: 1 of 1 are far from all keypoints of their people; expected both in pixels",
    ),
    "OpenPose's scale 4": (
        {"people": [{"pose_keypoints_2d": flat((x / 100 - 1, y / 50 - 1, c) for x, y, c in xyc(25))}]},
        "keypoint_scale 0 or 3",
    ),
    "NaN where visible": (
        results(17, keypoints=[*flat(xyc(17))[:4], math.nan, *flat(xyc(17))[5:]]),
        r"results\[0\]: keypoints: expected finite numbers x, y, v for each point, got nan for y of point 1",
    ),
    "null where visible": (
        coco({"keypoints": [None, *visible(17)[1:]]}),
        r"annotations\[0\] \(id 1\): .*got nothing for x of point 0",
    ),
    "text": (results(17, keypoints=["3", *flat(xyc(17))[1:]]), "got '3' for x of point 0"),
    "a boolean": (results(17, keypoints=[True, *flat(xyc(17))[1:]]), "got True for x of point 0"),
    "a confidence of -3": (
        results(17, keypoints=[1, 2, -3, *flat(xyc(17))[3:]]),
        "at least 0, got -3 for point 0",
    ),
    "27 points": (results(27), "expected the names of the 27 keypoints; only 14, 15, .*137, 308 need none"),
    "too few numbers": (results(17, keypoints=[1, 2, 3, 4]), "got 4 numbers"),
    "two sizes": (
        {
            **coco({"keypoints": visible(17)}),
            "images": [
                {"id": 7, "file_name": "a.png", "width": 200, "height": 100},
                {"id": 8, "file_name": "./a.png", "width": 100, "height": 100},
            ],
        },
        r"images\[1\] \(id 8\): file_name: a.png has two sizes",
    ),
    "no image of that name": (
        results(17, image_id="b.png"),
        r"results\[0\].*got 'b.png'; there are 1 images, such as a.png",
    ),
    "no image of that number": (results(17, image_id=12), r"results\[0\].*got 12; there are 1 images"),
    "no image": ([{"keypoints": flat(xyc(17)), "category_id": 1}], r"results\[0\]: image_id: missing"),
    "an image that the folder lacks": (
        coco({"keypoints": visible(17)}, file_name="b.png"),
        r"1 not found \(b.png\)",
    ),
    "MMPose, 3D": (
        [INSTANCE | {"keypoints": [[1.0, 2.0, 3.0]] * 17}],
        r"\[0\]: keypoints: .*got '\[1.0, 2.0, 3.0\]'",
    ),
    "confidences in percent": (
        results(17) + results(17, keypoints=[*flat(xyc(16)), 1.0, 2.0, 90.5]),
        r"results\[1\]: keypoints: expected confidences from 0 to 1, got 90.5; divide them all, as by 100",
    ),
    "confidences of bytes": (
        coco({"keypoints": [3.0, 4.0, 200] * 17}),
        r"\(id 1\): keypoints: expected confidences from 0 to 1, got 200; divide them all, as by 255",
    ),
    "MMPose, scores missing": ([INSTANCE | {"keypoint_scores": [1.0]}], r"\[0\]: keypoints: expected finite"),
    "MMPose, no list": ({"instance_info": 3, "meta_info": 3}, "expected an object, got 3"),
    "Ultralytics, y shorter": (
        [ULTRALYTICS | {"keypoints": {"x": [1.0], "y": []}}],
        r"\[0\]: keypoints: expected finite",
    ),
    "Ultralytics, a box without end": (
        [ULTRALYTICS | {"box": {"x1": 10**400, "y1": 2.0, "x2": 3.0, "y2": 4.0}}],
        r"\[0\]: bbox: expected x, y, width, height",
    ),
    "Ultralytics, no box": ([ULTRALYTICS | {"box": {"x1": 3}}], r"\[0\]: bbox: expected x, y, width, height"),
    "OpenPose, people": ({"people": {"a": 3}}, r"people\[0\].*no keypoints|no keypoints"),
    "OpenPose, a person": ({"people": [3]}, r"people\[0\]: expected an object, got 3"),
    "OpenPose, keys": ({"people": [{"face_keypoints_2d": [1, 2, 3]}]}, "no keypoints; agebody reads"),
    "Label Studio": (
        {"id": 1, "annotations": [], "data": {"image": "a.png"}},
        "Label Studio's tasks; agebody",
    ),
    "Label Studio, short": (
        [{"image": "a.png", "id": 1, "points": [{"x": 1.0, "y": 2.0, "keypointlabels": ["nose"]}]}],
        "Label Studio's tasks; agebody",
    ),
    "torchvision": (
        [{"boxes": [[1, 2, 3, 4]], "labels": [1], "keypoints": [xyc(17)], "keypoints_scores": [[9.0] * 17]}],
        "torchvision's detections; agebody reads",
    ),
    "MMPose 0": ([{"preds": [[[1, 2, 0.9]] * 17], "image_paths": ["a.png"]}], "MMPose 0.x's predictions"),
    "Supervisely": (
        {"size": {"height": 4, "width": 3}, "objects": [{"nodes": {"ab": {"loc": [1, 2]}}}]},
        "Supervisely's labels of an image",
    ),
    "OCHuman": (
        {"keypoint_visible": {"missing": 0}, "images": [{"annotations": []}]},
        "OCHuman's annotations",
    ),
    "Kinetics": (
        {
            "data": [{"frame_index": 1, "skeleton": [{"pose": [0.1] * 36, "score": [0.5] * 18}]}],
            "label_index": 3,
        },
        "a skeleton sequence of Kinetics",
    ),
    "FiftyOne": ({"samples": [{"filepath": "a.png"}]}, "FiftyOne's samples; agebody reads"),
    "DWPose, candidates": ({"bodies": {"candidate": [], "subset": []}}, "DWPose's candidates; agebody reads"),
    "DWPose, lists": (
        {"bodies": [[0.1, 0.2]] * 18, "body_scores": [[0.9] * 18], "hands": []},
        "DWPose's candidates; agebody reads",
    ),
    "EFT": ({"ver": 1.0, "data": []}, "fits of EFT; agebody reads"),
    "world landmarks of the older form": ({"poseWorldLandmarks": landmarks()}, "in metres"),
    "ViTPose, labels": (
        [[VITPOSE | {"labels": [*range(16), 40]}]],
        r"\[0\]\[0\]: keypoints: .*got '\[0, 1, 2",
    ),
    "ViTPose, no list": ([[{"scores": 3, "keypoints": 4}, 5]], r"\[0\]\[1\]: expected an object, got 5"),
    "easy_ViTPose, no people": ({"skeleton": 3, "keypoints": [7]}, r"keypoints\[0\]"),
    "YOLO, commas": (
        YOLO_LINE.replace(" ", ","),
        "line 1: expected a class, a box and points, between spaces",
    ),
    "OpenPose, 135": ({"people": [{"pose_keypoints_2d": flat(xyc(135))}]}, "135 keypoints"),
    "MediaPipe, 12 points": (landmarks()[:12], "names of the 12 keypoints"),
    "MediaPipe, no numbers": ([{"x": "a", "y": 1}] * 33, r"pose\[0\]: keypoints: .*got 'a' for x of point 0"),
    "AI Challenger, no object": (
        [{"image_id": "a", "keypoint_annotations": [1]}],
        r"\[0\].keypoint_annotations: expected an object",
    ),
    "AI Challenger, 17 points": (
        [{"image_id": "a", "keypoint_annotations": {"h": flat(xyc(17))}}],
        "14 points of AI Challenger, got 17",
    ),
    "MPII, joints": ([{"image": "a.png", "joints": 3}], r"\[0\].joints: keypoints: .*got 3"),
    "YOLO, box first": (
        " ".join(YOLO_LINE.split()[1:]),
        "line 1: expected the whole number of a class first, got",
    ),
    "YOLO, 17 points with a score and a track, or 18": (
        "0 .5 .5 1 1 " + " ".join(f"{x / 200} {y / 100}" for x, y, _ in xyc(17)) + " .9 1",
        "lines of 41 numbers may have 17 points of 2 numbers, a score, a track or 18 points of 2 numbers",
    ),
    "YOLO, words": ("0 .1 .2 .3 .4 nose", r"line 1: keypoints: .*"),
    "YOLO, boxes": ("0 .1 .2 .3 .4", "boxes only"),
    "YOLO, pixels": ("0 9 9 9 9 " + " ".join(map(str, flat(xyc(17)))), "expected shares of the image, got"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_input_is_named_in_one_line(folder, name):
    content, message = REFUSED[name]
    path = write(folder, content, "a.txt" if isinstance(content, str) else "a.json")
    with pytest.raises(AnnotationError, match=message) as error:
        read_people(path, images=folder / "photos")
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


def test_people_without_an_image_are_not_of_one(tmp_path):
    """COCO's results that have lost their images look as OpenPifPaf's people of one image."""
    people = [{"keypoints": flat(xyc(17)), "bbox": [10, 20, 30, 40], "score": 0.9, "category_id": 1}]
    write(tmp_path, people, "results.json")
    with pytest.raises(AnnotationError, match=r"image_id: missing; OpenPifPaf's .* NAME.predictions.json"):
        read_people(tmp_path / "results.json", size=(200, 100))
    write(tmp_path, people, "a.png.predictions.json")
    assert len(read_people(tmp_path / "a.png.predictions.json", size=(200, 100))) == 1


FIELDS = [
    "id",
    "image_id",
    "category_id",
    "keypoints",
    "bbox",
    "iscrowd",
    "num_keypoints",
    "area",
    "track_id",
    "score",
]
VALUES = st.sampled_from(
    [
        None,
        0,
        -1,
        3,
        7,
        10**30,
        10**400,
        -(10**400),
        2.5,
        7.0,
        math.nan,
        math.inf,
        True,
        "",
        "7",
        "a\ud800",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
        "x" * 500,
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_value_of_any_field_is_read_or_refused(tmp_path_factory, data):
    """And what pycocotools reads as the same people is read as they are there."""
    document = coco(
        {"keypoints": visible(17), "bbox": [10, 20, 30, 40], "iscrowd": 0, "num_keypoints": 17}, BODY
    )
    listed = data.draw(st.booleans())
    rows: list[Any] = [dict(results(17)[0]), dict(results(17)[0])] if listed else document["annotations"]
    target = data.draw(
        st.sampled_from([rows, *([] if listed else [document["images"], document["categories"]])])
    )
    for _ in range(data.draw(st.integers(1, 2))):
        row = target[data.draw(st.integers(0, len(target) - 1))]
        field = data.draw(st.sampled_from([*FIELDS, "file_name", "width", "height", "name"]))
        if data.draw(st.integers(0, 4)):
            row[field] = data.draw(VALUES)
        else:
            row.pop(field, None)
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", SIZE).save(folder / "a.png")
    path = write(folder, rows if listed else document)
    try:
        found = read_people(path, images=folder)
    except AnnotationError as error:
        assert str(error).startswith(str(folder))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert len(found) <= len(rows)
    assert len(found) + sum(dict(found.left_out).values()) == len(rows)
    for person in range(len(found)):
        np.testing.assert_array_equal(found.keypoints[person], np.array(pairs(xyc(17))))


def places(value, path=()):
    """Return the paths of all values in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, one in inside for below in places(one, (*path, key)))]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_of_any_format_is_read_or_refused(tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    sample = SAMPLES[name]
    content = copy.deepcopy(sample.content)
    if isinstance(content, str):
        words = content.split(" ")
        i = data.draw(st.integers(0, len(words) - 1))
        words[i : i + 1] = data.draw(
            st.sampled_from([[], ["nan"], ["x"], ["1e400"], ["-3"], ["0", "\n"], ["\u00e9"]])
        )
        content = " ".join(words)
    else:
        found = places(content)
        shallow = [path for path in found if len(path) < 4 and path] or found[1:]
        *above, key = data.draw(st.sampled_from(data.draw(st.sampled_from([shallow, found[1:]]))))
        parent: Any = content
        for step in above:
            parent = parent[step]
        if data.draw(st.booleans()):
            parent[key] = data.draw(VALUES)
        else:
            del parent[key]
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", SIZE).save(folder / "a.png")
    try:
        read_people(write(folder, content, sample.file), images=folder)
    except AnnotationError as error:
        assert str(error).startswith(str(folder))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 700  # noqa: PT017


def test_pycocotools_reads_the_same_people(folder, capsys):
    """Strings and floats as ids, a byte order mark, people without keypoints, several categories."""
    document = coco({"keypoints": visible(17), "id": 3.0, "image_id": "img"}, BODY, id="img")
    document["annotations"] += [
        {"id": "b", "image_id": "img", "category_id": 1, "keypoints": [], "num_keypoints": 0},
        {"id": 9, "image_id": "img", "category_id": 2, "keypoints": visible(17)},
    ]
    document["categories"].append({"id": 2, "name": "dog", "keypoints": ["tail"]})
    theirs = COCO(str(write(folder, document)))
    capsys.readouterr()
    listed = [one for one in theirs.loadAnns(theirs.getAnnIds(catIds=[1])) if one["keypoints"]]
    found = read_people(write(folder, document, encoding="utf-8-sig"), images=folder / "photos")
    assert len(found) == len(listed) == 1
    assert dict(found.left_out) == {"no labelled keypoint": 1, "of another category": 1}


# --- images


def photographs(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(folder / name)


@pytest.mark.parametrize(
    ("key", "there", "expected"),
    [
        (192, ["COCO_val2014_000000000192.jpg", "000000000193.jpg"], "COCO_val2014_000000000192.jpg"),
        (192, ["000000000192.jpg"], "000000000192.jpg"),
        (192.0, ["img-192.png"], "img-192.png"),
        ("192", ["000192.jpg"], "000192.jpg"),
        ("COCO_val2014_000000000192", ["COCO_val2014_000000000192.jpg"], "COCO_val2014_000000000192.jpg"),
        ("train/a.jpg", ["a.jpg"], "a.jpg"),
        ("a.jpg", ["day/a.jpg"], "day/a.jpg"),
        ("day/a.jpg", ["day/a.jpg", "night/a.jpg"], "day/a.jpg"),
        ("set/day/a.jpg", ["day/a.jpg", "night/a.jpg"], "day/a.jpg"),
        ("day\\a.jpg", ["day/a.jpg", "night/a.jpg"], "day/a.jpg"),
        ("/home/me/day/a.jpg", ["day/a.jpg", "night/a.jpg"], "day/a.jpg"),
        ("A.JPG", ["day/a.jpg"], "day/a.jpg"),
        ("A.jpg", ["a.jpg", "A.jpg"], "A.jpg"),
        ("b\u00e9.jpg", ["be\u0301.jpg"], "be\u0301.jpg"),  # as macOS writes it
        ("set/a.jpg", ["a.jpg", "masks/a.jpg.png"], "a.jpg"),
        ("set/a", ["a.jpg", "labels/overlays/a.jpg.png", "labels/overlays/a.png"], "a.jpg"),
        ("A.JPG", ["a.jpg", "A.jpg"], None),
        (192, ["1/000192.jpg", "2/000192.jpg"], None),
        (192, ["192.jpg", "img_192.png"], None),
        ("a.jpg", ["day/a.jpg", "night/a.jpg"], None),
        ("a", ["a.jpg", "a.png"], None),
    ],
)
def test_images_are_found_where_one_alone_fits(tmp_path, key, there, expected):
    images = tmp_path / "images"
    photographs(images, *there)
    if any("overlays" in name for name in there):
        (images / "labels/labels.npz").touch()
    files = [write(tmp_path, results(17, image_id=key))]
    if isinstance(key, str) and "." in key:
        files.append(write(tmp_path, coco({"keypoints": visible(17)}, file_name=key), "coco.json"))
    for path in files:
        if expected is None:
            with pytest.raises(AnnotationError, match=r"fits several images: .*, ") as error:
                read_people(path, images=images)
            assert all(name in str(error.value) for name in there)
        else:
            found = read_people(path, images=images)
            assert found.images[found.image[0]].name == expected


def test_results_find_their_images_in_the_annotations_that_they_belong_to(tmp_path):
    """As pycocotools takes them: an image_id is an id there, whatever the file is called."""
    document = coco({"keypoints": visible(17)}, BODY)
    path = write(tmp_path, results(17, image_id=7), "results.json")
    target = write(tmp_path, document, "target.json")
    found = read_people(path, annotations=target)
    assert (found.images[0].name, found.images[0].size) == ("a.png", SIZE)
    photographs(tmp_path / "images", "day/a.png")
    again = read_people(path, annotations=target, images=tmp_path / "images")
    assert again.images[0].name == "day/a.png"
    document["categories"] = [{"id": 1, "name": "dog"}, {"id": 5, "name": "person", "keypoints": BODY}]
    rows = [results(17, image_id=7, category_id=kind)[0] for kind in (1, 5)]
    found = read_people(write(tmp_path, rows, "both.json"), annotations=write(tmp_path, document, "two.json"))
    assert (found.ids.tolist(), dict(found.left_out)) == ([2], {"of another category": 1})
    write(tmp_path, results(17, image_id=8), "results.json")
    with pytest.raises(AnnotationError, match=r"results\[0\].*got 8; there are 1 images in .*target.json"):
        read_people(path, annotations=target)
    with pytest.raises(AnnotationError, match="expected COCO annotations"):
        read_people(path, annotations=path)
    with pytest.raises(AnnotationError, match="expected results"):
        read_people(target, annotations=target)


def test_results_in_lists_by_batch_are_results(tmp_path):
    several = [row for name in ("a.png", "b.png", "c.png") for row in results(17, image_id=name)]
    whole = read_people(write(tmp_path, several, "whole.json"), size=SIZE)
    parts = read_people(write(tmp_path, [several[:1], [], several[1:]], "parts.json"), size=SIZE)
    assert parts.images == whole.images
    assert len(parts.images) == 3
    np.testing.assert_array_equal(parts.keypoints, whole.keypoints)
    several[2]["keypoints"][0] = "x"
    with pytest.raises(AnnotationError, match=r"results\[2\].*got 'x'"):
        read_people(write(tmp_path, [several[:1], several[1:]], "parts.json"), size=SIZE)


def test_one_file_beside_or_with_one_image(tmp_path):
    pose = {"people": [{"pose_keypoints_2d": flat(xyc(25))}]}
    photographs(tmp_path, "child.png")
    path = write(tmp_path, pose, "child_keypoints.json")
    beside = read_people(path)
    assert (beside.images[0].name, beside.images[0].size) == ("child.png", SIZE)
    other = write(tmp_path, pose, "pose.json")
    named = read_people(other, images=tmp_path / "child.png")
    assert named.images[0].name == "child.png"
    with pytest.raises(AnnotationError, match="does not state its size; give the images, or a size"):
        read_people(other)


def test_files_that_state_a_size_need_no_images(tmp_path):
    found = read_people(write(tmp_path, SAMPLES["EasyMocap"].content, "000000.json"))
    assert found.images == (ImageEntry("images/0/a.png", "images/0/a.png", SIZE),)


def test_a_missing_file_is_named_rather_than_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="poses.json"):
        read_people(tmp_path / "none" / "poses.json")


def test_folders_of_one_file_per_image(tmp_path):
    photographs(tmp_path / "images", "a.png", "b.png")
    files = {"mmpose": ([INSTANCE], []), "ultralytics": ([ULTRALYTICS], []), "yolo": (YOLO_LINE, "")}
    for kind, contents in files.items():
        (tmp_path / kind).mkdir()
        for stem, content in zip("ab", contents, strict=True):
            write(tmp_path / kind, content, stem + (".txt" if kind == "yolo" else ".json"))
        found = read_people(tmp_path / kind, images=tmp_path / "images")
        assert [image.name for image in found.images] == ["a.png", "b.png"], kind
        assert found.image.tolist() == [0], kind
    for name in ("mmpose/._b.json", "images/._a.png"):  # macOS puts its attributes there, on some disks
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert len(read_people(tmp_path / "mmpose", images=tmp_path / "images").images) == 2
    assert Photographs(tmp_path / "images").matches("._a.png") == []
    write(tmp_path / "mmpose", [ULTRALYTICS], "b.json")
    with pytest.raises(
        AnnotationError, match="b.json: Ultralytics; the other files of the folder are of MMPose"
    ):
        read_people(tmp_path / "mmpose", images=tmp_path / "images")


def test_frames_of_a_video_are_the_images_in_their_order(tmp_path):
    photographs(tmp_path / "frames", "f_0001.png", "f_0002.png")
    frames = [{"frame_id": i, "instances": [INSTANCE] * i} for i in range(2)]
    path = write(tmp_path, {"meta_info": {}, "instance_info": frames}, "clip.json")
    found = read_people(path, images=tmp_path / "frames")
    assert [found.images[i].name for i in found.image] == ["f_0002.png"]
    assert [image.name for image in read_people(path, size=SIZE).images] == ["clip_000000", "clip_000001"]
    photographs(tmp_path / "frames", "f_0003.png")
    with pytest.raises(AnnotationError, match="one image for each of its 2 frames, got 3 images"):
        read_people(path, images=tmp_path / "frames")


def test_of_several_classes_of_ultralytics_persons_are_read(folder):
    """Whose names may also be those of ages, all of which are people."""
    for others, left_out in ((("person",), {}), (("dog", "person"), {"of another category": 1})):
        far = [ULTRALYTICS | {"name": name, "class": i} for i, name in enumerate(others)]
        found = read_people(write(folder, far), images=folder / "photos" / "a.png")
        assert (len(found), dict(found.left_out)) == (1, left_out)
    kinds = [ULTRALYTICS | {"name": "adult"}, copy.deepcopy(ULTRALYTICS) | {"name": "child"}]
    kinds[1]["keypoints"]["x"] = [x + 60 for x in kinds[1]["keypoints"]["x"]]
    kinds[1]["box"] = {"x1": 70.0, "y1": 20.0, "x2": 100.0, "y2": 60.0}
    assert len(read_people(write(folder, kinds), images=folder / "photos" / "a.png")) == 2


# --- people


def test_of_two_detections_of_one_person_the_better_is_kept(folder):
    near = [(x + 0.1, y, c) for x, y, c in xyc(17)]
    far = [(x + 60, y, c) for x, y, c in xyc(17)]
    rows = [
        results(17, score="0.5")[0],  # as tables have them
        results(17, score="0.8", keypoints=flat(near))[0],
        results(17, score=0.2, keypoints=flat(far))[0],
    ]
    found = read_people(write(folder, rows), images=folder / "photos")
    assert found.ids.tolist() == [2, 3]
    assert dict(found.left_out) == {"the same person again": 1}
    annotated = coco({"keypoints": visible(17)})
    annotated["annotations"].append(annotated["annotations"][0] | {"id": 2})
    assert len(read_people(write(folder, annotated))) == 2  # what somebody annotated stays


def test_tracks_are_in_shards(folder):
    pytest.importorskip("pyarrow")
    rows = [*results(17, track_id=8), *results(17, keypoints=flat((x + 60, y, c) for x, y, c in xyc(17)))]
    found = read_people(write(folder, rows), images=folder / "photos")
    assert found.tracks.tolist() == [8, -1]
    assert found.select(np.array([1])).tracks.tolist() == [-1]
    (shard,) = write_shards(found, folder)
    assert read_shard(shard).tracks.tolist() == [8, -1]


@pytest.mark.parametrize(
    ("stated", "years", "kind"),
    [
        ({"age": "2"}, 2.0, -1),
        ({"age": "0.5"}, 0.5, -1),
        ({"years": "30"}, 30.0, -1),
        ({"age": 3}, 3.0, -1),
        ({"age": "Kid"}, math.nan, 2),
        ({"age": ""}, math.nan, -1),
        (
            {"age": "3 months"},
            "age: expected years from 0 to below 130, adult, teen, kid, baby, got '3 m",
            None,
        ),
        ({"age": "1e1"}, "age: expected years", None),
        ({"age": "130"}, "age: expected years", None),
        ({"years": "130"}, "years: expected a number from 0 to below 130", None),
    ],
)
def test_ages_may_be_numbers_in_strings(folder, stated, years, kind):
    path = write(folder, coco({"keypoints": visible(17)} | stated, BODY))
    if kind is None:
        with pytest.raises(AnnotationError, match=years):
            read_people(path)
    else:
        ages = read_people(path).ages
        np.testing.assert_equal((ages.years[0], ages.age_class[0]), (years, kind))


@pytest.mark.parametrize("size", [(640, 0), (-1, 5), (640, 10**9)])
def test_invalid_sizes_are_refused(folder, size):
    path = write(folder, {"people": []})
    with pytest.raises(ValueError, match="^size: expected width and height, two positive integers, got"):
        read_people(path, size=size)


def test_hands_and_faces_are_read_where_a_layout_has_them(folder):
    """COCO-WholeBody's fields, its 133 points in one, OpenPose's arrays, and Halpe's order."""
    whole, layouts = flat(xyc(133)), ("coco133", "openpose137")
    fields = {
        "foot_kpts": (17, 23),
        "face_kpts": (23, 91),
        "lefthand_kpts": (91, 112),
        "righthand_kpts": (112, 133),
    }
    parts = {key: whole[3 * start : 3 * end] for key, (start, end) in fields.items()}
    one = read_people(write(folder, results(133)), images=folder / "photos", layout="coco133")
    assert (one.layout.name, one.notes) == ("coco133", ())
    for options in (parts, {k: v for k, v in parts.items() if k != "righthand_kpts"}):
        entry = {"keypoints": whole[:51], **options}
        found = read_people(write(folder, coco(entry, BODY)), images=folder / "photos", layout=layouts)
        assert (found.layout.name, found.notes) == ("coco133", ())
        rows = slice(0, 133 if "righthand_kpts" in options else 112)
        np.testing.assert_allclose(found.keypoints[0, rows], np.array(whole).reshape(-1, 3)[rows, :2])
        assert (found.weights[0, rows] > 0).all()
        assert not found.weights[0, rows.stop :].any()
    body, left, face = (flat(xyc(n)) for n in (25, 21, 70))
    person = {"pose_keypoints_2d": body, "hand_left_keypoints_2d": left, "hand_right_keypoints_2d": []}
    file = write(folder, {"people": [person | {"face_keypoints_2d": face}]}, "a_keypoints.json")
    found = read_people(file, images=folder / "photos", layout=layouts)
    assert (found.layout.name, found.notes) == ("openpose137", ())
    names = found.layout.names
    np.testing.assert_allclose(found.keypoints[0, names.index("left_thumb")], left[12:14])
    np.testing.assert_allclose(found.keypoints[0, names.index("left_pupil")], face[207:209])
    assert not found.weights[0, 46:67].any()
    halpe = read_people(write(folder, results(136)), images=folder / "photos", layout="coco133")
    np.testing.assert_allclose(halpe.keypoints[0, 23:], [p[:2] for p in xyc(136)[26:]])
    bad = coco({"keypoints": whole[:51], "face_kpts": whole[:51]}, BODY)
    with pytest.raises(AnnotationError, match="face_kpts: expected 204 numbers, got 51"):
        read_people(write(folder, bad), images=folder / "photos")


def test_names_without_a_layout_are_said(folder):
    found = read_people(write(folder, results(133)), images=folder / "photos")
    assert found.notes == ("not points of openpose25, left out: 110 points of the face and the hands",)
    assert (
        "25 keypoints without names are taken for those of BODY_25"
        in read_people(write(folder, results(25)), images=folder / "photos").notes[0]
    )
    assert (
        LAYOUTS["coco17"]
        is read_people(write(folder, results(26)), images=folder / "photos", layout="coco17").layout
    )


def yolo(count: int, dims: int, *more: str, box: str = ".125 .4 .15 .4") -> str:
    shares = [str(v) for x, y, c in xyc(count) for v in (x / 200, y / 100, c)[:dims]]
    return " ".join(("0", box, *shares, *more))


WHOLE = "0.5 0.5 1 1"


@pytest.mark.parametrize(
    ("line", "layout", "size", "score"),
    [
        (yolo(17, 3, "0.9"), None, 17, 0.9),  # as many numbers as of 26 points, or of 25, a score and a track
        (yolo(17, 3, box=WHOLE), None, 17, math.nan),  # or of 25 points and a score
        (yolo(25, 2, "0.9", box=".16 .42 .2 .4"), None, 25, 0.9),
        (yolo(26, 2, box=".16 .42 .2 .4"), None, 26, math.nan),
        (yolo(17, 2, "0.9", "12"), None, 17, 0.9),  # or of 18 points, which are not at 12 widths of the image
        (yolo(17, 2, "0.9", "1", box=WHOLE), "coco17", 17, 0.9),
        (yolo(18, 2, box=WHOLE), None, 18, math.nan),
    ],
)
def test_lines_of_numbers_are_read_in_the_one_way_that_fits(folder, line, layout, size, score):
    found = read_people(write(folder, line, "a.txt"), images=folder / "photos", layout=layout)
    names = {17: BODY, 18: COCO18, 25: BODY25, 26: HALPE}[size]
    nose = found.layout.names.index("nose")
    last = max(k for k, name in enumerate(names) if name in found.layout.names)
    for k, name in ((0, "nose"), (last, names[last])):
        np.testing.assert_allclose(found.keypoints[0, found.layout.names.index(name)], xyc(size)[k][:2])
    assert found.weights[0, nose] > 0
    np.testing.assert_equal(math.nan if found.scores is None else found.scores[0], score)


def test_percent_is_noted_and_empty_boxes_are_unknown(folder):
    Image.new("RGB", (600, 400)).save(folder / "photos/a.png")
    found = read_people(write(folder, results(17, bbox=[0, 0, 0, 0])), images=folder / "photos")
    assert np.isnan(found.boxes).all()
    (note,) = found.notes
    assert note.endswith("between 0 and 100, in images of 400 pixels or more: are they percent?")
    boxes = ([9, 9, 90, 90], [0, 0, 0, 0], [700, 9, 90, 90], [-90, 9, 90, 90])
    rows = [{"image_id": "a.png", "category_id": 1, "bbox": box, "score": 1} for box in boxes]
    alone = read_people(write(folder, rows), images=folder / "photos", boxes_suffice=True)
    assert alone.boxes.tolist() == [[9, 9, 99, 99]]
    assert dict(alone.left_out) == {"a box outside of the image": 2, "no labelled keypoint": 1}


def test_reading_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sample in SAMPLES.values():
            read_people(write(folder, sample.content, sample.file), images=folder / "photos")
