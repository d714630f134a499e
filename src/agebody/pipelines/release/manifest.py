"""The manifest of a release: what was removed from the photographs, and how."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import torch

from agebody.annotations.videos import load_opencv
from agebody.assets.asset import BodyAsset
from agebody.pipelines.release.options import Counts, Options
from agebody.pipelines.release.regions import STEPS, TRACE

FORMAT = "agebody-release-1"

BACKGROUNDS = {
    "blank": "The region of every listed person was painted in the mean colour of all other pixels.",
    "inpaint": "The region of every listed person was blanked, then painted from the pixels around it.",
    "none": "Nothing of any photograph was kept.",
}
REGIONS = {
    "auto": "the box around the person's box and the released body; where there is a mask, the person's box, "
    "and the mask and the outline of the released body, dilated",
    "box": "the box around the boxes of the person, of the mask and of the released body",
    "mask": "mask and outline of the released body, dilated; no box",
    "mesh": "as for auto; of people with neither box nor mask the box around the fit and the released body",
}
ENLARGED = (
    f"Boxes are enlarged, then rounded outward to a power of two of pixels, {STEPS // 2} to {STEPS} of which "
    "are the longer side."
)
SHAPES = {
    "mean": "Betas are zero; the age offset is the middle of the person's age class.",
    "coarse": "Only two betas are kept, in whole standard deviations; the age offset is rounded to tenths.",
    "exact": "Betas and age offsets are those of the fits, and may be biometric data.",
}


def make_manifest(
    body: BodyAsset, options: Options, counts: Counts, files: dict[str, dict[str, str | int]]
) -> dict[str, Any]:
    """Return the content of manifest.json."""
    libraries = {
        "agebody": version("agebody"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "torch": str(torch.__version__),
    }
    if options.background == "inpaint":  # asked of the module, since several distributions provide it
        libraries["opencv"] = load_opencv("inpainting", "agebody[release]").__version__
    treatment: dict[str, Any] = {"background": options.background, "shape": options.shape}
    if options.background != "none":
        treatment |= {"region": options.region, "region_rule": f"{REGIONS[options.region]}. {ENLARGED}"}
        treatment |= {name: getattr(options, name) for name in ("margin", "dilation", "unfitted")}
    return {
        "format": FORMAT,
        "made_with": libraries,
        "body": {
            "kind": body.metadata.kind,
            "topology": body.metadata.topology,
            "gender": body.metadata.gender,
            "license": body.metadata.license,
            "num_betas": body.num_betas,
            "sha256": _fingerprint(body),
        },
        "treatment": treatment,
        "removed": _removed(options),
        "kept": _kept(options),
        "not_guaranteed": _not_guaranteed(options, counts),
        "counts": asdict(counts),
        "files": files,
    }


def _removed(options: Options) -> list[str]:
    pixels = BACKGROUNDS[options.background]
    if options.background != "none":
        pixels += (
            f" Regions reach {TRACE} pixels further on each side; in JPEG files they cover every block that "
            "they touch, and one pixel more, and in progressive ones two more blocks. Pixels that were not "
            "fully opaque were made black first."
        )
    return [
        pixels,
        "Names, folders and order of the photographs; times of files.",
        "EXIF, GPS, XMP, IPTC, colour profiles, comments, thumbnails and further pictures of the files.",
        "Where cameras stood: bodies are in the space of their camera.",
        "Names and order of people, tracks and sequences.",
        SHAPES[options.shape],
    ]


def _kept(options: Options) -> list[str]:
    kept = [
        "Poses, places before the camera, age classes and age offsets of the bodies.",
        "Size, focal length, principal point and distortion of each picture.",
        "Which pictures are frames of one sequence, in which order, and which bodies in it are one person.",
    ]
    if options.background != "none":
        kept.insert(0, "Every pixel of the released photographs outside the regions.")
    return kept


def _not_guaranteed(options: Options, counts: Counts) -> list[str]:
    limits = [
        "Poses, gaits and, if exact, shapes may be recognised by those who know a person.",
        "Bodies and their keypoints are where people were, in their poses: with a photograph, or keypoints "
        "of it, the picture that was made of it can be found.",
    ]
    if options.background == "none":
        return limits
    limits = [
        "Only listed people are hidden: people whom a detector missed are still in the picture.",
        "Shadows, reflections, screens, writing and belongings outside the regions are still there.",
        "A background may reveal where, when and at whose home a photograph was taken, and can be matched "
        "with the photograph if that is found elsewhere.",
        "A region shows where a person was, and how large, to the steps to which boxes are rounded; with the "
        "depth of the body that reveals the stature to about a tenth. A mask shows an outline exactly.",
        "Compression leaves traces of people around them, also in a PNG that was made from a JPEG. Regions "
        f"reach {TRACE} pixels further, which is a block of JPEG; where a picture was scaled or turned after "
        "it was compressed, traces may lie further out.",
        *limits,
    ]
    if counts.photographs_of_predicting_formats:
        limits.append(
            f"{counts.photographs_of_predicting_formats} photographs came from files whose compression or "
            "palette may spread traces of a person, as large as its own errors, anywhere in the picture: all "
            "but JPEG, and PNG, BMP, PPM and TIFF without palette and without loss."
        )
    return limits


def _fingerprint(body: BodyAsset) -> str:
    digest = hashlib.sha256()
    for array in (body.template, body.shapedirs, body.faces):
        digest.update(array.tobytes())
    return digest.hexdigest()
