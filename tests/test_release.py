import base64
import dataclasses
import io
import json
import math
import os
import shutil
import struct
import sys
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bodies import random_body
from clusters import local_ray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner

import agebody
from agebody.annotations import AnnotationError
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.pictures import contact_sheet
from agebody.files import sha256
from agebody.fitting.start import to_camera_space
from agebody.parameters import BodyParameters
from agebody.people import pose
from agebody.pipelines.cli import app
from agebody.pipelines.jobs.cluster import Cluster
from agebody.pipelines.labels import Labels
from agebody.pipelines.release import Person, Photo, photos_from_labels, write_release
from agebody.pipelines.release.bodies import generalize, view_bodies
from agebody.pipelines.release.files import EPOCH, new_folder, run_lengths, save_picture
from agebody.pipelines.release.hidden import _mask_corners
from agebody.pipelines.release.options import Options
from agebody.pipelines.release.photos import ReleaseError, read_pixels
from agebody.pipelines.release.regions import cover_blocks, fill_box, grow, hide_box, person_region
from agebody.pipelines.release.scene import blank, compose, inpaint, make_scene
from agebody.pipelines.release.write import arrange

SIZE = (100, 74)
"""Not a multiple of the 8 or 16 pixels of JPEG blocks."""
LENS = Camera(torch.tensor([90.0, 90.0]), torch.tensor([50.0, 37.0]))
SECRET = "Jane-Doe-4711"
BOX = (20.0, 12.0, 44.0, 60.0)


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


def standing(body, x=0.0, z=4.0, age=0.0, betas=()):
    """Return a person who faces the camera."""
    angles = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    shape = torch.zeros(body.num_betas)
    shape[: len(betas)] = torch.tensor(betas, dtype=torch.float32)
    return BodyParameters(
        torch.tensor([torch.pi, 0, 0]), angles[1:], shape, torch.tensor(age), torch.tensor([x, 0.0, z])
    )


def batch(*people):
    return BodyParameters(*(torch.stack(parts) for parts in zip(*people, strict=True)))


def noise(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def save(path, rgb, **options):
    Image.fromarray(rgb).save(path, **options)
    return path


@pytest.fixture
def photo(tmp_path, body):
    """One person in a noisy picture."""
    path = save(tmp_path / "a.png", noise(0))
    return Photo(path, LENS, [Person(standing(body), BOX)])


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def picture(folder, name="images/000001.png"):
    with Image.open(folder / name) as image:
        return np.asarray(image)


# Regions


def enlarged(box, share=0.2):
    """Return the pixels of a grown and rounded box, computed one by one."""
    x0, y0, x1, y1 = box
    by = max(8, share * max(x1 - x0, y1 - y0))
    step = 1
    while 16 * step < max(x1 - x0, y1 - y0):
        step *= 2
    x0, y0, x1, y1 = (
        step * math.floor((x0 - by) / step),
        step * math.floor((y0 - by) / step),
        step * math.ceil((x1 + by) / step),
        step * math.ceil((y1 + by) / step),
    )
    inside = np.zeros(SIZE[::-1], bool)
    for row, column in np.ndindex(inside.shape):
        inside[row, column] = x0 < column + 1 and column < x1 and y0 < row + 1 and row < y1
    return inside


@pytest.mark.parametrize("background", ["blank", "inpaint"])
@pytest.mark.parametrize("kind", ["box", "mask", "beside"])
def test_output_does_not_depend_on_pixels_of_a_region(tmp_path, body, background, kind):
    # Two photographs that differ only where somebody is: not one byte of what is released may differ.
    mask = np.zeros(SIZE[::-1], bool)
    mask[20:50, 25:40] = True
    if kind == "mask":
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        near = [np.hypot(rows - r, columns - c) <= 8 for r, c in np.argwhere(mask)]
        region, person, hide = np.any(near, axis=0), Person(standing(body, 0.1), None, mask), ()
    elif kind == "box":
        region, person, hide = enlarged(BOX), Person(standing(body), BOX), ()
    else:
        region, hide = enlarged((70, 3, 88, 30)), ((70, 3, 88, 30),)
        person = Person(standing(body, -0.8), BOX)
    outputs = []
    for seed in (1, 2):
        rgb = noise(0)
        rgb[region] = noise(seed)[region]
        path = save(tmp_path / f"{seed}.png", rgb)
        write_release(
            [Photo(path, LENS, [person], hide=hide)],
            body,
            tmp_path / f"out{seed}",
            background=background,
            seed=0,
        )
        outputs.append(contents(tmp_path / f"out{seed}"))
    assert outputs[0] == outputs[1]
    # And the region is not simply everything: what is far from it and from the body is as it was.
    far = np.ones(SIZE[::-1], bool)
    far[:, : 95 if kind != "beside" else 90] = False
    far[:60] &= kind != "beside"
    assert far.any()
    np.testing.assert_array_equal(picture(tmp_path / "out1")[far], noise(0)[far])


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_output_does_not_depend_on_a_region_through_jpeg_blocks(tmp_path, body, sampling, orientation):
    turned = orientation == 6
    size = SIZE[::-1] if turned else SIZE
    box = (26.0, 20.0, 38.0, 44.0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    outputs, decoded = [], []
    region = np.zeros((size[1], size[0]), bool)
    region[12:52, 18:46] = True  # the box, 8 pixels larger
    stored = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a)}[orientation]
    for seed in (1, 2):
        rgb = noise(0, size)
        rgb[region] = noise(seed, size)[region]
        path = tmp_path / f"{seed}.jpg"
        save(path, np.ascontiguousarray(stored(rgb)), quality=40, subsampling=sampling, exif=exif)
        decoded.append(read_pixels(path).rgb)
        photo = Photo(path, LENS, [Person(None, box)])
        write_release([photo], body, tmp_path / f"out{seed}", unfitted="blank", seed=0)
        outputs.append(contents(tmp_path / f"out{seed}"))
    bled = (decoded[0] != decoded[1]).any(-1) & ~region
    assert np.count_nonzero(bled) > 100  # so a release without whole blocks would differ
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("scans", [1, 2, 4, 10])
def test_output_does_not_depend_on_a_region_through_truncated_progressive_jpegs(tmp_path, body, scans):
    # Decoders estimate the scans that are missing from the blocks around.
    outputs, decoded, region = differ_within_a_region(tmp_path, body, lambda rgb, path: cut(rgb, path, scans))
    assert np.count_nonzero((decoded[0] != decoded[1]).any(-1) & ~region) > 100
    np.testing.assert_array_equal(*outputs)


def cut(rgb, path, scans):
    """A progressive JPEG of its first scans alone."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=60, progressive=True)
    data = buffer.getvalue()
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    path.write_bytes(data[: [*starts, -2][scans]] + b"\xff\xd9")


def recoded(rgb, path):
    """A PNG that was a JPEG before."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=40)
    with Image.open(buffer) as image:
        image.save(path, "PNG")


@pytest.mark.parametrize(
    ("write", "exact"),
    [
        (recoded, True),
        (lambda rgb, path: Image.fromarray(rgb).save(path, "TIFF", compression="jpeg", quality=40), False),
    ],
)
def test_output_does_not_depend_on_a_region_through_traces_in_other_formats(tmp_path, body, write, exact):
    outputs, decoded, region = differ_within_a_region(tmp_path, body, write)
    assert np.count_nonzero((decoded[0] != decoded[1]).any(-1) & ~region) > 100
    np.testing.assert_array_equal(*outputs)
    manifest = json.loads((tmp_path / "out1/manifest.json").read_text())
    assert manifest["counts"]["photographs_of_predicting_formats"] == (not exact)
    assert any("photographs came from files" in line for line in manifest["not_guaranteed"]) != exact


def differ_within_a_region(tmp_path, body, write):
    """Two photographs that differ there alone: what is written of them, what is read, and where."""
    region = np.zeros(SIZE[::-1], bool)
    region[12:52, 18:46] = True  # the box, 8 pixels larger
    outputs, decoded = [], []
    for seed in (1, 2):
        rgb = noise(0)
        rgb[region] = noise(seed)[region]
        path = tmp_path / f"{seed}.image"
        write(rgb, path)
        decoded.append(read_pixels(path).rgb)
        photo = Photo(path, LENS, [Person(None, (26.0, 20.0, 38.0, 44.0))])
        write_release([photo], body, tmp_path / f"out{seed}", unfitted="blank", seed=0)
        outputs.append(picture(tmp_path / f"out{seed}"))
    assert (outputs[0][:, 90:] == decoded[0][:, 90:]).all()  # and the region is not simply everything
    return outputs, decoded, region


@pytest.mark.parametrize(
    ("suffix", "mode", "options", "exact"),
    [
        ("png", "RGB", {}, True),
        ("png", "L", {}, True),
        ("png", "RGBA", {}, True),
        ("png", "P", {}, False),
        ("png", "1", {}, False),
        ("gif", "P", {}, False),
        ("bmp", "RGB", {}, True),
        ("bmp", "P", {}, False),
        ("ppm", "RGB", {}, True),
        ("tif", "RGB", {}, True),
        ("tif", "RGB", {"compression": "tiff_lzw"}, True),
        ("tif", "RGB", {"compression": "tiff_adobe_deflate"}, True),
        ("tif", "RGB", {"compression": "jpeg"}, False),
        ("tif", "P", {}, False),
        ("jpg", "RGB", {}, True),
        ("webp", "RGB", {"lossless": True}, False),
        ("jp2", "RGB", {}, False),
    ],
)
def test_formats_that_may_spread_traces_are_counted(tmp_path, suffix, mode, options, exact):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(0)).convert(mode).save(path, **options)
    assert read_pixels(path).predicted != exact


@pytest.mark.parametrize(("size", "orientation"), [(SIZE, 2), (SIZE, 3), (SIZE, 4), ((80, 80), 6)])
def test_boxes_of_the_stored_and_of_the_upright_picture_hide_the_person(tmp_path, body, size, orientation):
    # By the size alone nobody can tell which of the two the labels are of.
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.full((size[1], size[0], 3), 50, np.uint8)
    rgb[2:20, 4:16] = (255, 0, 0)
    path = save(tmp_path / "a.png", rgb, exif=exif)
    for name, shown in (("stored", rgb), ("upright", read_pixels(path).rgb)):
        rows, columns = np.nonzero(shown[..., 0] == 255)
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        photo = Photo(path, LENS, [Person(None, box)], size)
        made = write_release([photo], body, tmp_path / name, unfitted="blank", seed=0)
        assert (picture(tmp_path / name) == (50, 50, 50)).all()
        assert made.manifest["counts"]["photographs_hidden_both_ways_up"] == 1
    made = write_release([Photo(path, LENS, photo.people)], body, tmp_path / "told", unfitted="blank")
    assert made.manifest["counts"]["photographs_hidden_both_ways_up"] == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_colours_of_transparent_pixels_are_not_read(tmp_path, mode):
    rgb, alpha = noise(0), np.full(SIZE[::-1], 255, np.uint8)
    alpha[5:20, 70:95] = 0
    alpha[30:40, 70:95] = 128
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.fromarray(rgb).quantize(16)
        image.save(path, transparency=3)
        alpha = np.where(np.asarray(image) == 3, 0, 255)
        rgb = np.asarray(image.convert("RGB"))
    else:
        image = Image.fromarray(np.dstack([rgb, alpha])).convert(mode)
        image.save(path)
        rgb = np.asarray(image.convert("RGB"))
    found = read_pixels(path).rgb
    assert not found[alpha < 255].any()
    np.testing.assert_array_equal(found[alpha == 255], rgb[alpha == 255])


def test_boxes_to_hide_may_be_tuples_lists_or_arrays(tmp_path, body, photo, unchecked):
    outputs = []
    for i, box in enumerate(((70, 3, 88, 30), [70, 3, 88, 30], np.array([70.0, 3, 88, 30]))):
        write_release([Photo(photo.path, LENS, photo.people, hide=[box])], body, tmp_path / str(i), seed=0)
        outputs.append(contents(tmp_path / str(i)))
    assert outputs[0] == outputs[1] == outputs[2]


@given(hnp.arrays(bool, (9, 11)), st.floats(0, 12))
def test_grow_adds_all_pixels_within_the_distance(region, radius):
    rows, columns = np.mgrid[:9, :11]
    near = [np.sqrt((rows - r) ** 2 + (columns - c) ** 2) <= radius for r, c in np.argwhere(region)]
    np.testing.assert_array_equal(grow(region, radius), np.any(near, axis=0) if near else region)


@given(*[st.floats(-30, 30)] * 2, *[st.floats(0, 40)] * 2, st.floats(0, 20))
def test_fill_box_contains_the_pixels_that_the_box_touches(x, y, width, height, margin):
    found = fill_box((x, y, x + width, y + height), (11, 9), margin)
    for row, column in np.ndindex(9, 11):
        overlap = min(column + 1, x + width + margin) - max(column, x - margin)
        below = min(row + 1, y + height + margin) - max(row, y - margin)
        if overlap > 1e-9 and below > 1e-9:
            assert found[row, column]
        elif overlap < -1 or below < -1:
            assert not found[row, column]


@given(hnp.arrays(bool, (37, 50), elements=st.sampled_from([False] * 40 + [True])), st.sampled_from([8, 16]))
@settings(max_examples=30)
def test_cover_blocks_covers_blocks_and_their_neighbours(region, side):
    rows, columns = np.mgrid[:37, :50] // side
    blocks = rows * 10 + columns
    expected = np.zeros_like(region)
    for row, column in np.argwhere(region):
        top, left = row // side * side, column // side * side
        expected[max(top - 1, 0) : top + side + 1, max(left - 1, 0) : left + side + 1] = True
    np.testing.assert_array_equal(cover_blocks(region, blocks), expected)


def test_a_mesh_adds_to_the_region_and_is_used_alone_only_if_chosen(body):
    outline = np.zeros(SIZE[::-1], bool)
    outline[60:64, 80:90] = True
    mesh = {"mesh_box": (80.0, 60.0, 90.0, 64.0), "outline": outline, "margin": 0.2, "dilation": 0.05}
    boxed = person_region(Person(None, BOX), SIZE, rule="auto", **mesh)
    assert boxed[[62, 30], [85, 30]].all()
    mask = np.zeros(SIZE[::-1], bool)
    mask[12:60, 20:44] = True
    masked = person_region(Person(None, None, mask), SIZE, rule="auto", **mesh)
    assert masked[[62, 30], [85, 30]].all()
    assert not masked[52, 72]
    assert boxed[52, 72]
    np.testing.assert_array_equal(person_region(Person(None, None, mask), SIZE, rule="box", **mesh), boxed)
    with pytest.raises(ReleaseError, match="neither a box nor a mask: if the fit is wrong"):
        person_region(Person(None), SIZE, rule="auto", **mesh)
    alone = person_region(Person(None), SIZE, rule="mesh", **mesh)
    np.testing.assert_array_equal(alone, enlarged(mesh["mesh_box"]))
    with pytest.raises(ReleaseError, match="a person without a box, a mask or a fit inside the picture"):
        person_region(Person(None), SIZE, rule="mesh", **mesh | {"mesh_box": (300.0, 300.0, 320.0, 330.0)})
    with pytest.raises(ReleaseError, match="is not in the picture"):
        person_region(Person(None, (200.0, 10.0, 220.0, 40.0)), SIZE, rule="auto", **mesh)


def test_a_mask_does_not_replace_the_box(body):
    none = {"mesh_box": None, "outline": None, "margin": 0.2, "dilation": 0.05}
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    speck = (np.abs(rows - 66) < 3) & (np.abs(columns - 50) < 3)
    region = person_region(Person(None, BOX, speck), SIZE, rule="auto", **none)
    near = np.any([np.hypot(rows - r, columns - c) <= 8 for r, c in np.argwhere(speck)], axis=0)
    np.testing.assert_array_equal(region, enlarged(BOX) | near)
    region = person_region(Person(None, BOX, speck), SIZE, rule="mesh", **none)
    np.testing.assert_array_equal(region, enlarged(BOX) | near)


def test_a_mask_alone_must_show_the_person(body):
    none = {"mesh_box": None, "outline": None, "margin": 0.2, "dilation": 0.0, "rule": "mask"}
    whole, beside = np.zeros(SIZE[::-1], bool), np.zeros(SIZE[::-1], bool)
    whole[14:58, 24:40] = True
    beside[12:60, 39:60] = True  # a neighbour, who reaches into the box
    points = np.array([[25.0, 20], [39, 20], [30, 55], [24, 40], [90, 5]])
    np.testing.assert_array_equal(
        person_region(Person(None, BOX, whole, points=points), SIZE, **none), grow(whole, 8)
    )
    with pytest.raises(ReleaseError, match="fills too little of the box .* to be complete"):
        person_region(Person(None, BOX, beside), SIZE, **none)
    with pytest.raises(ReleaseError, match="keypoints outside the mask"):
        person_region(Person(None, None, beside, points=points), SIZE, **none)
    with pytest.raises(ReleaseError, match="a person without a mask"):
        person_region(Person(None, BOX), SIZE, **none)


def test_people_missing_in_a_mask_are_hidden_by_their_box(tmp_path, body, labels, images):
    # The mask shows one of two neighbours, and reaches into the other's box.
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:60, 20:40] = 255
    for name, shown in (("v/a.png", mask), ("w/b.png", 0 * mask)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True)
        save(tmp_path / "masks" / name, shown)
    labels.observed[:] = 0
    photos = photos_from_labels(labels, images, body=body, masks=tmp_path / "masks")
    assert photos[1].people[0].mask is None  # nobody is in that mask
    made = write_release(photos, body, tmp_path / "out", unfitted="blank")
    name = next(name for name, path in made.sources.items() if path.name == "a.png")
    # The box of the person missing in the mask shows nothing of the photograph.
    shown, taken = picture(tmp_path / "out", f"images/{name}.png"), noise(0)
    assert (shown[10:60, 50:70] == taken[10:60, 50:70]).all(-1).mean() < 0.01
    with pytest.raises(ReleaseError, match=r"\.png: a person (with|whose mask|without) "):
        write_release(photos, body, tmp_path / "mask", unfitted="blank", region="mask")


def test_backgrounds_do_not_read_the_region_and_keep_all_other_pixels():
    rgb, other = noise(0), noise(1)
    region = enlarged((30, 20, 50, 40))
    other[~region] = rgb[~region]
    for paint in (blank, inpaint):
        painted = paint(rgb, region)
        np.testing.assert_array_equal(painted, paint(other, region))
        np.testing.assert_array_equal(painted[~region], rgb[~region])
        everything, nothing = np.ones_like(region), np.zeros_like(region)
        np.testing.assert_array_equal(paint(rgb, everything), np.full_like(rgb, 128))
        np.testing.assert_array_equal(paint(rgb, nothing), rgb)
    assert (blank(rgb, region)[region] == np.rint(rgb[~region].mean(0))).all()
    # A gradient is continued, where a mean colour is not.
    ramp = np.broadcast_to((2 * np.arange(SIZE[0]))[:, None], (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    error = np.abs(inpaint(ramp, region).astype(int) - ramp)[region].mean()
    assert error < 0.5 * np.abs(blank(ramp, region).astype(int) - ramp)[region].mean()


def test_compose_agrees_with_contact_sheet(body):
    vertices = body(standing(body)).vertices
    bare = render(vertices, body.faces, LENS, size=SIZE, background=None)
    expected = contact_sheet([bare], background="#3366cc").rgba[..., :3]
    flat = np.broadcast_to(np.array([0x33, 0x66, 0xCC], np.uint8), (SIZE[1], SIZE[0], 3))
    np.testing.assert_array_equal(compose(bare.rgba, flat), expected)
    assert ((bare.rgba[..., 3] > 0) & (bare.rgba[..., 3] < 255)).any()


# Metadata and order


def with_metadata(folder):
    """Write a PNG, a JPEG and a WebP with a name in every kind of metadata of their formats."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = exif[0x8298] = SECRET
    exif.get_ifd(0x8825)[29] = SECRET
    exif.get_ifd(0x8769)[0x9286] = SECRET.encode()
    xmp = f"<x:xmpmeta>{SECRET}</x:xmpmeta>".encode()
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + SECRET.encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", SECRET)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    png = save(folder / f"{SECRET}.png", noise(0), pnginfo=text, exif=exif, icc_profile=icc)
    jpg = save(
        folder / f"{SECRET}.jpg", noise(1), exif=exif, xmp=xmp, icc_profile=icc, comment=SECRET.encode()
    )
    webp = save(folder / f"{SECRET}.webp", noise(2), exif=exif, xmp=xmp, icc_profile=icc, lossless=True)
    thumbnail = io.BytesIO()
    Image.fromarray(noise(1)).resize((32, 24)).save(thumbnail, "JPEG")
    data = jpg.read_bytes()
    segment = b"Photoshop 3.0\x00" + thumbnail.getvalue() + SECRET.encode()
    jpg.write_bytes(data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    for path in (png, jpg, webp):
        assert SECRET.encode() in path.read_bytes()
    return png, jpg, webp


@pytest.fixture
def telling(tmp_path, body):
    """Photographs with names in all kinds of metadata, two of them frames of one sequence."""
    folder = tmp_path / f"photos of {SECRET}"
    folder.mkdir()
    png, jpg, webp = with_metadata(folder)

    def one(x):
        return [Person(standing(body, x), BOX, track=SECRET)]

    return [
        Photo(png, LENS, one(0.0), sequence=SECRET),
        Photo(webp, LENS, one(0.2), sequence=SECRET),
        Photo(jpg, LENS, one(-0.2)),
    ]


def all_bytes(folder):
    """Yield every file, every entry of every archive, and every name."""
    for name, data in contents(folder).items():
        yield name, name.encode() + data
        if name.endswith(".npz"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
                assert not archive.comment
                yield from ((name, archive.read(entry)) for entry in archive.namelist())


@pytest.mark.parametrize(
    ("background", "image_format"), [("blank", "png"), ("blank", "jpg"), ("none", "png")]
)
def test_the_output_contains_no_names_or_metadata(tmp_path, body, telling, background, image_format):
    release = write_release(telling, body, tmp_path / "out", background=background, image_format=image_format)
    words = [SECRET, str(tmp_path), "photos of"]
    needles = [w.encode(code) for w in words for code in ("utf-8", "utf-16-le", "utf-16-be")]
    needles.append(base64.b64encode(SECRET.encode())[:12])
    for name, data in all_bytes(tmp_path / "out"):
        assert not any(needle in data for needle in needles), name
    for file in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert file.stat().st_mtime == EPOCH
    assert sorted(path.name for path in release.sources.values()) == sorted(p.path.name for p in telling)


def png_chunks(data):
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8]
        at += 12 + length


def test_picture_files_contain_no_metadata_chunks(tmp_path, body, telling):
    write_release(telling, body, tmp_path / "out", image_format="jpg")
    pngs = [*(tmp_path / "out").rglob("*.png"), tmp_path / "as.png"]
    save_picture(read_pixels(telling[0].path).rgb, pngs[-1])
    assert len(pngs) == 4
    for path in pngs:
        assert set(png_chunks(path.read_bytes())) == {b"IHDR", b"IDAT", b"IEND"}
    for path in (tmp_path / "out").rglob("*.jpg"):
        with Image.open(path) as image:
            assert [marker for marker, _ in image.applist] == ["APP0"]
            assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    (clip,) = (tmp_path / "out").rglob("*.webp")
    data, at, kinds = clip.read_bytes(), 12, set()
    while at < len(data):
        kinds.add(data[at : at + 4])
        at += 8 + (size := struct.unpack("<I", data[at + 4 : at + 8])[0]) + size % 2
    assert kinds == {b"VP8X", b"ANIM", b"ANMF"}


def test_photographs_are_not_modified(tmp_path, body, telling):
    before = [(p.path.read_bytes(), p.path.stat().st_mtime_ns) for p in telling]
    write_release(telling, body, tmp_path / "out")
    assert before == [(p.path.read_bytes(), p.path.stat().st_mtime_ns) for p in telling]
    assert len(list(telling[0].path.parent.iterdir())) == 3


def test_the_manifest_lists_every_file(tmp_path, body, telling):
    release = write_release(telling, body, tmp_path / "out", background="inpaint", shape="exact", seed=7)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest == release.manifest
    found = set(contents(tmp_path / "out")) - {"manifest.json"}
    assert set(manifest["files"]) == found
    assert len(found) == 3 + 3 + 3 + 1 + 1
    for name, entry in manifest["files"].items():
        path = tmp_path / "out" / name
        assert entry == {"bytes": path.stat().st_size, "sha256": sha256(path)[0]}
    assert manifest["counts"]["pictures"] == manifest["counts"]["bodies"] == 3
    assert manifest["counts"]["photographs_of_predicting_formats"] == 1
    assert manifest["treatment"]["background"] == "inpaint"
    assert manifest["made_with"]["opencv"] == cv2.__version__  # whichever distribution it is from
    assert "7" not in json.dumps(manifest["treatment"])  # the seed would tell the order
    assert any("Only listed people are hidden" in line for line in manifest["not_guaranteed"])


def test_order_is_random_and_tracks_are_consistent(body):
    photos = [
        Photo(f"{i}.png", LENS, [Person(None, track=name) for name in "abc"], sequence="s" if i < 2 else None)
        for i in range(7)
    ]
    orders = [arrange(photos, np.random.default_rng(seed)) for seed in range(20)]
    names = [tuple(place.photo.path for place in order) for order in orders]
    assert len(set(names)) > 15  # of 720
    for order in orders:
        assert [place.image_id for place in order] == list(range(1, 8))
        frames = [place for place in order if place.sequence_id is not None]
        assert [(place.photo.path, place.frame) for place in frames] == [("0.png", 0), ("1.png", 1)]
        # A track has one number in all frames.
        numbers = [
            {person.track: number for person, number in zip(place.photo.people, place.numbers, strict=True)}
            for place in frames
        ]
        assert numbers[0] == numbers[1]
        assert sorted(numbers[0].values()) == [0, 1, 2]
    assert len({tuple(person.track for person in order[0].photo.people) for order in orders}) > 3  # of 6
    first = [zip(order[0].photo.people, order[0].numbers, strict=True) for order in orders]
    assert len({number for pairs in first for person, number in pairs if person.track == "a"}) == 3
    assert names[3] == tuple(place.photo.path for place in arrange(photos, np.random.default_rng(3)))


def test_a_seed_repeats_a_release(tmp_path, body):
    photos = [Photo(f"{i}.png", LENS, [Person(standing(body, 0.1 * i))], SIZE, None) for i in range(3)]
    made = [
        write_release(photos, body, tmp_path / str(i), background="none", seed=5).sources for i in range(2)
    ]
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert made[0] == made[1]
    orders = {
        tuple(place.photo.path for place in arrange(photos, np.random.default_rng())) for _ in range(30)
    }
    assert len(orders) > 1  # all alike once in 6^29 times


@pytest.mark.slow
def test_workers_write_the_same_release(tmp_path, body, telling, unchecked):
    pytest.importorskip("ray")
    write_release(telling, body, tmp_path / "1", seed=5)
    with local_ray(2):
        write_release(telling, body, tmp_path / "2", seed=5, cluster=Cluster(2))
        assert contents(tmp_path / "1") == contents(tmp_path / "2")
        missing = dataclasses.replace(telling[0], camera=LENS, size=(9, 9))
        with pytest.raises(ReleaseError, match=r"\.png: the fits are for \(9, 9\) pixels"):
            write_release([missing], body, tmp_path / "3", cluster=Cluster(2))
        assert not (tmp_path / "3").exists()


# Bodies, parameters and index


def test_camera_space_keeps_the_body_before_its_camera(body):
    people = batch(standing(body), standing(body, 0.5, 3, 0.7))
    camera = Camera.look_at((1.0, 2.0, -3.0), (0.0, 0.0, 3.0), size=SIZE)
    moved = to_camera_space(body, people, camera)

    def vertices(p):
        return body(p).vertices

    # float32 coordinates of a few metres, after two rotations
    torch.testing.assert_close(vertices(moved), camera.to_camera(vertices(people)), atol=5e-6, rtol=0)
    assert to_camera_space(body, people, LENS) is people


def test_generalize_removes_shape_and_keeps_the_pelvis(body):
    betas = (1.4, -2.7, 0.8, 3.0)
    person = standing(body, 0.3, 4, 0.38, betas)
    one = person.map(lambda t: t[None])
    assert generalize(body, one, "exact") is one
    coarse, mean = generalize(body, one, "coarse"), generalize(body, one, "mean")
    assert coarse.betas[0].tolist() == [1.0, -2.0, *[0.0] * (body.num_betas - 2)]
    assert coarse.age_offset.item() == pytest.approx(0.4)
    assert mean.betas.abs().sum() == 0
    assert mean.age_offset.item() == pytest.approx(0.3)  # a teen

    def pelvis(p):
        return body(p).joints[:, 0]

    for less in (coarse, mean):
        torch.testing.assert_close(pelvis(less), pelvis(one), atol=1e-6, rtol=0)
        assert torch.equal(less.body_pose, one.body_pose)
    # Two people of nearly one shape cannot be told apart.
    twin = one._replace(betas=one.betas + 0.05, age_offset=one.age_offset + 0.01)
    assert torch.equal(generalize(body, twin, "coarse").betas, coarse.betas)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("shape", ["exact", "coarse"])
def test_pictures_parameters_and_index_agree(tmp_path, body, shape):
    camera = Camera.look_at((0.2, 0.3, -4.0), (0.0, 0.1, 0.0), size=SIZE)
    people = [
        Person(standing(body, -0.7, 0.2, betas=(1.3, 0.8)), (10.0, 10.0, 40.0, 70.0), track="a"),
        Person(standing(body, 0.5, 0.0, 0.65), (50.0, 30.0, 80.0, 70.0), track="b"),
        Person(standing(body, 0.6, 1.5), (50.0, 20.0, 80.0, 70.0)),
        Person(standing(body, 9.0, 1.0), (90.0, 20.0, 99.0, 70.0)),
    ]
    photo = Photo(save(tmp_path / "a.png", noise(0)), camera, people, SIZE, sequence=0)
    release = write_release([photo], body, tmp_path / "out", shape=shape, seed=1)
    assert release.manifest["counts"]["people_out_of_view"] == 1
    index = COCO(tmp_path / "out/annotations.json")
    arrays = np.load(tmp_path / "out/parameters/000001.npz")
    assert set(arrays) == {*BodyParameters._fields, "focal", "center", "size"}
    fit = BodyParameters(*(torch.from_numpy(arrays[name]) for name in BodyParameters._fields))
    lens = Camera(torch.from_numpy(arrays["focal"]), torch.from_numpy(arrays["center"]))
    points = lens.project(body.keypoints("coco17", fit)).pixels
    boxes = lens.project(body(fit).vertices).pixels
    shown = render(body(fit).vertices, body.faces, lens, size=SIZE, background="#f3efe9", light_rays=0)
    annotations = index.loadAnns(index.getAnnIds())
    assert len(annotations) == len(arrays["transl"]) == 3
    assert sorted(a["age_class"] for a in annotations) == ["adult", "adult", "kid"]
    assert sorted(a.get("track_id", -1) for a in annotations) == [-1, 0, 1]
    for entry in annotations:
        row = entry["row"]
        found = np.array(entry["keypoints"]).reshape(-1, 3)
        labelled = found[:, 2] > 0
        # rounded to hundredths of a pixel; parameters in float32
        np.testing.assert_allclose(found[labelled, :2], points[row].numpy()[labelled], atol=0.006)
        assert entry["num_keypoints"] == labelled.sum()
        low, high = boxes[row].amin(0).clamp(min=0), boxes[row].amax(0).minimum(torch.tensor(SIZE))
        np.testing.assert_allclose(entry["bbox"], [*low.tolist(), *(high - low).tolist()], atol=0.011)
        mask = index.annToMask(entry).astype(bool)
        # Camera and parameters went through float32 once more, which moves an outline by less than a pixel.
        assert np.count_nonzero(mask != (shown.instance == row)) <= 3
        assert entry["area"] == mask.sum() > 50
        assert ((found[:, :2] > 0).all(1) == labelled).all()
    hidden = [a for a in annotations if 1 in a["keypoints"][2::3]]
    assert len(hidden) == 1  # the one behind
    assert hidden[0]["age_class"] == "adult"
    np.testing.assert_array_equal(picture(tmp_path / "out").shape, (SIZE[1], SIZE[0], 3))


def test_a_body_of_one_age_has_no_age_class(tmp_path, mannequin_asset):
    body = agebody.SMPL(mannequin_asset)
    photo = Photo(save(tmp_path / "a.png", noise(0)), LENS, [Person(standing(body), BOX)])
    write_release([photo], body, tmp_path / "out", shape="mean")
    (entry,) = json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]
    assert "age_class" not in entry


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_agree_with_pycocotools(mask):
    found = run_lengths(mask)
    decoded = coco_mask.decode(coco_mask.frPyObjects(found, *mask.shape))
    np.testing.assert_array_equal(decoded.astype(bool), mask)
    assert sum(found["counts"]) == mask.size


def test_keypoints_behind_another_body_or_outside_are_marked(body):
    people = batch(standing(body, 0, 3), standing(body, 0, 5))
    bodies = view_bodies(body, people, LENS, SIZE, layout=agebody.LAYOUTS["coco17"])
    assert (bodies.visibility[0] > 1).sum() >= 13
    assert (bodies.visibility[1] == 1).sum() >= 8
    away = people._replace(transl=people.transl + torch.tensor([30.0, 0, 0]))
    bodies = view_bodies(body, away, LENS, SIZE, layout=agebody.LAYOUTS["coco17"])
    assert not bodies.visibility.any()
    assert not bodies.keypoints.any()
    behind = people._replace(transl=-people.transl)
    assert np.isnan(view_bodies(body, behind, LENS, SIZE, layout=agebody.LAYOUTS["coco17"]).boxes).all()


def test_a_sequence_becomes_a_clip(tmp_path, body):
    photos = []
    for i in range(4):
        people = [Person(standing(body, -0.5 + 0.3 * i), BOX, track=3)]
        path = save(tmp_path / f"{i}.png", noise(i))
        photos.append(Photo(path, LENS, people if i != 1 else [], sequence="s"))
    release = write_release(photos, body, tmp_path / "out", fps=10)
    assert release.manifest["counts"]["photographs_left_out_without_people"] == 1
    with Image.open(tmp_path / "out/clips/0001.webp") as clip:
        assert clip.n_frames == 3
        assert clip.size == SIZE
        columns = []
        for frame in range(3):
            clip.seek(frame)
            clip.load()
            assert clip.info["duration"] == 100
            columns.append(np.nonzero(np.asarray(clip.convert("L")) < 200)[1].mean())
    assert columns == sorted(columns)
    index = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["frame"] for image in index["images"]] == [0, 1, 2]
    assert {a["track_id"] for a in index["annotations"]} == {0}
    assert [release.sources[f"{image['id']:06d}"].name for image in index["images"]] == [
        "0.png",
        "2.png",
        "3.png",
    ]
    odd = Photo(save(tmp_path / "odd.png", noise(9, (80, 74))), LENS, photos[0].people, sequence="s")
    with pytest.raises(ReleaseError, match="frames of a sequence: expected one size"):
        write_release([*photos, odd], body, tmp_path / "odd")


# What is refused


def test_people_without_a_fit(tmp_path, body, photo):
    photos = [
        photo,
        Photo(save(tmp_path / "b.png", noise(1)), LENS, [*photo.people, Person(None, (70, 10, 90, 60))]),
    ]
    with pytest.raises(ReleaseError, match=r"b\.png: 1 of 2 people have no fit"):
        write_release(photos, body, tmp_path / "out")
    dropped = write_release(photos, body, tmp_path / "drop", unfitted="drop")
    assert dropped.manifest["counts"]["photographs_left_out_unfitted"] == 1
    assert [path.name for path in dropped.sources.values()] == ["a.png"]
    hidden = write_release(photos, body, tmp_path / "blank", unfitted="blank")
    assert hidden.manifest["counts"]["people_hidden_without_body"] == 1
    name = next(name for name, path in hidden.sources.items() if path.name == "b.png")
    shown = picture(tmp_path / "blank", f"images/{name}.png")
    assert (shown[10:60, 75:90] == shown[10, 75]).all()
    nobody = Photo(photos[1].path, LENS, [*photo.people, Person(None)])
    with pytest.raises(ReleaseError, match=r"b\.png: a person with neither a box nor a mask"):
        write_release([nobody], body, tmp_path / "out", unfitted="blank")


def test_photographs_without_listed_people_are_left_out(tmp_path, body, photo):
    empty = Photo(save(tmp_path / "b.png", noise(1)), LENS, [])
    release = write_release([empty, photo], body, tmp_path / "out")
    assert release.manifest["counts"]["photographs_left_out_without_people"] == 1
    assert len(release.sources) == 1
    with pytest.raises(ReleaseError, match="no photograph is left to release"):
        write_release([empty], body, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_same_picture_twice_is_refused(tmp_path, body, photo):
    # Each would show whom the other hides.
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(photo.path).read_bytes())
    other = Photo(copy, LENS, [Person(standing(body, 0.4), (70, 10, 90, 60))])
    with pytest.raises(ReleaseError, match=r"copy\.png: the same picture as .*a\.png"):
        write_release([photo, other], body, tmp_path / "out")
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = np.ascontiguousarray(noise(0)[::-1, ::-1])
    for path in (save(tmp_path / "b.bmp", noise(0)), save(tmp_path / "turned.png", turned, exif=exif)):
        with pytest.raises(ReleaseError, match="the same picture as"):
            write_release([photo, Photo(path, LENS, other.people)], body, tmp_path / "out")


def test_a_fit_without_box_and_mask_is_refused(tmp_path, body):
    photo = Photo(save(tmp_path / "a.png", noise(0)), LENS, [Person(standing(body))])
    with pytest.raises(ReleaseError, match='choose the region "mesh" to rely on the fits'):
        write_release([photo], body, tmp_path / "out")
    write_release([photo], body, tmp_path / "mesh", region="mesh")
    write_release([photo], body, tmp_path / "none", background="none")


def test_without_background_photographs_are_not_read(tmp_path, body):
    photo = Photo(tmp_path / "nowhere.png", LENS, [Person(standing(body))], SIZE)
    write_release([photo], body, tmp_path / "out", background="none")
    assert not (tmp_path / "out/images").exists()
    with pytest.raises(FileNotFoundError):
        write_release([photo], body, tmp_path / "out2", region="mesh")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": "blur"}, "background: expected one of blank, inpaint, none, got 'blur'"),
        ({"region": "face"}, "region: expected one of auto, box, mask, mesh"),
        ({"shape": "none"}, "shape: expected one of mean, coarse, exact"),
        ({"unfitted": "keep"}, "unfitted: expected one of refuse, drop, blank"),
        ({"image_format": "gif"}, "image_format: expected one of png, jpg"),
        ({"margin": -0.1}, "margin: expected a share of 0 or more"),
        ({"dilation": float("nan")}, "dilation: expected a share of 0 or more"),
        ({"fps": 0}, "fps: expected more than 0"),
        ({"layout": "coco18"}, "coco18"),
    ],
)
def test_bad_options_are_named(tmp_path, body, photo, change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        write_release([photo], body, tmp_path / "out", **change)
    assert sorted(os.listdir(tmp_path)) == ["a.png"]


def broken(photo, **changes):
    person = photo.people[0]
    return Photo(photo.path, LENS, [person._replace(**changes)])


def test_bad_people_are_named(tmp_path, body, photo):
    good = photo.people[0].parameters
    cases = [
        ({"box": (20.0, 12.0, float("nan"), 40.0)}, "box: expected corners"),
        ({"box": (40.0, 12.0, 20.0, 40.0)}, "box: expected corners"),
        ({"mask": np.zeros((5, 5), bool)}, "expected a mask of 100 x 74 pixels"),
        ({"mask": np.zeros((74, 100), bool)}, "the mask is empty"),
        ({"mask": save(tmp_path / "m.png", np.zeros((74, 100), np.uint8))}, "m.png: the mask is empty"),
        ({"parameters": good._replace(betas=torch.zeros(3))}, r"betas: expected shape \(10,\)"),
        (
            {"parameters": good._replace(transl=torch.full((3,), torch.nan))},
            "transl: expected finite numbers in a fit",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(ReleaseError, match=r"a\.png: .*" + message):
            write_release([broken(photo, **changes)], body, tmp_path / "out")
    with pytest.raises(
        ReleaseError, match=r"the fits are for \(99, 74\) pixels, the picture has \(100, 74\)"
    ):
        write_release([Photo(photo.path, LENS, photo.people, (99, 74))], body, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "m.png"]


# Reading pictures


@pytest.mark.parametrize("orientation", range(9))
def test_pictures_are_turned_by_their_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.repeat(np.repeat(noise(0, (10, 7)), 8, 0), 8, 1)
    path = save(tmp_path / "a.jpg", rgb, exif=exif, subsampling="4:2:0")
    found = read_pixels(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(found.rgb, np.asarray(ImageOps.exif_transpose(image)))
        as_stored = np.asarray(image)
    # Blocks of 16 pixels, counted from the corner where the file begins; pixels and blocks turn alike.
    ids = np.add.outer(np.arange(56) // 16 * 5, np.arange(80) // 16)
    pairs = {
        (i, *color) for i, color in zip(ids.ravel().tolist(), as_stored.reshape(-1, 3).tolist(), strict=True)
    }
    turned = {
        (i, *color)
        for i, color in zip(found.blocks.ravel().tolist(), found.rgb.reshape(-1, 3).tolist(), strict=True)
    }
    assert turned == pairs
    sideways = read_pixels(path, (80, 56))
    if orientation in (5, 6, 7, 8):  # labels made without looking at EXIF
        np.testing.assert_array_equal(sideways.rgb, as_stored)
        np.testing.assert_array_equal(sideways.blocks, ids)
    else:
        np.testing.assert_array_equal(sideways.rgb, found.rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_all_8_bit_modes_are_read(tmp_path, mode):
    image = Image.fromarray(noise(0)).convert(mode)
    image.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    (path,) = tmp_path.iterdir()
    found = read_pixels(path)
    assert found.size == SIZE
    if mode != "CMYK":
        np.testing.assert_array_equal(found.rgb, np.asarray(image.convert("RGB")))


def test_damaged_and_unsupported_pictures_are_refused(tmp_path, body, photo):
    data = Path(photo.path).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("cut", "damaged"), ("text", "not an image that can be read")):
        path = tmp_path / f"{name}.png"
        with pytest.raises(AnnotationError, match=rf"^\S+{name}\.png: .*{message}"):
            write_release([Photo(path, LENS, photo.people)], body, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "nowhere.png")
    assert not (tmp_path / "out").exists()


# The folder


def test_a_failure_leaves_nothing(tmp_path, body, photo, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("agebody.pipelines.release.write.make_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        write_release([photo], body, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.png"]


def test_a_key_is_written_with_its_release_or_not_at_all(tmp_path, body, photo, monkeypatch):
    key = tmp_path / "key.json"
    write_release([photo], body, tmp_path / "out", key=key, seed=0)
    assert json.loads(key.read_text()) == {"000001": str(photo.path)}
    assert key.stat().st_mode & 0o777 == 0o600
    first = contents(tmp_path)
    with pytest.raises(FileExistsError, match="a key is never replaced"):
        write_release([photo], body, tmp_path / "out", key=key, overwrite=True)
    for place in ("out2", "out2/key.json"):
        with pytest.raises(ReleaseError, match="must not be in the folder that is shared"):
            write_release([photo], body, tmp_path / "out2", key=tmp_path / place)
    rename, link = os.rename, os.link

    def fail_at_the_folder(source, target):
        if Path(source).is_dir():
            assert (tmp_path / "key2.json").exists()  # so that no release can be without its key
            raise OSError(28, "No space left on device")
        rename(source, target)

    def fail_at_the_key(source, target):
        if Path(target).name == "key2.json":
            Path(target).write_text("of another")
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail_at_the_folder)
        with pytest.raises(OSError, match="No space left"):
            write_release([photo], body, tmp_path / "out2", key=tmp_path / "key2.json")
    assert contents(tmp_path) == first
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail_at_the_key)
        with pytest.raises(FileExistsError):
            write_release([photo], body, tmp_path / "out2", key=tmp_path / "key2.json")
    assert contents(tmp_path) == first | {"key2.json": b"of another"}


def test_only_an_unchanged_release_is_replaced(tmp_path, body, photo):
    out = tmp_path / "out"
    write_release([photo], body, out, seed=0)
    first = contents(out)
    with pytest.raises(FileExistsError, match="the folder exists; pass overwrite=True"):
        write_release([photo], body, out)
    write_release([photo], body, out, background="none", overwrite=True)
    assert not (out / "images").exists()
    write_release([photo], body, out, seed=0, overwrite=True)
    assert contents(out) == first
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt in it was not written by a release"):
        write_release([photo], body, out, overwrite=True)
    (out / "notes.txt").unlink()
    (out / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine in it was not written by a release"):
        write_release([photo], body, out, overwrite=True)
    (out / "mine").rmdir()
    (out / "annotations.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"annotations\.json in it was not written"):
        write_release([photo], body, out, overwrite=True)
    assert contents(out) == first | {"annotations.json": b"{}"}
    assert sorted(os.listdir(tmp_path)) == ["a.png", "out"]


def test_other_folders_and_files_are_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed/manifest.json").write_text('{"files": ["a.png"]}')
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    before = sorted(map(str, tmp_path.rglob("*")))
    for name, message in (
        ("photos", "not written by a release"),
        ("file", "a file of that name"),
        ("listed", "not written by a release"),
    ):
        with pytest.raises(FileExistsError, match=message), new_folder(tmp_path / name, overwrite=True):
            raise AssertionError("never reached")
    with (
        pytest.raises(FileNotFoundError, match="does not exist; create it first"),
        new_folder(tmp_path / "no/out", overwrite=False),
    ):
        raise AssertionError("never reached")
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    with new_folder(tmp_path / "empty", overwrite=True) as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "empty/a").read_text() == "a"


def test_without_opencv_the_error_names_the_extra(tmp_path, body, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"agebody\[release\]"):
        write_release([photo], body, tmp_path / "out", background="inpaint")
    assert not (tmp_path / "out").exists()
    write_release([photo], body, tmp_path / "out")


# From labels


@pytest.fixture
def labels(body, mannequin_asset, unchecked):
    """Three people in two photographs; the last fit is flagged."""
    fits = [standing(body, -0.5), standing(body, 0.5, age=0.6), standing(body)]
    parameters = {
        name: np.stack([part.numpy() for part in parts])
        for name, parts in zip(BodyParameters._fields, zip(*fits, strict=True), strict=True)
    }
    observed = np.zeros((3, 17, 3))
    observed[:, 0] = (5, 40, 1)
    observed[:, 1] = (999, 999, 0)
    one, flags = np.ones(3), np.ones(3, bool)
    return Labels(
        body=mannequin_asset.metadata.name,
        joint_names=mannequin_asset.joint_names,
        keypoint_layout="coco17",
        ids=np.arange(3),
        image_ids=np.array(["v/a.png", "v/a.png", "w/b.png"]),
        image_sizes=np.tile(SIZE, (3, 1)),
        focal=np.full((3, 2), 90.0),
        center=np.tile((50.0, 37.0), (3, 1)),
        distortion=np.zeros((3, 8)),
        observed=observed,
        keypoints=observed[..., :2],
        joints=np.zeros((3, body.num_joints, 3)),
        depth=one,
        boxes=np.array([[20.0, 10, 40, 60], [50, 10, 70, 60], [30, 10, 60, 60]]),
        scores=one,
        reprojection=one,
        start_reprojection=one,
        converged=flags,
        iterations=np.ones(3, int),
        stop=np.array(["gradient"] * 3),
        cost=one,
        kept=np.array([True, True, False]),
        age_known=flags,
        age_class=np.zeros(3, int),
        age_offset_sd=one,
        stature=one,
        stature_sd=one,
        depth_sd=one,
        track=np.full(3, -1),
        **parameters,
    )


@pytest.fixture
def images(tmp_path):
    for i, name in enumerate(("v/a.png", "w/b.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        save(tmp_path / "photos" / name, noise(i))
    return tmp_path / "photos"


def test_labels_become_photographs(tmp_path, body, labels, images):
    first, second = photos_from_labels(labels, images, body=body, sequences=True)
    assert (first.path, first.size, first.sequence) == (images / "v/a.png", SIZE, "v")
    assert [person.box for person in first.people] == [(5, 10, 40, 60), (5, 10, 70, 60)]
    assert torch.equal(first.people[1].parameters.age_offset, torch.tensor(0.6))
    assert second.people[0].parameters is None
    assert photos_from_labels(labels, images, body=body)[0].sequence is None

    annotations = {
        "images": [
            {"id": 4, "file_name": "v/a.png", "width": 100, "height": 74},
            {"id": 5, "file_name": "other.png"},
            {"id": 6, "file_name": "w/b.png", "width": 100, "height": 74},
        ],
        "annotations": [{"image_id": 4, "bbox": [1, 2, 3, 4]}, {"image_id": 5, "bbox": [0, 0, 1, 1]}],
    }
    (tmp_path / "all.json").write_text(json.dumps(annotations))
    save(images / "other.png", noise(5))  # a photograph that is not released
    masks = tmp_path / "masks"
    for name in ("v/a.png", "w/b.png"):
        (masks / name).parent.mkdir(parents=True)
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[20:40, 35:40] = mask[70:, 95:] = 255
        save(masks / name, mask)
    first, second = photos_from_labels(labels, images, body=body, masks=masks, hide=tmp_path / "all.json")
    assert first.hide[0] == (1, 2, 4, 6)
    assert np.argwhere(first.hide[1]).min(0).tolist() == [70, 95]
    assert first.people[0].mask[20:40, 35:40].all()
    assert first.people[0].mask.sum() == 100
    assert len(second.hide) == 1
    (masks / "v/a.png").unlink()
    with pytest.raises(ReleaseError, match=r"v.a\.png: the mask does not exist"):
        photos_from_labels(labels, images, body=body, masks=masks)
    (tmp_path / "all.json").write_text('{"images": [], "annotations": [{}]}')
    with pytest.raises(AnnotationError, match=r"all\.json: no image is named v/a\.png"):
        photos_from_labels(labels, images, body=body, hide=tmp_path / "all.json")
    other = agebody.SMPLA(random_body())
    with pytest.raises(ReleaseError, match="the labels are of the body 'mannequin', not of 'random'"):
        photos_from_labels(labels, images, body=other)


HIDDEN = (300, 200, 40, 80)
"""x, y, width, height of somebody whom only --hide names."""


@pytest.fixture
def crowd(tmp_path, labels):
    """Labels of one person, whose photograph shows a second, in red, and what hides that one."""
    size = (400, 300)
    rgb = noise(0, size) // 2
    x, y, width, height = HIDDEN
    rgb[y : y + height, x : x + width] = (255, 0, 0)
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos/a.png", rgb)
    one = labels.select(slice(0, 1))
    one = dataclasses.replace(one, image_ids=np.array(["a.png"]), image_sizes=np.array([size]))
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 300}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": list(HIDDEN)}],
    }
    return one, document


def seen_of_the_hidden(tmp_path, body, labels, text):
    """Release with a file of annotations; return whether anything of the second person is in the picture."""
    (tmp_path / "hide.json").write_text(text)
    photos = photos_from_labels(labels, tmp_path / "photos", body=body, hide=tmp_path / "hide.json")
    write_release(photos, body, tmp_path / "out", unfitted="blank")
    shown = picture(tmp_path / "out").astype(int)
    return bool(((shown[..., 0] > 200) & (shown[..., 1:] < 60).all(-1)).any())


def outline():
    mask = np.zeros((300, 400), np.uint8)
    x, y, width, height = HIDDEN
    mask[y : y + height, x : x + width] = 1
    return mask


X, Y, W, H = HIDDEN
POLYGON = [X, Y, X + W, Y, X + W, Y + H, X, Y + H]
SPECK = [X, Y, 4, 4]


@pytest.mark.parametrize(
    "entry",
    [
        {"bbox": list(HIDDEN)},
        {"bbox": [float(value) for value in HIDDEN], "iscrowd": 1, "ignore": 1, "category_id": 99},
        {"bbox": None, "segmentation": [POLYGON[:6], POLYGON[2:]]},
        {"bbox": [], "segmentation": POLYGON},
        {"bbox": SPECK, "segmentation": [POLYGON]},
        {"bbox": SPECK, "segmentation": run_lengths(outline().astype(bool))},
        {"bbox": SPECK, "segmentation": {**coco_mask.encode(np.asfortranarray(outline()))}},
        {"bbox": SPECK, "keypoints": [X, Y, 2, X + W, Y + H, 1, 0, 0, 0]},
        {"bbox": SPECK, "face_kpts": [X, Y, 2], "foot_kpts": [X + W, Y + H, 1, 0, 0, 0], "num_keypoints": 0},
        {"bbox": SPECK, "lefthand_box": [0, 0, 0, 0], "fbox": list(HIDDEN)},
        {"bbox": SPECK, "bbox_head": list(HIDDEN), "bbox_score": 0.9, "bbox_scale": [1.0, 2.0]},
        {
            "bbox": SPECK,
            "Boxes": [[0, 0, 0, 0], list(HIDDEN)],
            "dp_masks": [{}],
            "has_mask": 1,
            "joints_3d": [1],
        },
        {"bbox": None, "bbox_xyxy": [X, Y, X + W, Y + H]},
    ],
)
def test_whatever_an_entry_places_is_hidden(tmp_path, body, crowd, entry):
    labels, document = crowd
    elsewhere = document["annotations"][0] | {"bbox": [150, 0, 9, 9]}
    assert seen_of_the_hidden(tmp_path, body, labels, json.dumps({**document, "annotations": [elsewhere]}))
    shutil.rmtree(tmp_path / "out")
    document["annotations"][0] |= entry
    text = json.dumps(document, default=bytes.decode)
    assert not seen_of_the_hidden(tmp_path, body, labels, text)


def change(**values):
    return lambda document: document["annotations"][0].update(values)


def picture_change(**values):
    return lambda document: document["images"][0].update(values)


def add_picture(name, **values):
    def spoil(document):
        document["images"].append({"id": 2, "file_name": name, "width": 400, "height": 300} | values)
        document["annotations"][0]["image_id"] = 2

    return spoil


UNCLEAR = {
    "shares": change(bbox=[X / 400, Y / 300, W / 400, H / 300]),
    "percent": change(bbox=[X / 4, Y / 3, W / 4, H / 3], keypoints=[]),
    "all of it in shares": change(bbox=[0, 0, 1, 1]),
    "zeros": change(bbox=[0, 0, 0, 0]),
    "no height": change(bbox=[X, Y, W, 0]),
    "negative": change(bbox=[X + W, Y + H, -W, -H]),
    "booleans": change(bbox=[True, True, True, True]),
    "strings": change(bbox=list(map(str, HIDDEN))),
    "infinite": change(bbox=[X, Y, W, math.inf]),
    "huge": change(bbox=[X, Y, W, 10**400]),
    "outside": change(bbox=[2 * X, 2 * Y, W, H]),
    "half outside": change(bbox=[X + 90, Y, W, H]),
    "three": change(bbox=[X, Y, W]),
    "whole box in shares": change(fbox=[X / 400, Y / 300, W / 400, H / 300]),
    "object": change(bbox={"x": X}),
    "about its centre": change(bbox=SPECK, bbox_cxcywh=[X + W / 2, Y + H / 2, W, H]),
    "y first": change(bbox=SPECK, bbox_yxyx=[Y, X, Y + H, X + W]),
    "no entry": lambda document: document.update(annotations=[]),
    "entries of other photographs alone": add_picture("b.png"),
    "corners turned": change(bbox_xyxy=[X + W, Y + H, X, Y]),
    "a box of five": change(bbox_head=[*HIDDEN, 1]),
    "landmarks": change(landmarks=[X, Y, X + W, Y + H]),
    "another polygon": change(polygon=[{"x": X, "y": Y}]),
    "a file of a mask": change(head_mask="masks/1.png"),
    "nothing": change(bbox=None),
    "false polygon": change(segmentation=True),
    "polygon of two points": change(segmentation=[POLYGON[:4]]),
    "polygon with NaN": change(segmentation=[[*POLYGON[:5], math.nan]]),
    "mask of half the size": change(segmentation={"size": [150, 200], "counts": [0, 30000]}),
    "mask turned": change(segmentation={"size": [400, 300], "counts": [0, 120000]}),
    "mask too short": change(segmentation={"size": [300, 400], "counts": [5, 5]}),
    "negative runs": change(segmentation={"size": [300, 400], "counts": [120005, -5]}),
    "broken runs": change(segmentation={"size": [300, 400], "counts": "Z~"}),
    "runs that never end": change(segmentation={"size": [300, 400], "counts": "o" * 100}),
    "keypoints in shares": change(bbox=None, keypoints=[0.7, 0.6, 2, 0.8, 0.9, 2]),
    "keypoints of nowhere": change(bbox=None, keypoints=[X, Y, 0]),
    "image of no number": change(image_id=None),
    "image of another number": change(image_id=7),
    "image of a boolean": change(image_id=True),
    "image of a list": change(image_id=[1]),
    "no size": lambda document: [document["images"][0].pop(key) for key in ("width", "height")],
    "half the size": picture_change(width=200, height=150),
    "turned": picture_change(width=300, height=400),
    "size of booleans": picture_change(width=True, height=True),
    "two images of one number": lambda document: document["images"].append({**document["images"][0]}),
    "numbers that are alike": lambda document: document["images"].append(
        {**document["images"][0], "id": "1", "file_name": "b.png"}
    ),
    "other case": add_picture("A.png"),
    "other suffix": add_picture("a.PNG"),
    "other folder": add_picture("photos/a.png"),
    "no folder above": add_picture("../photos/a.png"),
    "absolute": add_picture("/photos/a.png"),
    "link to it": add_picture("link.png"),
    "nowhere": add_picture("nowhere.png"),
    "number": add_picture(1),
    "lists instead": lambda document: document.update(annotations={}),
    "no images": lambda document: document.pop("images"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_uncertain_hiding_ends_the_release(tmp_path, body, crowd, kind):
    labels, document = crowd
    (tmp_path / "photos/link.png").symlink_to(tmp_path / "photos/a.png")
    save(tmp_path / "photos/b.png", noise(1))
    UNCLEAR[kind](document)
    with pytest.raises(ReleaseError, match=r"hide\.json: ") as caught:
        seen_of_the_hidden(tmp_path, body, labels, json.dumps(document))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_other_unicode_forms_end_the_release(tmp_path, body, crowd, form):
    labels, document = crowd
    name = unicodedata.normalize(form, "ä.png")
    (tmp_path / "photos/a.png").rename(tmp_path / "photos" / name)
    labels = dataclasses.replace(labels, image_ids=np.array([name]))
    document["images"][0]["file_name"] = name
    assert not seen_of_the_hidden(tmp_path, body, labels, json.dumps(document))
    other = "NFD" if form == "NFC" else "NFC"
    document["images"][0]["file_name"] = unicodedata.normalize(other, name)
    with pytest.raises(ReleaseError, match="no image is named"):
        seen_of_the_hidden(tmp_path, body, labels, json.dumps(document))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"images": 1e999, "annotations": []}',
        "\ufeff" + "{}",
        '{"images": [], "images": [], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 300}], "annotations": '
        '[{"image_id": 1, "bbox": [300, 200, 40, 80], "bbox": [0, 0, 9, 9]}]}',
    ],
)
def test_files_that_are_not_clear_end_the_release(tmp_path, body, crowd, text):
    with pytest.raises(ReleaseError, match=r"hide\.json: "):
        seen_of_the_hidden(tmp_path, body, crowd[0], text)


@given(hnp.arrays(bool, (7, 9)), st.booleans())
def test_corners_of_masks_agree_with_pycocotools(mask, compressed):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = {"size": [7, 9], "counts": encoded["counts"].decode()} if compressed else run_lengths(mask)
    corners = _mask_corners("here", runs, (9, 7))
    if not mask.any():
        assert not len(corners)
    else:
        rows, columns = np.nonzero(mask)
        low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
        assert (corners[0] <= low).all()  # a run over several columns counts as all of them
        assert (corners[1] >= high).all()
        assert corners[:, 0].tolist() == [low[0], high[0]]


def test_one_photograph_with_two_cameras_or_masks_is_refused(tmp_path, body, labels, images):
    focal = labels.focal.copy()
    focal[1] = 500
    with pytest.raises(ReleaseError, match=r"v/a\.png: the labels have two cameras"):
        photos_from_labels(dataclasses.replace(labels, focal=focal), images, body=body)
    names = np.array(["v/a.png", "v/a.png", "v/a.jpg"])
    (tmp_path / "masks/v").mkdir(parents=True)
    save(tmp_path / "masks/v/a.png", np.full(SIZE[::-1], 255, np.uint8))
    with pytest.raises(ReleaseError, match=r"a\.png: would be the mask of v/a\.jpg and of v/a\.png"):
        photos_from_labels(
            dataclasses.replace(labels, image_ids=names), images, body=body, masks=tmp_path / "masks"
        )


@pytest.mark.parametrize("shape", ["coarse", "mean"])
@pytest.mark.parametrize("region", ["auto", "box", "mask", "mesh"])
def test_regions_do_not_reveal_the_exact_shape(tmp_path, body, shape, region):
    # People whose released bodies are equal, in one place, from small to tall: no released pixel differs.
    mask = np.zeros(SIZE[::-1], bool)
    mask[30:40, 45:55] = True
    outputs = []
    for age, betas in ((0.36, (1.49, -1.51, 3.0)), (0.44, (0.51, -3.0, -3.0))):
        person = standing(body, 0, 4, age, betas)
        pelvis = body.shape(person).rest_joints[0]
        person = person._replace(transl=torch.tensor([0.0, -0.25, 2.6]) - pelvis)
        path = save(tmp_path / "a.png", noise(0))
        box = (45.0, 30.0, 55.0, 40.0)
        photo = Photo(path, LENS, [Person(person, box, mask if region in ("auto", "mask") else None)])
        options = Options("blank", region, 0.2, 0.05, shape, "refuse", agebody.LAYOUTS["coco17"], "png", 25.0)
        outputs.append(make_scene(photo, [0], body, options).background)
        # And it is not the exact body that happens to be as large.
        exact = make_scene(photo, [0], body, dataclasses.replace(options, shape="exact")).background
        outputs.append(exact)
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert (outputs[1] != outputs[3]).any()


def test_box_sides_are_rounded_to_a_step(body):
    boxes = np.random.default_rng(0).uniform((10, 10, 50, 60), (18, 18, 58, 68), (300, 4))
    regions = {hide_box(tuple(box.tolist()), (100, 100), 0.2).tobytes() for box in boxes}
    assert len(regions) < 60  # of 300 boxes with sides of 32 to 58 pixels, in steps of 4


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_releases_fitted_labels(tmp_path, labels, images):
    labels.save(tmp_path / "labels.npz")
    command = ("release", images, tmp_path / "labels.npz", "-o", tmp_path / "out")  # the body of the labels
    result = run(*command)
    assert result.exit_code == 1
    assert "b.png: 1 of 1 people have no fit" in result.stderr
    assert len(result.stderr.split("\n\n")[0].splitlines()) == 1
    key = tmp_path / "key.json"
    result = run(*command, "--unfitted", "drop", "--key", key, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "1 picture, 2 bodies" in result.stdout
    assert "photographs left out unfitted: 1" in result.stdout
    assert "only the people of the labels are hidden" in result.stderr
    assert json.loads(key.read_text()) == {"000001": str(images / "v/a.png")}
    assert key.stat().st_mode & 0o077 == 0
    assert (tmp_path / "out/images/000001.png").is_file()
    again = run(*command)
    assert again.exit_code == 1
    assert "the folder exists" in again.stderr
    assert "give --overwrite to replace a release" in again.stderr
    again = run(*command, "--unfitted", "drop", "--overwrite", "--key", key)
    assert again.exit_code == 1
    assert "a key is never replaced" in again.stderr
    assert json.loads(key.read_text()) == {"000001": str(images / "v/a.png")}
    new = (*command[:-1], tmp_path / "new")
    inside = run(*new, "--key", tmp_path / "new/key.json")
    assert inside.exit_code == 1
    assert "key must not be in the folder that is shared" in inside.stderr
    for wrong in (
        ("--background", "blur"),
        ("--shape", "round"),
        ("--dilation", "inf"),
        ("--margin", "nan"),
    ):
        assert run(*new, *wrong).exit_code == 2
    none = run(*command[:-1], tmp_path / "none", "--unfitted", "blank", "--background", "none")
    assert none.exit_code == 0
    assert "hidden;" not in none.stderr
    (tmp_path / "bad.npz").write_text("no labels")
    bad = run("release", images, tmp_path / "bad.npz", "--body", "mannequin", "-o", tmp_path / "bad")
    assert bad.exit_code == 1
    assert bad.stderr.startswith("error: ")
