"""Which photographs are released, and under which names: numbers that say nothing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agebody.pipelines.release.options import Counts, Options
from agebody.pipelines.release.photos import Person, Photo, ReleaseError, read_pixels


class Place(NamedTuple):
    """A photograph of the release."""

    image_id: int
    photo: Photo
    people: list[tuple[Person, int]]
    """In a random order, each with a number that stays theirs throughout a sequence."""
    sequence_id: int | None = None
    frame: int | None = None
    """Its position among the released frames of the sequence, from 0."""

    @property
    def name(self) -> str:
        """Of its files, without suffix."""
        return f"{self.image_id:06d}"


def choose(photos: Sequence[Photo], options: Options, counts: Counts) -> list[Photo]:
    """The photographs to release: each once, with people, all of them fitted unless said otherwise.

    Nobody listed may mean that somebody was not found, so such a photograph is left out.

    Raises:
        ReleaseError: a photograph is there twice, is damaged, or somebody in it has no fit and that is
            refused.
        OSError: a photograph cannot be read.
    """
    seen: dict[str, Photo] = {}
    chosen = []
    for photo in photos:
        same = photo
        if options.background != "none" and (photo.people or photo.hide):
            same = seen.setdefault(_fingerprint(photo), photo)
        if same is not photo:
            raise ReleaseError(
                f"{photo.path}: the same picture as {same.path}; what one hides the other could show, "
                "so list it once, with everybody in it"
            )
        missing = sum(person.parameters is None for person in photo.people)
        if not photo.people:
            counts.photographs_left_out_without_people += 1
        elif missing and options.unfitted == "refuse":
            raise ReleaseError(
                f"{photo.path}: {missing} of {len(photo.people)} people have no fit; "
                'choose unfitted="drop" to leave such pictures out, or "blank" to hide these people'
            )
        elif missing and options.unfitted == "drop":
            counts.photographs_left_out_unfitted += 1
        else:
            chosen.append(photo)
    return chosen


def _fingerprint(photo: Photo) -> str:
    """Of what a photograph shows, whatever the file: the same pixels in another format are the same."""
    try:
        rgb = read_pixels(photo.path).rgb
    except ReleaseError as error:
        raise ReleaseError(f"{photo.path}: {error}") from None
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()


def arrange(photos: Sequence[Photo], rng: np.random.Generator) -> list[Place]:
    """Photographs and sequences in random order, frames in their own, people in random order."""
    groups: dict[object, list[Photo]] = {}
    for i, photo in enumerate(photos):
        groups.setdefault((photo.sequence,) if photo.sequence is not None else i, []).append(photo)
    keys = list(groups)
    sequence_ids, image_ids = itertools.count(1), itertools.count(1)
    places = []
    for index in rng.permutation(len(keys)):
        group = groups[keys[index]]
        sequence_id = None if group[0].sequence is None else next(sequence_ids)
        tracks = sorted({str(person.track) for photo in group for person in photo.people} - {"None"})
        numbers = dict(zip(tracks, rng.permutation(len(tracks)).tolist(), strict=True))
        for frame, photo in enumerate(group):
            others = itertools.count(len(tracks))
            people = [
                (person, numbers[str(person.track)] if person.track is not None else next(others))
                for person in photo.people
            ]
            people = [people[i] for i in rng.permutation(len(people))]
            in_sequence = (None, None) if sequence_id is None else (sequence_id, frame)
            places.append(Place(next(image_ids), photo, people, *in_sequence))
    return places
