"""The free realistic body: Anny (Brégier et al., arXiv:2511.03589) in SMPL-A's form, built once."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from jaxtyping import Float, Int
from scipy import optimize, sparse, stats
from scipy.spatial import KDTree

from agebody.assets.asset import (
    SMPL_JOINT_NAMES,
    SMPL_PARENTS,
    AssetError,
    BodyAsset,
    Metadata,
    Regressor,
    sparse_weights,
)
from agebody.assets.io import load_asset, save_asset
from agebody.assets.landmarks import REGRESSOR_NAMES

Progress = Callable[[str, float], None]

BUILD_VERSION = 2
"""Part of the cached file's name: raise it when a change below changes the body."""

_BUILDING = threading.Lock()  # Anny's cache folder is one setting for the whole process

_BONES = (
    "Hips", "LeftUpLeg", "RightUpLeg", "Spine", "LeftLeg", "RightLeg", "Spine1", "LeftFoot", "RightFoot",
    "Spine2", "LeftToeBase", "RightToeBase", "Neck", "LeftShoulder", "RightShoulder", "Head", "LeftArm",
    "RightArm", "LeftForeArm", "RightForeArm", "LeftHand", "RightHand",
)  # fmt: skip
"""The mixamo bone whose head is each of SMPL's joints up to the wrists."""

_KNUCKLES = ("Index1", "Middle1", "Ring1", "Pinky1")
"""The bones whose heads surround SMPL's hand joint; the hand moves them and all other finger bones."""

_MIRROR = np.array([
    SMPL_JOINT_NAMES.index(name.replace("left", "?").replace("right", "left").replace("?", "right"))
    for name in SMPL_JOINT_NAMES
])  # fmt: skip

_HEAD_DEPTH, _HEAD_WIDTH, _HEAD_HEIGHT = (f"head-scale-{axis}-incr" for axis in ("depth", "horiz", "vert"))
_THIGH, _SHANK = (f"measure-{part}-height-incr" for part in ("upperleg", "lowerleg"))
_LOCAL_CHANGES = (_HEAD_DEPTH, _HEAD_WIDTH, _HEAD_HEIGHT, _THIGH, _SHANK)


class _Age(NamedTuple):
    """Anny's parameters for one age."""

    age: float
    height: float
    weight: float
    head_height: float
    head_width: float
    legs: float
    cupsize: float

    def phenotype(self) -> dict[str, float]:
        return {"age": self.age, "height": self.height, "weight": self.weight, "cupsize": self.cupsize}

    def local_changes(self) -> dict[str, float]:
        return {
            _HEAD_DEPTH: self.head_width, _HEAD_WIDTH: self.head_width, _HEAD_HEIGHT: self.head_height,
            _THIGH: self.legs, _SHANK: self.legs,
        }  # fmt: skip


# Least squares on the mean girl's and boy's stature (WHO), heads in stature, sitting height, head
# circumference and weight of the age, with Anny's own age as a weak prior. Anny's newborn anchor is not
# used: it is the baby pressed to three quarters of its height, with the head of a year-old child.
_AGES = {
    19: _Age(0.667, 0.3294, 0.640, -0.059, 0.156, 0.226, 0.5),
    12: _Age(0.447, 0.3603, 0.576, 0.099, 0.248, 0.390, 0.25),
    8: _Age(0.319, 0.3083, 0.533, 0.156, 0.438, 0.287, 0.0),
    4: _Age(0.209, 0.3001, 0.630, 0.434, 0.731, 0.171, 0.0),
    1: _Age(0.116, 0.3351, 0.621, 0.216, 0.591, -0.634, 0.0),
    0: _Age(0.014, 0.1284, 0.544, 0.028, -0.068, -0.217, 0.0),
}
"""Years -> parameters, from the adult (the template) to the newborn (age offset 1)."""

_NUM_BETAS = 10
_LOG2_SAMPLES = 8
_BATCH = 32

_CHIN = 5296  # vertex ids of MakeHuman's base mesh, which Anny keeps


def anny_body(
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> BodyAsset:
    """The free Anny body in SMPL-A's form: 13718 vertices, SMPL's 24 joints, 10 shapes, newborn to adult.

    Built from the `anny` package (``pip install "agebody[free]"``) the first time, in about a minute, then
    read from a cache. The rest pose is SMPL's T-pose, into which every rest mesh was brought by Anny's own
    skinning; the pelvis is the origin at every age and shape. Fingers move as one with SMPL's hand joints.
    There are no pose blend shapes. Left and right mirror each other exactly.

    The template is an adult of Anny's middle gender with the mean stature of WHO's women and men of 19; the
    age templates are 12, 8, 4 and 1 years and the newborn (offset 1), fitted to WHO's statures and to
    published proportions, at offsets linear in stature. The shape directions are the principal components
    of adults of both sexes under Anny's phenotypes, one unit being one standard deviation.

    Args:
        cache_dir: folder of the cached file; the environment variable ``AGEBODY_CACHE`` where None, or else
            the user's cache folder.
        rebuild: build it even where it is cached.
        progress: called with the name of the stage that begins and the fraction done, in [0, 1].

    Raises:
        ImportError: the package `anny` is missing.
        OSError: the cache folder cannot be written.
    """
    report = progress or (lambda stage, fraction: None)
    try:
        version = importlib.metadata.version("anny")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing_anny() from error
    folder = Path(cache_dir or os.environ.get("AGEBODY_CACHE") or platformdirs.user_cache_dir("agebody"))
    path = folder / f"anny-{version}-build{BUILD_VERSION}.safetensors"
    with _BUILDING:
        if path.exists() and not rebuild:
            try:
                asset = load_asset(path)
            except AssetError as error:
                warnings.warn(
                    f"building the Anny body again, for its cached file is unusable: {error}", stacklevel=2
                )
            else:
                report("ready", 1.0)
                return asset
        folder.mkdir(parents=True, exist_ok=True)  # before the long work, so that a bad folder fails at once
        asset = _build(version, report)
        save_asset(asset, path, overwrite=True)
    report("ready", 1.0)
    return asset


def _missing_anny() -> ImportError:
    return ImportError(
        'anny_body() is built from the package anny, which is not installed: pip install "agebody[free]"'
    )


@contextmanager
def _temporary_anny_cache() -> Iterator[None]:
    """Anny caches several hundred megabytes that serve this one build only."""
    try:
        from anny import paths
    except ImportError as error:
        raise _missing_anny() from error
    before = paths.get_anny_cache_path()
    with tempfile.TemporaryDirectory(prefix="agebody-anny-") as folder:
        paths.set_anny_cache_path(folder)
        try:
            yield
        finally:
            paths.set_anny_cache_path(before)


class _Bodies(NamedTuple):
    """Bodies in one pose."""

    vertices: Float[np.ndarray, "N V 3"]
    joints: Float[np.ndarray, "N 24 3"]


class _Anny:
    """Anny's rest bodies with SMPL's joints and axes, made mirror images of themselves."""

    def __init__(self) -> None:
        import anny

        self.model = anny.Anny(
            rig="mixamo",
            topology="anny",
            phenotypes="all",
            local_changes=list(_LOCAL_CHANGES),
            phenotype_blendshapes="original",
            skinning_method="lbs",
        )
        self.labels = list(self.model.phenotype_labels)
        self.faces = self.model.faces.numpy().astype(np.int32)
        self.vertex_ids = {int(v): i for i, v in enumerate(self.model.base_mesh_vertex_indices)}
        bones = [label.removeprefix("mixamorig:") for label in self.model.bone_labels]
        self._bones = [bones.index(name) for name in _BONES]
        self._knuckles = [
            [bones.index(f"{side}Hand{name}") for name in _KNUCKLES] for side in ("Left", "Right")
        ]

        rest, heads = self._rest({}, {})
        self.mirror: np.ndarray = np.asarray(KDTree(rest[0]).query(rest[0] * [-1, 1, 1])[1])
        bone_weights = np.zeros((rest.shape[1], len(bones)))
        rows = np.arange(rest.shape[1])[:, None]
        np.add.at(
            bone_weights,
            (rows, self.model.vertex_bone_indices.numpy()),
            self.model.vertex_bone_weights.numpy(),
        )
        joint_of = [_joint_of(name) for name in bones]
        weights = np.zeros((rest.shape[1], len(SMPL_JOINT_NAMES)))
        np.add.at(weights.T, joint_of, bone_weights.T)
        self.weights = (weights + weights[self.mirror][:, _MIRROR]) / 2

        self.finger_tips = {}
        for finger in ("thumb", "index", "middle", "ring", "pinky"):
            bone = bones.index(f"LeftHand{finger.capitalize()}3")
            own = np.flatnonzero(bone_weights[:, bone] > 0.5)
            tip = own[np.argmax(np.linalg.norm(rest[0, own] - heads[0, bone], axis=1))]
            self.finger_tips |= {f"left_{finger}": tip, f"right_{finger}": self.mirror[tip]}

    def keypoints(self) -> dict[str, Float[np.ndarray, " V"]]:
        """Anny's regressors of COCO's body and foot points, without their long tail of tiny weights."""
        from anny import KeypointsRegressor

        regressor = KeypointsRegressor.coco(self.model)
        matrix = regressor.regression_weights.numpy()
        matrix = np.where(matrix < 0.02 * matrix.max(axis=1, keepdims=True), 0, matrix)
        return dict(zip(regressor.labels, matrix / matrix.sum(axis=1, keepdims=True), strict=True))

    def rest(
        self, phenotype: Mapping[str, float | np.ndarray], local_changes: Mapping[str, float]
    ) -> _Bodies:
        """Bodies of these parameters as Anny has them: arms and legs spread, elbows bent."""
        vertices, heads = self._rest(phenotype, local_changes)
        hands = [heads[:, knuckles].mean(axis=1, keepdims=True) for knuckles in self._knuckles]
        joints = np.concatenate([heads[:, self._bones], *hands], axis=1)
        return _Bodies(vertices, (joints + joints[:, _MIRROR] * [-1, 1, 1]) / 2)

    def t_pose(
        self, phenotype: Mapping[str, float | np.ndarray], local_changes: Mapping[str, float]
    ) -> _Bodies:
        """Bodies of these parameters in the T-pose, pelvis at the origin."""
        posed = [
            _pose(vertices, joints, self.weights, _t_rotations(joints))
            for vertices, joints in zip(*self.rest(phenotype, local_changes), strict=True)
        ]
        vertices, joints = (np.stack(arrays) for arrays in zip(*posed, strict=True))
        return _Bodies(vertices - joints[:, :1], joints - joints[:, :1])

    def _rest(
        self, phenotype: Mapping[str, Any], local_changes: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.no_grad():
            body = self.model(
                phenotype_kwargs={name: torch.as_tensor(value) for name, value in phenotype.items()},
                local_changes_kwargs=dict(local_changes),
            )
        turn = lambda points: np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)  # noqa: E731
        return turn(body["rest_vertices"].numpy()), turn(body["rest_bone_heads"].numpy())


def _joint_of(bone: str) -> int:
    """The SMPL joint that moves what a mixamo bone moves; a finger bone is the hand's."""
    if bone in _BONES:
        return _BONES.index(bone)
    return SMPL_JOINT_NAMES.index("left_hand" if bone.startswith("Left") else "right_hand")


def _align(source: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation from one direction to another."""
    source = source / np.linalg.norm(source)
    x, y, z = np.cross(source, target)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + source @ target)


def _t_rotations(joints: Float[np.ndarray, "24 3"]) -> Float[np.ndarray, "24 3 3"]:
    """World rotations from Anny's rest pose to the T-pose: arms along x, legs along -y, all else as it is.

    Each bone takes the smallest turn after its parent's, so no twist arises along a limb; Anny's elbows,
    bent forward and down, thereby come to bend about the vertical, and its palms to face down, as SMPL's.
    """
    world = np.tile(np.eye(3), (len(joints), 1, 1))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        out, down = np.array([sign, 0, 0]), np.array([0, -1.0, 0])
        chains = (("shoulder", "elbow", out), ("elbow", "wrist", out), ("wrist", "hand", out),
                  ("hip", "knee", down), ("knee", "ankle", down))  # fmt: skip
        for start, end, target in chains:
            joint, child = (SMPL_JOINT_NAMES.index(f"{side}_{name}") for name in (start, end))
            parent = world[SMPL_PARENTS[joint]]
            world[joint] = _align(parent @ (joints[child] - joints[joint]), target) @ parent
            if end == "hand":
                world[child] = world[joint]
    return world


def _pose(
    vertices: Float[np.ndarray, "V 3"],
    joints: Float[np.ndarray, "24 3"],
    weights: Float[np.ndarray, "V 24"],
    world: Float[np.ndarray, "24 3 3"],
) -> tuple[Float[np.ndarray, "V 3"], Float[np.ndarray, "24 3"]]:
    """Linear blend skinning by world rotations of the joints."""
    posed = joints.copy()
    for joint, parent in enumerate(SMPL_PARENTS[1:], start=1):
        posed[joint] = posed[parent] + world[parent] @ (joints[joint] - joints[parent])
    shift = posed - np.einsum("jab,jb->ja", world, joints)
    linear = (weights @ world.reshape(-1, 9)).reshape(-1, 3, 3)
    return np.einsum("vab,vb->va", linear, vertices) + weights @ shift, posed


def _stature(vertices: Float[np.ndarray, "N V 3"]) -> Float[np.ndarray, " N"]:
    return np.ptp(vertices[..., 1], axis=-1)


def _volume(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> float:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c))) / 6


def _adult_phenotypes(labels: list[str]) -> dict[str, Float[np.ndarray, " N"]]:
    """A low-discrepancy sample of adults: as many women as men, 18 to 64 years.

    Height is normal, with the mean and spread that give WHO's statures at 19 years (women 1.632 m, SD 0.065;
    men 1.765 m, SD 0.073); weight and muscle spread about the template's; everything else is uniform.
    """
    sobol = stats.qmc.Sobol(len(labels), scramble=False).random_base2(_LOG2_SAMPLES)
    unit = dict(zip(labels, (sobol + 0.5 / len(sobol)).T, strict=True))
    female = unit["gender"] >= 0.5
    mean, spread = np.where(female, 0.332, 0.330), np.where(female, 0.053, 0.063)
    return unit | {
        "gender": female.astype(float),
        "age": 2 / 3 + unit["age"] * (0.83 - 2 / 3),
        "height": stats.norm.ppf(unit["height"], mean, spread),
        "weight": stats.beta.ppf(unit["weight"], 4, 2.5),
        "muscle": stats.beta.ppf(unit["muscle"], 3, 3),
    }


def _standardised(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return (values - values.mean()) / values.std()


class _Shapes(NamedTuple):
    """Principal components of a sample of bodies, one standard deviation each."""

    vertices: Float[np.ndarray, "S V 3"]
    joints: Float[np.ndarray, "S 24 3"]
    names: tuple[str, ...]


def _shape_space(bodies: _Bodies, phenotypes: Mapping[str, np.ndarray], faces: np.ndarray) -> _Shapes:
    """Components by falling variance, each signed so that the body grows taller, or else larger."""
    count = len(bodies.vertices)
    centred = (bodies.vertices - bodies.vertices.mean(axis=0)).reshape(count, -1)
    _, modes = np.linalg.eigh(centred @ centred.T)  # of the samples: they are fewer than coordinates
    scores = modes[:, ::-1][:, :_NUM_BETAS] * np.sqrt(count)
    stature = _standardised(_stature(bodies.vertices))
    volume = _standardised([_volume(body, faces) for body in bodies.vertices])
    taller, larger = scores.T @ stature / count, scores.T @ volume / count
    scores *= np.where(np.where(abs(taller) > 0.1, taller, larger) < 0, -1, 1)
    joints = bodies.joints - bodies.joints.mean(axis=0)
    labels = {"stature": stature} | {
        name: _standardised(values) for name, values in phenotypes.items() if name != "height"
    }
    likeness = np.abs(scores.T @ np.array(list(labels.values())).T)
    names = tuple(f"pc{i} ({list(labels)[best]})" for i, best in enumerate(likeness.argmax(axis=1)))
    return _Shapes(
        vertices=(scores.T @ centred / count).reshape(_NUM_BETAS, -1, 3),
        joints=np.einsum("ns,njc->sjc", scores, joints) / count,
        names=names,
    )


def _following_row(
    states: Float[np.ndarray, "K V 3"], points: Float[np.ndarray, "K 3"], candidates: Int[np.ndarray, " C"]
) -> Float[np.ndarray, " V"]:
    """Weights on the candidate vertices that follow a point through every state of the rest surface.

    Ridge regression about the candidates' mean. Weights of both signs are needed: between a baby and an
    adult Anny's joints move through the flesh, where no average of the skin goes with them.
    """
    ridge = 3e-5  # m^2: the largest row then sums to some 30 in absolute value
    local = states[:, candidates]
    centre = local.mean(axis=1)
    matrix = (local - centre[:, None]).transpose(0, 2, 1).reshape(-1, len(candidates))
    gram = matrix.T @ matrix + ridge * np.eye(len(candidates))
    change = np.linalg.solve(gram, matrix.T @ (points - centre).ravel())
    row = np.zeros(states.shape[1])
    row[candidates] = 1 / len(candidates) + change - change.mean()
    return row


def _joint_regressor(
    vertices: Float[np.ndarray, "K V 3"], joints: Float[np.ndarray, "K 24 3"], mirror: Int[np.ndarray, " V"]
) -> Float[np.ndarray, "24 V"]:
    """Rows fitted on the left side and mirrored; the first state says which vertices are near."""
    rows = np.zeros((len(SMPL_JOINT_NAMES), vertices.shape[1]))
    tree = KDTree(vertices[0])
    for joint, name in enumerate(SMPL_JOINT_NAMES):
        if name.startswith("right"):
            continue
        near = np.asarray(tree.query(joints[0, joint], k=1500)[1])
        row = _following_row(vertices, joints[:, joint], near[::10])
        if name.startswith("left"):
            rows[joint], rows[_MIRROR[joint]] = row, row[mirror]
        else:
            rows[joint] = (row + row[mirror]) / 2
    return rows


def _inner_row(
    template: Float[np.ndarray, "V 3"], point: Float[np.ndarray, " 3"], mirror: Int[np.ndarray, " V"]
) -> Float[np.ndarray, " V"]:
    """Positive weights, as even as may be, on the belt of skin about a point on the midline.

    For points that are regressed from a posed surface, where weights of both signs would go astray.
    """
    near = np.asarray(KDTree(template).query(point, k=1200)[1])
    flat = near[np.abs(template[near, 1] - point[1]) < 0.03]
    sum_to_one, even = 10.0, 0.02  # m: a sum wrong by 1e-4 costs as much as a point wrong by 1 mm
    matrix = np.vstack([template[flat].T, np.full(len(flat), sum_to_one), even * np.eye(len(flat))])
    solution, _ = optimize.nnls(matrix, np.concatenate([point, [sum_to_one], np.zeros(len(flat))]))
    row = np.zeros(len(template))
    row[flat] = solution / solution.sum()
    return (row + row[mirror]) / 2


def _keypoint_regressors(
    source: _Anny, template: Float[np.ndarray, "V 3"], joints: Float[np.ndarray, "24 3"]
) -> dict[str, Regressor]:
    """Every set of `landmarks`, placed on this body.

    COCO's points and the feet are Anny's own regressors. For the points of LSP, MPII and Human3.6M there is
    no data; they are put where their names say, from COCO's, the joints of the trunk, and the skull.
    """
    at = lambda index: np.bincount([index], minlength=len(template)).astype(float)  # noqa: E731
    mean = lambda *rows: np.mean(rows, axis=0)  # noqa: E731
    inner = lambda name: _inner_row(template, joints[SMPL_JOINT_NAMES.index(name)], source.mirror)  # noqa: E731
    coco = source.keypoints()
    surface = coco | {name: at(index) for name, index in source.finger_tips.items()}
    crown = at(int(template[:, 1].argmax()))
    crown = mean(crown, crown[source.mirror])
    ears = mean(coco["left_ear"], coco["right_ear"])
    extra = {
        "right_hip_lsp": coco["right_hip"],
        "left_hip_lsp": coco["left_hip"],
        "neck_lsp": inner("neck"),
        "head_top_lsp": crown,
        "pelvis_mpii": mean(coco["left_hip"], coco["right_hip"]),
        "thorax_mpii": mean(coco["left_shoulder"], coco["right_shoulder"]),
        "spine_h36m": inner("spine2"),
        "jaw_h36m": mean(ears, at(source.vertex_ids[_CHIN])),
        "head_h36m": mean(crown, ears),
    }
    h36m = coco | {
        "pelvis": inner("pelvis"),
        "spine": extra["spine_h36m"],
        "neck": extra["neck_lsp"],
        "head": extra["head_h36m"],
    }
    sets = {"coco17": coco, "surface21": surface, "extra9": extra, "j19": coco | extra, "h36m17": h36m}
    return {
        name: Regressor(
            names, sparse.csr_array(np.stack([sets[name][point] for point in names]).astype(np.float32))
        )
        for name, names in REGRESSOR_NAMES.items()
    }


def _build(version: str, report: Progress) -> BodyAsset:
    report("reading Anny", 0.0)
    with _temporary_anny_cache():
        source = _Anny()
    report("ages", 0.75)
    ages = [source.t_pose(age.phenotype(), age.local_changes()) for age in _AGES.values()]
    anchors = _Bodies(*(np.concatenate(arrays) for arrays in zip(*ages, strict=True)))
    stature = _stature(anchors.vertices)
    offsets = (stature[0] - stature) / (stature[0] - stature[-1])

    phenotypes = _adult_phenotypes(source.labels)
    adult = _AGES[19].local_changes()
    batches = []
    for start in range(0, 2**_LOG2_SAMPLES, _BATCH):
        report("adults", 0.78 + 0.17 * start / 2**_LOG2_SAMPLES)
        batch = {name: values[start : start + _BATCH] for name, values in phenotypes.items()}
        batches.append(source.t_pose(batch, adult))
    adults = _Bodies(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    shapes = _shape_space(adults, phenotypes, source.faces)

    report("joints", 0.95)
    # Two standard deviations to either side weigh the shapes about as the ages in the fit.
    states = _Bodies(*(
        np.concatenate([own, own[:1] + 2 * along, own[:1] - 2 * along])
        for own, along in zip(anchors, shapes[:2], strict=True)
    ))  # fmt: skip
    joint_regressor = _joint_regressor(states.vertices, states.joints, source.mirror)
    anchored = anchors.vertices - np.einsum("v,nvc->nc", joint_regressor[0], anchors.vertices)[:, None]
    shaped = shapes.vertices - np.einsum("v,svc->sc", joint_regressor[0], shapes.vertices)[:, None]

    skin_joints, skin_weights = sparse_weights(source.weights.astype(np.float32))
    return BodyAsset(
        template=anchored[0].astype(np.float32),
        faces=source.faces,
        parents=np.array(SMPL_PARENTS),
        joint_names=SMPL_JOINT_NAMES,
        joint_regressor=sparse.csr_array(joint_regressor.astype(np.float32)),
        skin_joints=skin_joints,
        skin_weights=skin_weights,
        shapedirs=np.ascontiguousarray(shaped.transpose(1, 2, 0), dtype=np.float32),
        age_offsets=offsets[1:].astype(np.float32),
        age_templates=anchored[1:].astype(np.float32),
        regressors=_keypoint_regressors(source, anchored[0], joint_regressor @ anchored[0]),
        metadata=Metadata(
            name=f"Anny {version}",
            kind="anny",
            topology="anny",
            license="CC0-1.0 (data), Apache-2.0 (code)",
            shape_names=shapes.names,
        ),
    )
