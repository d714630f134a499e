"""Orders of keypoints: which point is which in files that do not say so, by the data set or detector."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from agebody.assets.landmarks import COCO17
from agebody.keypoints import LAYOUTS


class Order(NamedTuple):
    """The points of a data set or detector, in the order in which its files have them."""

    title: str
    said: tuple[str, ...]
    """Their names there."""
    names: tuple[str, ...]
    """The same points in layouts of this library; empty where these have no such point."""

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.said)

    @classmethod
    def parse(cls, title: str, text: str) -> Order:
        """Read names; ``said=name`` is a point that layouts call by another name, or do not have."""
        pairs = [word.partition("=") for word in text.split()]
        said = tuple(pair[0] for pair in pairs)
        names = tuple(name if equal else before for before, equal, name in pairs)
        return cls(title, said, names)


def _join(*parts: Sequence[str]) -> str:
    return " ".join(" ".join(part) for part in parts)


FEET6 = LAYOUTS["openpose25"].names[19:]
_WHOLE = LAYOUTS["coco133"].names
_FACE68, _HANDS42 = _WHOLE[23:91], _WHOLE[91:]
FACE_AND_HANDS = frozenset((*_FACE68, *_HANDS42, "left_pupil", "right_pupil"))
"""Points that bodies without fingers and faces do not have."""
_BODY = 15
"""How many points, the first, tell orders of whole bodies apart."""
WHOLE_BODY = ("coco17", "openpose25", "coco133", "openpose137")
"""Layouts of detectors for bodies with hands; the first that has most of a file's points is taken."""
PARTS = {
    "foot_kpts": 6,
    "face_kpts": 68,
    "lefthand_kpts": 21,
    "righthand_kpts": 21,
    "hand_left_keypoints_2d": 21,
    "hand_right_keypoints_2d": 21,
    "face_keypoints_2d": 70,
}
"""Keys of parts of a body beside its keypoints, in the order of the points: COCO-WholeBody's, OpenPose's."""
_HALPE26 = """
head= neck hip=mid_hip
left_big_toe right_big_toe left_small_toe right_small_toe left_heel right_heel
"""
_FINGERS = [f"{finger}{k}" for finger in ("thumb", "index", "middle", "ring", "pinky") for k in ("", 3, 2, 1)]
_HANDS_GOLIATH = " ".join(f"{side}_{name}" for side in ("right", "left") for name in (*_FINGERS, "wrist"))
_LIMBS = "right_hip right_knee right_ankle left_hip left_knee left_ankle"
_ARMS = "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist"

ORDERS = (
    Order.parse("COCO", _join(COCO17)),
    Order.parse("COCO with feet", _join(COCO17, FEET6)),
    Order.parse("COCO-WholeBody", _join(_WHOLE)),
    Order.parse("Halpe-26", _join(COCO17) + _HALPE26),
    Order.parse("Halpe without the face", f"{_join(COCO17)}{_HALPE26}{_join(_HANDS42)}"),
    Order.parse("Halpe-136", f"{_join(COCO17)}{_HALPE26}{_join(_FACE68, _HANDS42)}"),
    Order.parse("BODY_25 of OpenPose", _join(LAYOUTS["openpose25"].names)),
    Order.parse("BODY_25 of OpenPose with hands and face", _join(LAYOUTS["openpose137"].names)),
    Order.parse("COCO of OpenPose", f"nose neck {_ARMS} {_LIMBS} right_eye left_eye right_ear left_ear"),
    # Annotated necks lie above the middle of the shoulders.
    Order.parse("MPI of OpenPose", f"head= neck= {_ARMS} {_LIMBS} chest="),
    Order.parse(
        "CrowdPose",
        "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
        "left_hip right_hip left_knee right_knee left_ankle right_ankle head= neck=",
    ),
    Order.parse("AI Challenger", f"{_ARMS} {_LIMBS} head= neck="),
    Order.parse(
        "MPII",
        "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis= thorax= upper_neck= "
        "head_top= right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    ),
    Order.parse(
        "MediaPipe",
        "nose left_eye_inner= left_eye left_eye_outer= right_eye_inner= right_eye right_eye_outer= left_ear "
        "right_ear mouth_left= mouth_right= left_shoulder right_shoulder left_elbow right_elbow left_wrist "
        "right_wrist left_pinky= right_pinky= left_index= right_index= left_thumb= right_thumb= left_hip "
        "right_hip left_knee right_knee left_ankle right_ankle left_heel right_heel left_foot_index= "
        "right_foot_index=",
    ),
    Order.parse(
        "Human3.6M of MMPose",
        "root=pelvis right_hip right_knee right_foot=right_ankle left_hip left_knee left_foot=left_ankle "
        "spine thorax=neck neck_base=nose head left_shoulder left_elbow left_wrist "
        "right_shoulder right_elbow right_wrist",
    ),
    Order.parse("HMR2", _join(LAYOUTS["hmr2_44"].names)),
    Order.parse(
        "COCO-25 of easy_ViTPose",
        f"{_join(COCO17[:5])} neck {_join(COCO17[5:13])} hip=mid_hip {_join(COCO17[13:], FEET6)}",
    ),
    Order.parse(  # of the files of its model, `goliath`: the tips of fingers first, the face's own 238 last
        "Goliath of Sapiens",
        f"{_join(COCO17[:9], COCO17[11:], FEET6)} {_HANDS_GOLIATH} left_olecranon= right_olecranon= "
        "left_cubital_fossa= right_cubital_fossa= left_acromion= right_acromion= neck= "
        + " ".join(f"face{k}=" for k in range(238)),
    ),
)
"""The known orders. Of several with as many points, files without names have the first."""


def order_by_size(size: int) -> Order | None:
    """Return the order of files without names that have ``size`` points."""
    return next((order for order in ORDERS if order.size == size), None)


def sizes_without_names() -> str:
    """Return the numbers of points that files need not name, as messages list them."""
    return ", ".join(map(str, sorted({order.size for order in ORDERS})))


def order_by_title(title: str) -> Order:
    """Return a known order."""
    return next(order for order in ORDERS if order.title == title)


def read_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that layouts have for the named points of a file; empty where they have no such point.

    Names are compared without case and separators: "RShoulder", "right shoulder" and "shoulder_r" are equal.
    """
    plain = tuple(map(plain_name, names))
    for order in ORDERS:
        meanings = {_head(said): name for said, name in zip(order.said, order.names, strict=True)}
        if len(plain) == order.size and set(map(_head, plain)) == set(meanings):
            return tuple(meanings[_head(name)] for name in plain)
        if len(plain) == order.size > len(FACE_AND_HANDS) and plain[:_BODY] == order.said[:_BODY]:
            return order.names  # points of faces and hands have other names in each tool
    return plain


def _head(name: str) -> str:
    return "head" if name in ("head_top", "top_head") else name


def plain_name(name: str) -> str:
    """Return this library's spelling of the name of a keypoint."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    sides = {"l": "left", "r": "right"}
    words = [sides.get(word, word) for word in words]
    words.sort(key=lambda word: word not in ("left", "right"))  # stable: the side comes first
    plain = "_".join(words)
    return "mid_hip" if plain == "midhip" else plain
