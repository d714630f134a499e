"""Give damaged and hostile files to every reader: each must succeed, or fail in one line that names it.

    python benchmarks/fuzz.py --count 3000 --seed 0

Files are read in child processes, with 2 GB of memory and 10 s each. A failure is: an error that is none of
the library's, a message of several lines or without the file's name, a process that is killed, or a file that
was made by running what another file holds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from scipy import sparse

import agebody
from agebody import nets
from agebody.age import AgeError
from agebody.annotations import (
    AnnotationError,
    read_cameras,
    read_motion,
    read_people,
    read_shard,
    write_shards,
)
from agebody.annotations.photographs import read_photograph
from agebody.assets.asset import SMPL_JOINT_NAMES, SMPL_PARENTS, AssetError, Regressor
from agebody.assets.io import smpl_arrays
from agebody.assets.landmarks import SURFACE21
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.mesh import MarkerSet
from agebody.nets.vit import VIT_SIZES
from agebody.pipelines.evaluate.files import read_bodies
from agebody.pipelines.labels import TrainingShards, fit_annotations, load_labels
from agebody.pipelines.labels.place_images import _read_map  # pyright: ignore[reportPrivateUsage]
from agebody.pipelines.labels.samples import add_sample, open_shard
from agebody.pipelines.release.photos import read_mask, read_pixels

MEMORY = 2 * 2**30
SECONDS = 10
BATCH = 50
"""Files per child process."""
CANARY = "ran"
KINDS = ("PNG", "JPEG", "WEBP")
ERRORS = (AssetError, AnnotationError, AgeError, OSError)


class Sample(NamedTuple):
    """A file that a reader takes, and the reader."""

    name: str
    content: bytes
    read: Callable[[Path], Any]


class Failure(NamedTuple):
    """A file that was not read as it should be."""

    reader: str
    file: str
    what: str


class Run:
    """An object that pickles as a command, which makes the canary."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / CANARY)

    def __reduce__(self) -> Any:
        """Return the command."""
        return os.mkdir, (self.path,)


def make_samples(folder: Path) -> list[Sample]:
    """Return a sound file for every reader and format."""
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
        Sample("COCO results", json.dumps(coco_results(document)).encode(), people_of),
        Sample("OpenPose", json.dumps(openpose_document()).encode(), people_of),
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
        Sample("mask", picture(rgb[..., 0] // 128 * 255, "PNG"), lambda path: read_mask(path, (32, 24))),
        Sample("depth map, PNG", picture(rgb[..., 0].astype(np.uint16), "PNG"), _read_map),
        Sample("checkpoint", saved(checkpoint), as_checkpoint),
        Sample(
            "checkpoint before 1.6", saved(checkpoint, _use_new_zipfile_serialization=False), as_checkpoint
        ),
        Sample("checkpoint, safetensors", safetensors.torch.save(weights), as_checkpoint),
        Sample("depth map, npy", npy(rgb[..., 0].astype(np.float32)), _read_map),
    ]


def small_body() -> agebody.BodyAsset:
    """Return a body of few vertices with SMPL's joints."""
    rng = np.random.default_rng(0)
    count, joints = 40, SMPL_PARENTS
    weights, template = rng.dirichlet(np.ones(3), count), 0.4 * rng.normal(size=(count, 3))
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


def mutate(sample: Sample, rng: np.random.Generator, folder: Path) -> bytes:
    """Return the content with damage of a random kind."""
    content = bytearray(sample.content)
    ways: list[Callable[[bytearray, np.random.Generator], bytes]] = [flip, cut, header, repeat, swap]
    if content[:1] in (b"{", b"["):
        ways += [fields, fields, fields]
    if rng.random() < 0.1:
        return hostile(rng, folder)
    return ways[rng.integers(len(ways))](content, rng)


def flip(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change some bytes."""
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


def cut(content: bytearray, rng: np.random.Generator) -> bytes:
    """Keep the beginning, or the end."""
    place = int(rng.integers(len(content)))
    return bytes(content[:place] if rng.random() < 0.8 else content[place:])


def header(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change bytes at the ends, or digits to larger numbers, where formats keep their sizes."""
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(min(200, len(content))))
            content[place if rng.random() < 0.5 else -1 - place] = rng.integers(256)
        return bytes(content)
    digits = [i for i, byte in enumerate(content[:4096]) if 48 <= byte < 58]
    if digits:
        place = digits[rng.integers(len(digits))]
        content[place : place + 1] = b"9" * int(rng.choice([1, 2, 5, 12, 30]))
    return bytes(content)


def repeat(content: bytearray, rng: np.random.Generator) -> bytes:
    """Write a piece again, at another place."""
    start, place = (int(rng.integers(len(content))) for _ in range(2))
    piece = content[start : start + int(rng.integers(1, 64))] * int(rng.choice([1, 2, 50]))
    return bytes(content[:place] + piece + content[place:])


def swap(content: bytearray, rng: np.random.Generator) -> bytes:
    """Exchange two pieces."""
    a, b = sorted(int(rng.integers(len(content))) for _ in range(2))
    size = int(rng.integers(1, 32))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return bytes(content)


VALUES = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**63, 10**400, "", "x" * 300, "../a", "\x00",
    "[/x]", [], {}, [[]], [None], {"a": {}}, "1", [1, 2, 3], -0.5,
]  # fmt: skip


def fields(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change a random entry of a JSON document, drop it, or nest it deeply."""
    document = json.loads(bytes(content))
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    what = rng.random()
    if what < 0.1:
        text = json.dumps(document).replace(json.dumps(place[key]), "[" * 100_000, 1)
        return text.encode()
    if what < 0.25:
        del place[key]
    elif what < 0.35 and isinstance(place, dict):
        place[str(key) + "x"] = place.pop(key)
    else:
        place[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(document).encode()


def hostile(rng: np.random.Generator, folder: Path) -> bytes:
    """Return a file that runs a command in a careless reader, or unfolds."""
    run = Run(folder)
    wide = torch.zeros(1).expand(2**15, 2**15)
    kinds: list[Callable[[], bytes]] = [
        lambda: pickle.dumps(run, int(rng.integers(6))),
        lambda: pickle.dumps({"v_template": run}),
        lambda: npz({"v_template": np.array(run, object)}),
        lambda: npy(np.array([run], object)),
        lambda: saved({"v_template": run}),
        lambda: saved({"v_template": wide, "f": wide}),
        lambda: pickle.dumps({i * (2**61 - 1): 0 for i in range(20_000)}),
        lambda: b"[" * 10**6,
        lambda: b'{"a":' * 10**5,
        lambda: b"\x80\x04" + b"]" * 10**5 + b".",
        lambda: b"%!PS\n(" + run.path.encode() + b") (w) file\n",
        lambda: squeezed(),
        lambda: bytes(rng.integers(0, 256, 500, dtype=np.uint8)),
        lambda: b"",
    ]
    return kinds[rng.integers(len(kinds))]()


def squeezed() -> bytes:
    """Return a small zip file of arrays that unpack to half a gigabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("v_template", "joints", "ids", "mean"):
            with archive.open(f"{name}.npy", "w") as entry:
                entry.write(npy(np.zeros(0)).replace(b"(0,), }" + b" " * 7, b"(16777216,), }"))
                for _ in range(128):
                    entry.write(bytes(2**20))
    return stream.getvalue()


def outcomes(jobs: Sequence[tuple[Sample, Path]]) -> list[str]:
    """Read files in a child process, and the rest in another one where that dies; return what was wrong."""
    found: list[str] = []
    while len(found) < len(jobs):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            report(jobs[len(found) :], send)
        os.close(send)
        with os.fdopen(receive) as stream:
            found += [json.loads(line) for line in stream]
        _, status = os.waitpid(child, 0)
        if len(found) < len(jobs):
            found.append(f"killed by signal {os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}")
    return found


def report(jobs: Sequence[tuple[Sample, Path]], send: int) -> None:
    """Read files in this process and write one line for each; does not return."""
    try:
        limit_memory()
        sys.stderr = sys.stdout = io.StringIO()
        for sample, path in jobs:
            signal.alarm(SECONDS)
            what = judged(sample, path)
            signal.alarm(0)
            if (path.parent / CANARY).exists():
                os.rmdir(path.parent / CANARY)
                what = "it ran what the file holds"
            os.write(send, f"{json.dumps(what[-4000:])}\n".encode())
    finally:
        os._exit(0)


def limit_memory() -> None:
    """Allow this process 2 GB beyond what it has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def judged(sample: Sample, path: Path) -> str:
    """Return "" for a file that is read or refused as it should be, and else what was wrong."""
    try:
        sample.read(path)
    except ERRORS as error:
        message = str(error)
        if "\n" in message:
            return f"a message of several lines: {message!r}"
        if path.name not in message:
            return f"a message without the file's name: {message!r}"
        return "" if len(message) < 2000 else f"a message of {len(message)} characters"
    except BaseException:  # what it is, is the finding
        return traceback.format_exc()
    return ""


def fuzz(count: int, seed: int, *, only: str = "") -> tuple[list[Failure], Counter[str]]:
    """Read so many damaged files; return what failed, and how many files each reader was given."""
    failures: list[Failure] = []
    given: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        samples = [s for s in make_samples(Path(name)) if only in s.name]
        work = Path(name, "work")
        work.mkdir()
        jobs = [(sample, work / f"whole-{i}") for i, sample in enumerate(samples)]
        for sample, path in jobs:
            path.write_bytes(sample.content)
        for number in range(count):
            sample = samples[number % len(samples)]
            given[sample.name] += 1
            jobs.append((sample, work / f"damaged-{number}"))
            jobs[-1][1].write_bytes(mutate(sample, np.random.default_rng((seed, number)), work))
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start : start + BATCH]
            for (sample, path), what in zip(batch, outcomes(batch), strict=True):
                if what:
                    failures.append(Failure(sample.name, path.name, what))
    return failures, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a sample's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    failures, given = fuzz(options.count, options.seed, only=options.only)
    for failure in failures:
        print(f"--- {failure.reader}, {failure.file}\n{failure.what}")
    print(f"{sum(given.values())} files for {len(given)} readers in {time.perf_counter() - start:.0f} s")
    raise SystemExit(f"{len(failures)} failures" if failures else 0)


if __name__ == "__main__":
    main()
