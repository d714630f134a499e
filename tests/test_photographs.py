"""Images of every format and kind are read upright in 8 bits, or refused by name; none starts a program."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from agebody.annotations import AnnotationError, read_people
from agebody.annotations.photographs import (
    FORMATS,
    Photographs,
    exif_focal,
    is_upright_jpeg,
    open_image,
    photograph_size,
    read_exif_focals,
    read_photograph,
)
from agebody.pipelines.labels.place_images import _read_map
from agebody.pipelines.release.photos import load_mask, read_pixels

SIZE = (48, 32)
READERS = {
    "photograph_size": photograph_size,
    "read_photograph": read_photograph,
    "is_upright_jpeg": is_upright_jpeg,
    "read_pixels": read_pixels,
    "load_mask": lambda path: load_mask(path, SIZE),
    "depth map": _read_map,
}
"""Every function that opens images."""
DECODERS = {
    name: read for name, read in READERS.items() if name not in ("photograph_size", "is_upright_jpeg")
}

UNDO = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""From the upright picture to the one that a camera stores with each orientation."""


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_photographs_are_read_as_they_are_shown(tmp_path, kind, orientation):
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:16, :16] = (255, 0, 0)
    shown[16:, 32:] = (0, 0, 255)
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(UNDO[orientation](shown))
    path = tmp_path / f"photo.{kind}"
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    assert photograph_size(path) == SIZE
    for found in (read_photograph(path), read_photograph(path, SIZE)):
        np.testing.assert_array_equal(found, shown)
    for found in (read_pixels(path), read_pixels(path, SIZE)):
        np.testing.assert_array_equal(found.rgb, shown)
    np.testing.assert_array_equal(load_mask(path, SIZE), shown.any(-1))
    if orientation > 4:  # annotations that were made without turning it
        np.testing.assert_array_equal(read_photograph(path, SIZE[::-1]), stored)
        np.testing.assert_array_equal(read_pixels(path, SIZE[::-1]).rgb, stored)
    with pytest.raises(AnnotationError, match="has 48 x 32 pixels, the annotations are of 47 x 32"):
        read_photograph(path, (47, 32))


def test_photographs_of_phones(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:16, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 28
    stored = heif.from_pillow(Image.fromarray(shown))
    stored[0].info["exif"] = exif.tobytes()
    stored.save(tmp_path / "a.HEIC", quality=-1, chroma=444, matrix_coefficients=0)
    assert photograph_size(tmp_path / "a.HEIC") == SIZE
    for read in (read_photograph, lambda path: read_pixels(path).rgb):
        np.testing.assert_allclose(read(tmp_path / "a.HEIC").astype(int), shown, atol=2)
    with open_image(tmp_path / "a.HEIC") as image:
        assert exif_focal(image) == pytest.approx(28 * np.hypot(*SIZE) / np.hypot(36, 24))
    assert Photographs(tmp_path).names == ("a.HEIC",)
    assert not is_upright_jpeg(tmp_path / "a.HEIC")
    (tmp_path / "renamed.jpg").write_bytes((tmp_path / "a.HEIC").read_bytes())
    np.testing.assert_array_equal(
        read_photograph(tmp_path / "renamed.jpg"), read_photograph(tmp_path / "a.HEIC")
    )
    (tmp_path / "renamed.jpg").unlink()
    (tmp_path / "a.HEIC").write_bytes((tmp_path / "a.HEIC").read_bytes()[:300])
    for read in READERS.values():
        with pytest.raises((AnnotationError, ValueError), match=r"a\.HEIC"):
            read(tmp_path / "a.HEIC")


def test_focal_lengths_are_those_of_images_of_the_stated_size(tmp_path):
    """A resized image has the focal length of another number of pixels; a turned one has the same."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 28
    rows = {"a.jpg": SIZE, "b.jpg": (SIZE[0] // 2, SIZE[1] // 2), "c.jpg": SIZE[::-1]}
    for name, size in rows.items():
        exif[274] = 6 if size == SIZE[::-1] else 1
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
    point = [{"keypoints": [1.0, 2.0, 2] * 17, "image_id": i, "id": i} for i in range(3)]
    listed = [{"id": i, "file_name": n, "width": SIZE[0], "height": SIZE[1]} for i, n in enumerate(rows)]
    (tmp_path / "k.json").write_text(json.dumps({"images": listed, "annotations": point}))
    found = read_exif_focals(read_people(tmp_path / "k.json", images=tmp_path), tmp_path)
    focal = 28 * np.hypot(*SIZE) / np.hypot(36, 24)
    np.testing.assert_allclose(found.focal, [focal, np.nan, focal])
    size = f"{SIZE[0] // 2} x {SIZE[1] // 2} pixels and not {SIZE[0]} x {SIZE[1]}"
    assert any(
        f"1 of 3 images have other sizes than the file states, such as b.jpg, of {size}" in note
        for note in found.notes
    )


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC.*agebody"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
    ],
)
def test_other_formats_are_named_by_their_content(tmp_path, monkeypatch, start, kind):
    monkeypatch.setattr("agebody.annotations.photographs._refused", lambda: (".heic", ".avif"))
    (tmp_path / "a.jpg").write_bytes(start + bytes(40))
    with pytest.raises(AnnotationError, match=f"can be read; {kind}"):
        photograph_size(tmp_path / "a.jpg")


@pytest.mark.parametrize("focal", [0, 1, 65535])
def test_focal_lengths_of_no_lens_are_unknown(tmp_path, focal):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = focal
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    with open_image(tmp_path / "a.jpg") as image:
        assert np.isnan(exif_focal(image))


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(3, 1, 0), (3, 1, 9), (3, 1, 65535), (2, 2, 0x36), (5, 1, 8), (4, 1, 2**32 - 1)],
)
def test_invalid_orientations_are_ignored(tmp_path, kind, count, value):
    entry = struct.pack("<HHHII", 1, 274, kind, count, value)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4)
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    assert photograph_size(tmp_path / "a.jpg") == SIZE
    assert read_photograph(tmp_path / "a.jpg").shape == (*SIZE[::-1], 3)
    assert is_upright_jpeg(tmp_path / "a.jpg")


def grey(kind):
    """A ramp over the whole range of a kind of numbers, and what it is in 8 bits."""
    ramp = np.linspace(0, np.iinfo(kind).max, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(kind)
    return ramp, np.rint(ramp / (np.iinfo(kind).max / 255))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    ramp, expected = grey(np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(ramp).save(path)
    for found in (read_photograph(path), read_pixels(path).rgb):
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
    assert expected.min() == 0
    assert expected.max() == 255
    with pytest.raises(AnnotationError, match=rf"a.{suffix}: expected a mask of 8 bits"):
        load_mask(path, SIZE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "gif", "bmp", "jp2"])
def test_8_bits_are_read_as_pillow_converts_them(tmp_path, suffix, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).convert(mode)
    try:
        image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    except (OSError, ValueError):
        pytest.skip("not a mode of this format")
    with Image.open(tmp_path / f"a.{suffix}") as saved:
        expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_array_equal(read_photograph(tmp_path / f"a.{suffix}"), expected)
    np.testing.assert_array_equal(read_pixels(tmp_path / f"a.{suffix}").rgb, expected)


def tiff(path, bits, sample_format, data):
    """A grey TIFF of numbers that Pillow does not write."""
    tags = [(256, 3, 48), (257, 3, 32), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 200)]
    tags += [(277, 3, 1), (278, 3, 32), (279, 4, len(data)), (339, 3, sample_format)]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags
    )
    head = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(head.ljust(200, b"\0") + data)


REFUSED = {
    "12 bits": lambda path: tiff(path, 12, 1, bytes(SIZE[0] * SIZE[1] * 3 // 2)),
    "signed": lambda path: tiff(path, 16, 2, bytes(SIZE[0] * SIZE[1] * 2)),
    "32 bits": lambda path: Image.fromarray(np.full(SIZE[::-1], 70000, np.int32)).save(path, "TIFF"),
    "floats": lambda path: Image.fromarray(np.full(SIZE[::-1], 0.5, np.float32)).save(path, "TIFF"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_numbers_are_refused(tmp_path, kind):
    path = tmp_path / "a.png"
    REFUSED[kind](path)
    for read in (read_photograph, read_pixels):
        with pytest.raises(AnnotationError, match=r"a\.png: expected 8 or 16 bits per channel, got "):
            read(path)
    with pytest.raises(AnnotationError, match=r"a\.png: "):
        load_mask(path, SIZE)


def png(width, height, rest=b""):
    """A PNG whose header promises a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rest))]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(kind, **options):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"no image",
    "bomb": png(40_000, 40_000),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\nshowpage\n%%EOF\n",
    "psd": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 32, 48, 8, 3) + bytes(64),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='48' height='32'/>",
    "exif": encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9))[:200],
} | {f"half a {kind}": encoded(kind)[:1500] for kind in FORMATS if kind != "GIF"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("reader", DECODERS)
def test_damaged_and_hostile_images_are_refused_by_name(tmp_path, monkeypatch, recwarn, reader, name):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(args))
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(AnnotationError, match=r"a\.png: ") as caught:
        DECODERS[reader](path)
    assert "\n" not in str(caught.value)
    assert not started
    assert not recwarn.list


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_other_formats_missing_files_and_folders(tmp_path, reader):
    (tmp_path / "a.png").write_bytes(HOSTILE["eps"])
    with pytest.raises(AnnotationError, match=r"a\.png: not an image that can be read"):
        READERS[reader](tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png"):
        with pytest.raises(FileNotFoundError, match="the image does not exist") as caught:
            READERS[reader](tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)


def test_large_photographs_are_read_without_a_warning(tmp_path, recwarn):
    Image.new("1", (12_000, 9_000)).save(tmp_path / "a.png")
    assert photograph_size(tmp_path / "a.png") == (12_000, 9_000)
    assert not recwarn.list


def test_errors_of_the_system_name_the_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with pytest.raises(OSError, match="Input/output error") as caught, open_image(tmp_path / "a.png"):
        raise OSError(5, "Input/output error")
    assert caught.value.filename == str(tmp_path / "a.png")


def test_only_the_first_picture_of_a_file_is_read(tmp_path):
    first, second = (Image.new("RGB", SIZE, color) for color in ("red", "blue"))
    for kind, suffix in (("MPO", "jpg"), ("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp")):
        path = tmp_path / f"a.{suffix}"
        first.save(path, kind, save_all=True, append_images=[second])
        assert (np.abs(read_photograph(path).astype(int) - (255, 0, 0)) < 4).all()
        assert (np.abs(read_pixels(path).rgb.astype(int) - (255, 0, 0)) < 4).all()
        assert not is_upright_jpeg(path)  # and so it is never copied whole


def test_masks_that_may_be_in_their_transparency_are_refused(tmp_path):
    mask = np.zeros((*SIZE[::-1], 4), np.uint8)
    mask[5:9, 5:9, 3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png: expected a mask without transparency"):
        load_mask(tmp_path / "a.png", SIZE)
