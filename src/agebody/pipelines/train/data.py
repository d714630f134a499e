"""People of weighted shards as batches of a training; a row is a function of its number and of a seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import AnnotationError
from agebody.annotations.photographs import to_eight_bits
from agebody.annotations.shards import Shards, find_shards
from agebody.assets.official import JOINT_NAMES
from agebody.cameras import Camera, square_box, to_crop
from agebody.checks import expect_choice, read_count, read_nonnegative, read_positive
from agebody.detect.windows import crop_image
from agebody.files import read_flag
from agebody.keypoints import mirror_order
from agebody.mesh import PartMap
from agebody.nets import normalize_images
from agebody.pipelines.labels.samples import (
    IMAGE,
    PEOPLE,
    Member,
    decode_image,
    index_shard,
    opened,
    read_members,
)
from agebody.pipelines.train.augment import (
    NO_AUGMENTATION,
    Augmentation,
    Examples,
    augment,
    draw_augmentation,
)
from agebody.pipelines.train.shards import JOINTS, Person, read_people
from agebody.rotations import axis_angle_to_matrix

LAYOUT = "hmr2_44"
_MAPS = ("parts.png", "mask.png")
_IGNORED = -100
"""Unknown part in part maps, which PyTorch's cross entropy ignores."""
_ROUND = 1000
"""Number of rows in which every source has exactly its share."""


class NobodyError(AnnotationError):
    """Nobody in the shards of a source shows enough keypoints."""


class Source(NamedTuple):
    """Shards of one data set, and the age class of its people."""

    shards: Shards
    """A folder, or files."""
    weight: float = 1.0
    """Its share of the rows of a training, relative to the other sources."""
    age_class: str | None = None
    """Class of people whose age is not labelled, such as "adult"; None if unknown."""


@dataclass(frozen=True)
class Filters:
    """Which labels are used, with the thresholds of HMR2's code.

    That code also drops poses that are rare in motion capture, uses pose and betas only where it has both,
    and takes zeros for unknown betas.
    """

    confidence: float = 0.3
    """Keypoints of less confidence are not seen."""
    visible: int = 5
    """Fewest keypoints of a person who is kept."""
    largest_beta: float = 3.0
    """Betas of which one is larger are no label; nor is the age offset that comes with them."""

    def __post_init__(self) -> None:
        """Check all numbers."""
        read_nonnegative("confidence", self.confidence)
        read_count("visible", self.visible)
        read_positive("largest_beta", self.largest_beta, finite=False)


class Batch(NamedTuple):
    """N people of a training."""

    images: Float[Tensor, "N 3 H W"]
    """Crops, of mean 0 and standard deviation 1 over ImageNet."""
    target: dict[str, Tensor]
    """What objectives compare, by name, with weights of 0 for what is not known: ``keypoints_2d`` in the box,
    from -1/2 to 1/2, ``keypoints_3d`` in camera coordinates [m], ``global_orient`` and ``body_pose`` as
    matrices, ``betas``, ``age_offset``, and ``age_class``; ``parts`` (N, h, w) if a training asks for it: 0
    where the person is not seen, p + 1 where part p is, and -100 of images without a part map."""
    box: Float[Tensor, "N 4"]
    """Corners of the square crop, in the image that the camera sees [pixels]."""
    camera: Camera
    """Of the whole image."""
    rows: Int[Tensor, " N"]
    """Rows of these people in the data."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            {name: value.to(device, non_blocking=True) for name, value in self.target.items()},
            self.box.to(device),
            self.camera.map(lambda part: part.to(device)),
            self.rows,
        )


class TrainingData(torch.utils.data.Dataset):
    """People of one or several data sets, as rows of a training without end.

    Row i is a person, an augmentation and a crop that depend on the seed and on i alone: not on workers,
    batches or processes, so that a training can be resumed anywhere. Of every 1000 rows each source has its
    share; within a source each person comes once per pass, in another order each time.

    Args:
        sources: data sets; a folder or a file is one of weight 1.
        size: width and height of the crops [pixels].
        augmentation: None for none.
        filters: which labels count.
        crop_camera: HMR2's camera, of 5000 / 256 box sides and centred on the person, in place of that of the
            image; of an image whose camera is not known it is `Camera.guess`.
        box_scale: factor of the boxes of the labels.
        parts: of which the shards have part maps, such as ``PartMap.from_joints(body.asset)`` for the 24 of
            ``agebody synthesize``; the targets then have ``parts``, for `nets.PartAttentionHead`.
        parts_size: width and height of these maps; None: a quarter of the crops'.
        family: whose joints ``body_pose`` has: "smpl"; "smplh" or "smplx", with weights (N, J), which are 0
            for fingers, jaw and eyes of people whose shards do not have them. Of "smplx" there is also
            ``expression`` (N, 10).
        seed: of all random choices.

    Raises:
        AnnotationError: a shard is damaged or has other parts, or nobody is left.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Source] | str | PathLike[str],
        *,
        size: tuple[int, int] = (192, 256),
        augmentation: Augmentation | None = None,
        filters: Filters | None = None,
        crop_camera: bool = False,
        box_scale: float = 1.0,
        parts: PartMap | None = None,
        parts_size: tuple[int, int] | None = None,
        family: Literal["smpl", "smplh", "smplx"] = "smpl",
        seed: int = 0,
    ) -> None:
        given = [Source(sources)] if isinstance(sources, (str, PathLike)) else list(sources)
        if not given or not all(isinstance(one, Source) and 0 < one.weight < np.inf for one in given):
            raise ValueError("sources: expected at least one Source, each of a weight above 0")
        names = [kind.name for kind in AGE_CLASSES]
        for one in given:
            if one.age_class is not None:
                expect_choice("age_class", one.age_class, names)
        box_scale = read_positive("box_scale", box_scale)
        read_count("seed", seed)
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"size: expected width and height [pixels], got {size!r}")
        for side in size:
            read_count("size", side, least=1)
        self.parts, self.parts_size = parts, parts_size or (max(size[0] // 4, 1), max(size[1] // 4, 1))
        if min(self.parts_size) < 1 or self.parts_size[0] * size[1] != self.parts_size[1] * size[0]:
            raise ValueError(f"parts_size: expected a fraction of the crops' {size}, got {self.parts_size}")
        expect_choice("family", family, ("smpl", "smplh", "smplx"))
        self.sources, self.size, self.seed, self.family = given, size, seed, family
        self.augmentation = augmentation or NO_AUGMENTATION
        self.filters, self.box_scale = filters or Filters(), box_scale
        self.crop_camera = read_flag("crop_camera", crop_camera)
        self.paths: list[Path] = []
        self.left_out = 0
        self._people: list[np.ndarray] = []
        for one in given:
            self._index(find_shards(one.shards, ".tar"))
        self._counts = _shares([one.weight for one in given])

    def _index(self, paths: list[Path]) -> None:
        rows = []
        for shard, path in enumerate(paths, len(self.paths)):
            for members in index_shard(path, (IMAGE, PEOPLE)).values():
                for number, person in enumerate(read_people(path, members[PEOPLE])):
                    seen = person.keypoints_2d[:, 2] >= max(self.filters.confidence, 1e-9)
                    if seen.sum() < self.filters.visible:
                        self.left_out += 1
                        continue
                    places = (members.get(name, Member(0, 0)) for name in (IMAGE, PEOPLE, *_MAPS))
                    rows.append((shard, number, *itertools.chain(*places)))
        if not rows:
            raise NobodyError(f"{paths[0]}: nobody in these shards shows enough keypoints")
        self.paths += paths
        self._people.append(np.array(rows, np.int64))

    @property
    def people(self) -> list[int]:
        """How many people each source has."""
        return [len(rows) for rows in self._people]

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the rows."""
        about = {
            "shards": [(path.name, path.stat().st_size) for path in self.paths],
            "sources": [(one.weight, one.age_class) for one in self.sources],
            "size": self.size,
            "augmentation": asdict(self.augmentation),
            "filters": asdict(self.filters),
            "camera": (self.crop_camera, self.box_scale),
            "seed": self.seed,
        }
        if self.parts is not None:
            about["parts"] = (self.parts.names, self.parts_size)
        if self.family != "smpl":
            about["family"] = self.family
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def find(self, row: int) -> tuple[int, int]:
        """Return the source of a row, and the person's number in it."""
        turn, place = divmod(row, _ROUND)
        order = _mixed(tuple(self._counts), self.seed, turn)
        source = int(order[place])
        drawn = turn * self._counts[source] + int((order[:place] == source).sum())
        again, position = divmod(drawn, len(self._people[source]))
        return source, int(_permuted(len(self._people[source]), self.seed, source, again)[position])

    def __getitem__(self, row: int) -> Batch:
        """Return one row as a batch."""
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return rows as a batch; PyTorch's loader calls it with ``collate_fn=lambda batch: batch``."""
        found = [self._read(*self.find(row)) for row in rows]
        people = [person for person, _, _ in found]
        cameras = [self._camera(person, path, data) for person, path, data in found]
        camera = Camera(*(torch.stack(parts) for parts in zip(*cameras, strict=True)))
        seen = _tensor(people, "keypoints_2d")
        seen[..., 2] *= seen[..., 2] >= self.filters.confidence
        joints = JOINT_NAMES[self.family]
        own = [JOINTS.index(name) for name in joints]
        points, pose = _tensor(people, "keypoints_3d"), _tensor(people, "pose")[:, own]
        picture = Examples(
            square_box(_tensor(people, "box"), scale=self.box_scale, crop=self.size),
            seen[..., :2],
            seen[..., 2],
            points[..., :3],
            points[..., 3],
            axis_angle_to_matrix(pose[:, 0]),
            pose[:, 1:],
            camera,
        )
        draw = draw_augmentation(self.augmentation, [(self.seed, 1, row) for row in rows])
        changed, back = augment(picture, draw, joints, layout=LAYOUT)
        crops = np.empty((len(rows), self.size[1], self.size[0], 3), np.uint8)
        for i, (_, path, data) in enumerate(found):
            with opened(path, data) as image:
                crops[i] = crop_image(to_eight_bits(image), changed.box[i], self.size, back[i])
        pixels = torch.from_numpy(crops).float() * draw.color[:, None, None]
        pixels = normalize_images(pixels.clamp(0, 255).permute(0, 3, 1, 2).contiguous() / 255)
        target = self._target(people, changed)
        if self.family != "smpl":
            posed = _tensor(people, "pose_weights")[:, own[1:]]
            switched = posed[:, list(mirror_order(joints[1:]))]
            target["body_pose_weights"] = torch.where(draw.flip[:, None], switched, posed)
        if self.family == "smplx":
            target["expression"] = _tensor(people, "expression")
            # A mirrored face has another expression, whose numbers are not known.
            target["expression_weights"] = _tensor(people, "expression_weight") * ~draw.flip
        if self.parts is not None:
            places = [self.find(row) for row in rows]
            target["parts"] = self._part_maps(self.parts, places, changed.box, back, draw.flip)
        if self.crop_camera:
            middle = (changed.box[:, :2] + changed.box[:, 2:]) / 2
            side = changed.box[:, 2:] - changed.box[:, :2]
            camera = Camera(side * (5000 / 256), middle)
        return Batch(pixels, target, changed.box, camera, torch.tensor(list(rows)))

    def _read(self, source: int, number: int) -> tuple[Person, Path, bytes]:
        """Return a person, the shard and the image's file."""
        path, person, members = self.find_files(source, number)
        found = read_people(path, members[PEOPLE])[person]
        if found.age_class == UNKNOWN and found.age_weight == 0 and self.sources[source].age_class:
            names = [kind.name for kind in AGE_CLASSES]
            found = found._replace(age_class=names.index(self.sources[source].age_class or ""))
        return found, path, read_members(path, members, IMAGE)[IMAGE]

    def find_files(self, source: int, number: int) -> tuple[Path, int, dict[str, Member]]:
        """Return the shard of a person, its number in the image's list, and where the image's files are."""
        shard, person, *places = self._people[source][number].tolist()
        members = itertools.starmap(Member, zip(*[iter(places)] * len(Member._fields), strict=True))
        return self.paths[shard], person, dict(zip((IMAGE, PEOPLE, *_MAPS), members, strict=True))

    def _part_maps(
        self, parts: PartMap, places: list[tuple[int, int]], boxes: Tensor, back: Tensor, flip: Tensor
    ) -> Tensor:
        """Return the part maps of the crops, (N, h, w)."""
        from PIL import Image

        mirrored = np.array([0, *(1 + part for part in mirror_order(parts.names))])
        width, height = self.parts_size
        maps = np.full((len(places), height, width), _IGNORED)
        for i, (source, number) in enumerate(places):
            path, person, members = self.find_files(source, number)
            if not all(members[name].size for name in _MAPS):
                continue
            found = read_members(path, members, *_MAPS)
            shown, people = (decode_image(path, found[name], "L") for name in _MAPS)
            shown = np.where(people == person + 1, shown, 0)
            if shown.max() >= len(mirrored):
                raise AnnotationError(
                    f"{path}: expected part maps of {len(parts.names)} parts, got part {shown.max()}; give "
                    "the parts that the shards were made with"
                )
            cut = crop_image(Image.fromarray(shown), boxes[i], self.parts_size, back[i], nearest=True)
            maps[i] = mirrored[cut] if flip[i] else cut
        return torch.from_numpy(maps)

    def _camera(self, person: Person, path: Path, data: bytes) -> tuple[Tensor, Tensor]:
        with opened(path, data) as image:
            guess = Camera.guess(image.size)
        focal, center = torch.from_numpy(person.focal), torch.from_numpy(person.principal_point)
        return (
            torch.where(focal.isfinite(), focal, guess.focal),
            torch.where(center.isfinite(), center, guess.center),
        )

    def _target(self, people: list[Person], changed: Examples) -> dict[str, Tensor]:
        betas, known = _tensor(people, "betas"), _tensor(people, "betas_weight")
        usual = (betas.abs() <= self.filters.largest_beta).all(-1)
        posed = _tensor(people, "pose_weights")[:, 0]
        return {
            "keypoints_2d": to_crop(changed.keypoints_2d, changed.box),
            "keypoints_2d_weights": changed.keypoints_2d_weights,
            "keypoints_3d": changed.keypoints_3d,
            "keypoints_3d_weights": changed.keypoints_3d_weights,
            "global_orient": changed.global_orient,
            "global_orient_weights": posed,
            "body_pose": axis_angle_to_matrix(changed.body_pose),
            "body_pose_weights": posed,
            "betas": betas,
            "betas_weights": known * usual,
            "age_offset": _tensor(people, "age_offset"),
            "age_offset_weights": _tensor(people, "age_weight") * usual,
            "age_class": torch.tensor([person.age_class for person in people]),
        }


def batches(
    data: TrainingData,
    batch_size: int,
    *,
    first: int = 0,
    steps: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Return the batches of some steps of a training; each process has its own part of the rows of a step.

    Args:
        data: rows.
        batch_size: people per process.
        first: number of the first step.
        steps: how many.
        rank: number of this process.
        processes: how many there are.
        workers: processes that read.
    """
    rows = [
        [(step * processes + rank) * batch_size + i for i in range(batch_size)]
        for step in range(first, first + steps)
    ]
    return iter(
        torch.utils.data.DataLoader(
            data,
            batch_sampler=rows,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
            worker_init_fn=_one_thread,
        )
    )


def _same(batch: Any) -> Any:
    return batch


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _tensor(people: list[Person], name: str) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(getattr(person, name), np.float32) for person in people]))


def _shares(weights: list[float]) -> list[int]:
    """Return how many of ``_ROUND`` rows each source has, at least one."""
    exact = np.array(weights) / sum(weights) * _ROUND
    counts = np.maximum(np.floor(exact), 1)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while counts.sum() != _ROUND:
        short = counts.sum() < _ROUND
        for i in order[: int(abs(_ROUND - counts.sum()))] if short else [int(np.argmax(counts))]:
            counts[i] += 1 if short else -1
    return counts.astype(int).tolist()


@lru_cache(maxsize=4)
def _mixed(counts: tuple[int, ...], seed: int, turn: int) -> np.ndarray:
    sources = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng([seed, 2, turn]).permutation(sources)


@lru_cache(maxsize=16)
def _permuted(count: int, seed: int, source: int, again: int) -> np.ndarray:
    return np.random.default_rng([seed, 3, source, again]).permutation(count)
