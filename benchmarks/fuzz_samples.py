"""Valid files for `fuzz.py`, one for every reader and format; and an object that runs a command."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image
from scipy import sparse

import agebody
from agebody import nets
from agebody.annotations import (
    read_cameras,
    read_motion,
    read_people,
    read_shard,
    write_shards,
)
from agebody.annotations.photographs import read_photograph
from agebody.assets.asset import SMPL_JOINT_NAMES, SMPL_PARENTS, Regressor
from agebody.assets.io import smpl_arrays
from agebody.assets.landmarks import SURFACE21
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.mesh import MarkerSet, MeshFile, TopologyMap
from agebody.nets.vit import VIT_SIZES
from agebody.pipelines.evaluate.coco import read_coco
from agebody.pipelines.evaluate.files import read_bodies
from agebody.pipelines.labels import TrainingShards, fit_annotations, load_label_shards, load_labels
from agebody.pipelines.labels.label_shards import save_label_shard
from agebody.pipelines.labels.place_images import (
    _read_map,  # pyright: ignore[reportPrivateUsage]
    read_known_people,
)
from agebody.pipelines.labels.samples import add_sample, open_shard
from agebody.pipelines.release.hidden import read_hidden
from agebody.pipelines.release.photos import load_mask, read_pixels

CANARY = "ran"
KINDS = ("PNG", "JPEG", "WEBP")
FACES = np.array([[0, 1, 2], [0, 2, 3]])
"""Triangles of a small mesh."""


class Sample(NamedTuple):
    """A valid file and its reader."""

    name: str
    content: bytes
    read: Callable[[Path], Any]
    suffix: str = ""
    """Of the file, for readers that go by it."""


class Run:
    """An object that pickles as a command, which makes the canary."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / CANARY)

    def __reduce__(self) -> Any:
        """Return the command."""
        return os.mkdir, (self.path,)


def make_samples(folder: Path) -> list[Sample]:
    """Return a valid file for every reader and format."""
    asset = small_body()
    arrays, adult = smpl_arrays(asset), asset.replace(age_offsets=np.zeros(0), age_templates=None)
    objects = arrays | {"J_regressor": sparse.csc_matrix(arrays["J_regressor"])}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if v.dtype.kind in "fiu"}
    regressor = np.full((3, asset.num_vertices), 1 / asset.num_vertices)
    agebody.save_asset(adult, folder / "a.safetensors")
    body = agebody.SMPLA(asset)
    gaussian = {"mean": np.zeros(69), "prec": np.eye(69)}
    mixture = {"means": np.zeros((2, 69)), "covars": np.stack([np.eye(69)] * 2), "weights": np.full(2, 0.5)}
    MahalanobisPrior(np.zeros(69), np.eye(69), SMPL_JOINT_NAMES[1:]).save(folder / "prior")
    MarkerSet(np.arange(2), np.full((asset.num_vertices, 2), 0.5), ("a", "b")).save(folder / "markers")
    document = coco_document()
    (folder / "coco.json").write_text(json.dumps(document))
    people = read_people(folder / "coco.json")
    (shard,) = write_shards(people, folder)
    (folder / "labels.npz").write_bytes(npz(labels_arrays(body, people)))
    save_label_shard(load_labels(folder / "labels.npz"), ("0", 1), {}, folder / "labels.parquet")
    nets.Lifter(width=2, blocks=1).save(folder / "lifter", {})
    predictions = {"ids": np.arange(2), "joints": np.zeros((2, 24, 3)), "layout": np.array("smpl24")}
    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    load, people_of = agebody.load_asset, read_people

    def as_regressor(path: Path) -> Any:
        return load(folder / "a.safetensors", regressors={"own": path})

    def as_infant(path: Path) -> Any:
        return load(folder / "a.safetensors", infant_template=path)

    weights = {n.replace("head.", "smpl_head."): t for n, t in small_network().state_dict().items()}
    checkpoint = {"state_dict": weights, "hyper_parameters": Path("x"), "epoch": 3}

    def as_checkpoint(path: Path) -> Any:
        return nets.load_checkpoint(path, agebody.SMPLA(small_body(), pose_format="matrix"))

    def as_hidden(path: Path) -> Any:
        return read_hidden(path, {"one.jpg": (640, 480)}, folder)

    results = folder / "results.json"
    results.write_text(json.dumps(coco_results(document)))
    return [
        *(Sample(f"body, pickle {protocol}", pickle.dumps(objects, protocol), load) for protocol in range(6)),
        Sample("body, npz", npz(arrays), load),
        Sample("body, packed npz", npz(arrays, np.savez_compressed), load),
        Sample("body, npz of objects", npz(objects), load),
        Sample("body, torch", saved(tensors), load),
        Sample("body, torch before 1.6", saved(tensors, _use_new_zipfile_serialization=False), load),
        Sample("body, torch of arrays", saved(objects), load),
        Sample("body, own", (folder / "a.safetensors").read_bytes(), load),
        Sample("report of a body", pickle.dumps(objects), agebody.inspect_asset),
        Sample("infant template", npy(asset.template * 0.3), as_infant),
        Sample("regressor, npy", npy(regressor), as_regressor),
        Sample("regressor, pickle", pickle.dumps(sparse.lil_matrix(regressor)), as_regressor),
        Sample("Gaussian prior", pickle.dumps(gaussian), MahalanobisPrior.from_file),
        Sample("Gaussian prior, npz", npz(gaussian), MahalanobisPrior.from_file),
        Sample("Gaussian prior, own", (folder / "prior").read_bytes(), MahalanobisPrior.from_file),
        Sample("mixture prior", pickle.dumps(mixture), MaxMixturePrior.from_file),
        Sample("virtual markers", (folder / "markers").read_bytes(), MarkerSet.from_file),
        Sample("COCO annotations", json.dumps(document).encode(), people_of),
        Sample(
            "COCO results",
            results.read_bytes(),
            lambda path: people_of(path, annotations=folder / "coco.json"),
        ),
        Sample(
            "OpenPose",
            json.dumps(openpose_document()).encode(),
            lambda path: people_of(path, size=(640, 480)),
        ),
        *(Sample(f"cameras, {name}", text.encode(), read_cameras) for name, text in cameras_files().items()),
        Sample("shard", shard.read_bytes(), read_shard),
        Sample("evaluation", npz(predictions), read_bodies),
        *(
            Sample(f"motion, {n} angles", npz(motion_arrays(n)), lambda path: read_motion(path, body))
            for n in (156, 165)
        ),
        Sample("labels", npz(labels_arrays(body, people)), load_labels),
        Sample("training shard", training_shard(folder, rgb), lambda path: list(TrainingShards([path]))),
        *(Sample(f"photograph, {kind}", picture(rgb, kind), read_photograph) for kind in KINDS),
        Sample("photograph of a release", picture(rgb, "JPEG"), read_pixels),
        Sample(
            "mask",
            picture(rgb[..., 0] // 128 * 255, "PNG"),
            lambda path: load_mask(path, (32, 24), empty=False),
        ),
        Sample("depth map, PNG", picture(rgb[..., 0].astype(np.uint16), "PNG"), _read_map),
        Sample("checkpoint", saved(checkpoint), as_checkpoint),
        Sample(
            "checkpoint before 1.6", saved(checkpoint, _use_new_zipfile_serialization=False), as_checkpoint
        ),
        Sample("checkpoint, safetensors", safetensors.torch.save(weights), as_checkpoint),
        Sample("checkpoint, tensors", saved(checkpoint), nets.read_checkpoint),
        Sample("lifter", (folder / "lifter").read_bytes(), nets.Lifter.load),
        Sample("depth map, npy", npy(rgb[..., 0].astype(np.float32)), _read_map, ".npy"),
        *(Sample(f"mesh, {kind[1:]}", text, MeshFile.from_file, kind) for kind, text in mesh_files().items()),
        *(
            Sample(
                f"map of topologies, {name}",
                npz(arrays),
                lambda path: TopologyMap.from_file(path, faces=FACES),
            )
            for name, arrays in map_arrays().items()
        ),
        Sample("shard of labels", (folder / "labels.parquet").read_bytes(), load_label_shards),
        Sample("people of a crowd", b'{"1": {"years": 3, "sex": "female"}}', read_known_people),
        Sample("annotations to hide", json.dumps(document).encode(), as_hidden),
        Sample(
            "results to evaluate",
            results.read_bytes(),
            lambda path: read_coco(path, folder / "coco.json"),
        ),
        Sample(
            "annotations to evaluate", json.dumps(document).encode(), lambda path: read_coco(results, path)
        ),
    ]


def small_body() -> agebody.BodyAsset:
    """Return a body of few vertices with SMPL's joints."""
    rng = np.random.default_rng(0)
    count, joints = 40, SMPL_PARENTS
    weights, template = rng.dirichlet(np.ones(3), count), rng.normal(size=(count, 3)) * (0.2, 0.4, 0.1)
    return agebody.BodyAsset(
        template=template,
        faces=rng.integers(0, count, (60, 3)),
        parents=np.array(joints),
        joint_names=SMPL_JOINT_NAMES,
        joint_regressor=sparse.csr_array(rng.dirichlet(np.ones(count), len(joints))),
        skin_joints=np.stack([rng.choice(len(joints), 3, replace=False) for _ in range(count)]),
        skin_weights=weights,
        shapedirs=0.01 * rng.normal(size=(count, 3, 3)),
        posedirs=0.01 * rng.normal(size=(count, 3, 207)),
        age_offsets=np.ones(1),
        age_templates=0.3 * template[None],
        regressors={"surface21": Regressor(SURFACE21, sparse.csr_array(np.eye(21, count)))},
    )


def small_network() -> nets.Regressor:
    """Return a network whose weights take a few kB."""
    body = agebody.SMPLA(small_body(), pose_format="matrix")
    head = nets.DecoderHead(nets.start_readouts(body), channels=2, width=2, depth=1, heads=1)
    VIT_SIZES["small"] = nets.ViTSize(2, 1, 1)
    return nets.Regressor(nets.ViT("small", image_size=(64, 48)), head, body)


def coco_document() -> dict[str, Any]:
    """Return COCO annotations of two people."""
    points = [[float(10 * i), float(7 * i + 20), 2] for i in range(17)]
    person = {"category_id": 1, "image_id": 1, "iscrowd": 0, "area": 9e3, "bbox": [0, 20, 170, 130]}
    flat = [number for point in points for number in point]
    annotations = [person | {"id": i, "keypoints": flat, "num_keypoints": 17, "years": 3 * i} for i in (1, 2)]
    images = [{"id": 1, "file_name": "one.jpg", "width": 640, "height": 480}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def coco_results(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return its people as results of a detector."""
    keep = ("image_id", "category_id", "keypoints")
    return [{key: one[key] for key in keep} | {"score": 0.9} for one in document["annotations"]]


def openpose_document() -> dict[str, Any]:
    """Return the file of one image by OpenPose."""
    return {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": [1.0, 2.0, 0.5] * 25}]}


def motion_arrays(angles: int) -> dict[str, Any]:
    """Return the arrays of a file of AMASS, of SMPL-H or SMPL-X."""
    rng = np.random.default_rng(0)
    about = {"gender": np.array("male"), "betas": rng.normal(size=16)}
    rate = {156: "mocap_framerate", 165: "mocap_frame_rate"}[angles]
    frames = {"poses": rng.normal(size=(3, angles)), "trans": rng.normal(size=(3, 3))}
    return about | frames | {rate: np.array(60.0), "labels": np.array(["a", 1], object)}


def mesh_files() -> dict[str, bytes]:
    """Return a mesh in every format, by suffix."""
    vertices = np.random.default_rng(0).normal(size=(4, 3))
    arrays = {"vertices": vertices.astype(np.float32), "faces": FACES}
    lines = [f"{x} {y} {z}" for x, y, z in vertices.round(3).tolist()]
    corners = [" ".join(map(str, row)) for row in FACES.tolist()]
    obj = [*(f"v {line}" for line in lines), *(f"f {i + 1} {j + 1} {k + 1}" for i, j, k in FACES.tolist())]
    numbers = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"element vertex 4\n{numbers}element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    ply = f"ply\nformat ascii 1.0\n{head}" + "\n".join((*lines, *(f"3 {row}" for row in corners))) + "\n"
    people = [{"pred_vertices": arrays["vertices"], "pred_cam_t": np.zeros(3)}]
    return {
        ".npz": npz(arrays),
        ".npy": npy(people),
        ".pkl": pickle.dumps(arrays),
        ".obj": "\n".join(obj).encode(),
        ".ply": ply.encode(),
        ".safetensors": safetensors.numpy.save(arrays),
    }


def map_arrays() -> dict[str, dict[str, Any]]:
    """Return the arrays of a map of MHR's repository, and of our own."""
    weights = np.full((5, 3), 1 / 3)
    mhr = {"triangle_ids": np.array([0, 1, 0, 1, 1]), "baryc_coords": weights}
    corners = FACES[mhr["triangle_ids"]]
    own = {"corners": corners, "barycentric": weights, "num_source_vertices": np.array(4)}
    return {"MHR": mhr, "own": own}


def cameras_files() -> dict[str, str]:
    """Return calibrations of two cameras, in every format."""
    matrix = "matrix = [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]"
    pose = "rotation = [0.1, 0.2, 0.3]\ntranslation = [0.0, 1.0, 3.0]\nfisheye = false\n"
    lens = f"size = [640, 480]\n{matrix}\ndistortions = [-0.1, 0.01, 0.0, 0.0]\n{pose}"
    toml = "# metres\n" + "".join(f'[{name}]\nname = "{name}"\n{lens}' for name in ("a", "b"))
    turn = " ".join(f'r{i}{j}="{float(i == j)}"' for i in (1, 2, 3) for j in (1, 2, 3))
    focal = 'focalLengthU="32000" focalLengthV="32000" centerPointU="20480" centerPointV="15360"'
    parts = f"""<fov_video left="0" top="0" right="639" bottom="479"/><intrinsic {focal}/>
        <transform {turn} x="0" y="10" z="3000"/>"""
    xml = "".join(f'<camera active="1" serial="{name}">{parts}</camera>' for name in ("a", "b"))

    def mat(name: str, numbers: Any) -> str:
        array = np.array([numbers] * 2, dtype=float)
        data = ", ".join(map(repr, array.ravel().tolist()))
        sizes = f"sizes: {list(array.shape)}"
        return f"{name}: !!opencv-nd-matrix\n   {sizes}\n   dt: d\n   data: [ {data} ]\n"

    lens = [[500, 0, 320], [0, 500, 240], [0, 0, 1]]
    mats = {"Ks": lens, "Rs": np.eye(3), "Ts": [0, 1, 3], "distortions": [0.1] * 5}
    yaml = "%YAML:1.0\n---\n" + "".join(mat(*each) for each in mats.items())
    return {"TOML": toml, "XML": f"<calibration><cameras>{xml}</cameras></calibration>", "YAML": yaml}


def labels_arrays(body: agebody.SMPLA, people: Any) -> dict[str, Any]:
    """Return the arrays of a file of labels of these people."""
    stream = Path(tempfile.mkdtemp()) / "labels.npz"
    fit_annotations(body, people).save(stream)
    with np.load(stream) as archive:
        return dict(archive)


def training_shard(folder: Path, rgb: np.ndarray) -> bytes:
    """Return a tar file of one image with its labels and maps."""
    path, labels = folder / "0.tar", load_labels(folder / "labels.npz")
    maps = {"mask": rgb[..., 0], "parts": rgb[..., 1], "depth": rgb[..., 2].astype(np.uint16)}
    hidden = np.zeros(labels.observed.shape[:2], int)
    with open_shard(path, {}) as tar:
        add_sample(tar, "0", picture(rgb, "JPEG"), labels, b"", hidden=hidden, maps=maps)
    return path.read_bytes()


def npz(arrays: Any, save: Callable[..., None] = np.savez) -> bytes:
    """Return the bytes of an npz file."""
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    """Return the bytes of an npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    """Return the bytes of a torch file."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def picture(pixels: np.ndarray, kind: str) -> bytes:
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()
