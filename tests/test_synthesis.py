"""Synthetic people: what the images, maps and labels say of each other, and how shards are made."""

import dataclasses
import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
from bodies import with_fingers
from PIL import Image
from scipy.ndimage import minimum_filter
from torch.utils.data import DataLoader

import agebody
from agebody.age import AGE_CLASSES, AgeCurve, age_class
from agebody.annotations import AnnotationError
from agebody.cameras import Camera
from agebody.keypoints import LAYOUTS
from agebody.pipelines.jobs.cluster import Cluster
from agebody.pipelines.labels import TrainingShards, load_labels
from agebody.pipelines.labels.samples import HIDDEN_BY, index_shard
from agebody.pipelines.synthesis import Recipe, synthesize
from agebody.pipelines.synthesis.recipe import draw_ages
from agebody.pipelines.synthesis.scenes import Studio
from agebody.pipelines.train import Filters, TrainingData
from agebody.rotations import axis_angle_to_matrix

RECIPE = Recipe(count=6, people=(1, 3), size=(96, 80), seed=3, images_per_shard=4, occluders=0.6)


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, num_betas=10)


@pytest.fixture(scope="module")
def folder(body, tmp_path_factory):
    place = tmp_path_factory.mktemp("synthetic")
    synthesize(body, place, RECIPE)
    return place


def test_samples_are_complete(folder):
    shards = TrainingShards(folder)
    assert len(shards) == RECIPE.count
    for sample in shards:
        assert sample.image.shape == (80, 96, 3)
        assert sample.mask.shape == sample.parts.shape == sample.depth.shape == (80, 96)
        assert sample.hidden.shape == (len(sample.labels), 44)
        assert ((sample.hidden == 0) == sample.labels.observed[..., 2]).all()


def first_met(ray, vertices, faces):
    """Return depth and triangle where a ray of depth 1 first meets a mesh (Moeller and Trumbore 1997)."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    cross = np.cross(ray, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / ((b - a) * cross).sum(-1)
        u = -(a * cross).sum(-1) * scale
        other = np.cross(-a, b - a)
        v, depth = (other @ ray) * scale, ((c - a) * other).sum(-1) * scale
    depth = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0), depth, np.inf)
    return depth.min(), depth.argmin()


def test_labels_give_the_surface_of_the_maps(body, folder):
    """A ray through a pixel, intersected with the bodies of the labels in NumPy, meets what the maps say."""
    faces, part = body.faces.numpy(), body.asset.strongest_joints()
    pick = np.random.default_rng(0)
    for sample in TrainingShards(folder):
        vertices = body(sample.labels.parameters(body)).vertices.double().numpy()
        seen, nobody = (np.argwhere(shown) for shown in (sample.mask % 255 > 0, sample.mask == 0))
        for row, column in (*pick.choice(seen, 8), *pick.choice(nobody, 8)):
            at = (np.array((column, row)) + 0.5 - sample.labels.center[0]) / sample.labels.focal[0]
            met = [first_met(np.array((*at, 1)), body, faces) for body in vertices]
            (depth, triangle), person = min(zip(met, range(len(met)), strict=True))
            assert sample.mask[row, column] == (person + 1 if np.isfinite(depth) else 0)
            if np.isfinite(depth):
                assert abs(sample.depth[row, column] - depth) < 0.0006
                assert sample.parts[row, column] - 1 in part[faces[triangle]]
            else:
                assert np.isnan(sample.depth[row, column])
                assert sample.parts[row, column] == 0


def test_a_seed_gives_the_same_bytes_and_finished_shards_stay(body, folder, tmp_path):
    paths = synthesize(body, tmp_path, RECIPE)
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    kept = paths[1].stat().st_mtime_ns
    paths[0].write_bytes(paths[0].read_bytes()[:5000])
    synthesize(body, tmp_path, RECIPE)
    assert paths[0].read_bytes() == (folder / paths[0].name).read_bytes()
    assert paths[1].stat().st_mtime_ns == kept
    with pytest.raises(AnnotationError, match="seed: 3, not 4"):
        synthesize(body, tmp_path, dataclasses.replace(RECIPE, seed=4))


def test_visibility_of_keypoints_agrees_with_the_maps(body, folder):
    """Beside a keypoint that a thing or another person hides, the mask shows these; else the person."""
    told = np.zeros(5, int)
    for sample in TrainingShards(folder):
        numbers = np.where(sample.mask == 255, 100, sample.mask)
        for person, (row_points, row_hidden) in enumerate(
            zip(sample.labels.keypoints, sample.hidden, strict=True)
        ):
            for (x, y), hidden in zip(row_points, row_hidden, strict=True):
                told[hidden] += 1
                inside = 0 <= x < 96 and 0 <= y < 80
                assert inside == (HIDDEN_BY[hidden] != "outside the image")
                if not inside:
                    continue
                around = numbers[max(int(y) - 3, 0) : int(y) + 4, max(int(x) - 3, 0) : int(x) + 4]
                wanted = {
                    "visible": around == person + 1,
                    "own body": around == person + 1,
                    "another person": (around > 0) & (around < 100) & (around != person + 1),
                    "occluder": around == 100,
                }
                assert wanted[HIDDEN_BY[hidden]].any()
    assert told.min() > 0


def test_a_body_between_hides_and_a_body_alone_is_seen(body):
    """Of one who stands before the other, everything is seen but what the own body hides."""
    studio = Studio(body, Recipe(size=(128, 128), occluders=0))
    camera = Camera(torch.tensor((200.0, 200.0)).double(), torch.tensor((64.0, 64.0)).double())
    turn = torch.tensor((np.pi, 0.0, 0.0)).float()  # upright in camera coordinates, facing the camera
    transl = torch.tensor(((0.0, 0.0, 4.0), (0.0, 0.0, 2.5)))
    out = body(global_orient=turn, transl=transl)
    points = body.keypoints("hmr2_44", global_orient=turn, transl=transl).double()
    pixels = camera.project(points).pixels.numpy()
    view = studio.view(out.vertices.numpy(), pixels, camera, np.random.default_rng(0))
    behind, front = view.hidden
    names = LAYOUTS["hmr2_44"].names
    assert front[names.index("nose")] == front[names.index("left_knee")] == 0
    assert behind[names.index("left_knee")] == 2
    alone = studio.view(out.vertices[:1].numpy(), pixels[:1], camera, np.random.default_rng(0))
    assert alone.hidden[0, names.index("left_knee")] == 0
    assert set(alone.hidden[0]) <= {0, 1}


@pytest.mark.slow
def test_workers_make_the_same_bytes_and_the_labels_of_all(body, folder, tmp_path):
    synthesize(body, tmp_path, RECIPE, cluster=Cluster(2))
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar":
            assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    labels, whole = load_labels(tmp_path / "labels.npz"), TrainingShards(folder).labels()
    np.testing.assert_array_equal(labels.transl, whole.transl)
    assert len(np.unique(labels.ids)) == len(labels)


def test_a_call_that_is_ended_leaves_finished_shards_only(body, tmp_path, monkeypatch):
    seen = []

    def interrupted(studio, *arguments):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(view(studio, *arguments))
        return seen[-1]

    view = Studio.view
    monkeypatch.setattr(Studio, "view", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(body, tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]


def test_more_images_keep_existing_shards(body, folder, tmp_path):
    small = dataclasses.replace(RECIPE, count=4)
    (first,) = synthesize(body, tmp_path, small)
    assert first.read_bytes() == (folder / first.name).read_bytes()
    shutil.copy(first, tmp_path / "000009.tar")
    with pytest.raises(AnnotationError, match=r"000009.tar: is not of these shards"):
        synthesize(body, tmp_path, small)


def test_photographs_are_backgrounds(body, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (300, 200), "#2040c0").save(tmp_path / "photos/a.png")
    recipe = Recipe(count=2, size=(64, 48), backgrounds=str(tmp_path / "photos"))
    synthesize(body, tmp_path / "out", recipe)
    for sample in TrainingShards(tmp_path / "out"):
        far = minimum_filter(sample.mask == 0, 9)
        assert np.abs(sample.image[far] - np.array((0x20, 0x40, 0xC0))).mean() < 4
    (tmp_path / "photos/b.png").write_bytes(b"no image")
    with pytest.raises(AnnotationError, match=r"backgrounds: .*not"):
        synthesize(body, tmp_path / "out", recipe)
    (tmp_path / "photos/a.png").unlink()
    with pytest.raises(AnnotationError, match=r"b\.png: not an image"):
        synthesize(body, tmp_path / "new", recipe)
    assert list((tmp_path / "new").iterdir()) == []


def test_ages_are_drawn_by_their_weights(body):
    years = draw_ages("baby:3, 30-40:1", body, 4000, np.random.default_rng(0)).numpy()
    old = (years >= 30) & (years <= 40)
    assert abs(old.mean() - 0.25) < 0.03
    offset = AgeCurve.from_asset(body.asset).years_to_offset(years[~old])
    assert (age_class(offset) == [kind.name for kind in AGE_CLASSES].index("baby")).mean() > 0.99
    adult = agebody.SMPL(body.asset)
    assert draw_ages("balanced", adult, 3, np.random.default_rng(0)) == "balanced"
    with pytest.raises(ValueError, match="the body has one age"):
        draw_ages("baby", adult, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"count": 0}, "count: expected a whole number of 1 or more, got 0"),
        ({"images_per_shard": 0}, "images_per_shard: expected"),
        ({"people": (2, 1)}, "people: expected two ascending numbers from 1 to 20"),
        ({"people": (1, 50)}, "people: expected"),
        ({"size": (8, 8)}, "size: expected sides"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": 10**22}, "seed: expected"),
        ({"fov": (0.0, 50.0)}, "fov: expected"),
        ({"fov": (float("nan"), 50.0)}, "fov: expected"),
        ({"occluders": 1.5}, "occluders: expected a share"),
        ({"parts": 5}, "parts: expected 24, 7, 6, got 5"),
        ({"layout": "coco18"}, "layout: expected"),
        ({"ages": "toddler"}, "ages: expected balanced, or adult"),
        ({"ages": "9-3"}, "ages: expected"),
        ({"ages": "baby:0"}, "ages: expected a weight above 0"),
        ({"ages": ""}, "ages: expected"),
    ],
)
def test_wrong_recipes_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**wrong)


def shorten(data):
    return data[: len(data) // 2 // 512 * 512 + 100]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"", "not a tar file|no images"),
        (lambda data: b"text", "not a tar file"),
        (shorten, "damaged"),
        (lambda data: data.replace(b"labels.json", b"labels.jsan"), "damaged.* unexpected data at byte"),
        # As many letters of each kind, so that the sum of the header is right.
        (lambda data: data.replace(b"labels.json", b"labels.jsno"), "expected an image and its labels"),
        (lambda data: data.replace(b'"keypoint_layout"', b'"keypoint_lajout"'), "not the labels of a shard"),
        (lambda data: data.replace(b'"betas":[[', b'"betas":{{'), "not the labels of a shard"),
        (lambda data: data.replace(b'"kept":[true', b'"kept":[1234'), "kept: expected booleans"),
        (lambda data: data.replace(b"\x89PNG", b"\x89PMG").replace(b"\x89PNG", b""), "image is damaged"),
    ],
)
def test_damaged_shards_are_refused(folder, tmp_path, change, match):
    path = tmp_path / "000000.tar"
    without = (folder / path.name).read_bytes().replace(b"agebody.crc32", b"agebody.other")
    path.write_bytes(change(without))
    with pytest.raises(AnnotationError, match=match) as error:
        list(TrainingShards(tmp_path))
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "labels.json", "data.pyd", "mask.png", "parts.png", "depth.png"])
def test_one_changed_bit_of_any_file_is_noticed(folder, tmp_path, suffix):
    path = tmp_path / "000000.tar"
    data = bytearray((folder / path.name).read_bytes())
    member = next(iter(index_shard(folder / path.name, ()).values()))[suffix]
    data[member.start + member.size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=rf"000000.tar: the {suffix} at byte \d+ is damaged"):
        list(TrainingShards(tmp_path))


def test_shards_are_read_as_other_programs_write_them(folder, tmp_path):
    with tarfile.open(folder / "000000.tar") as tar, tarfile.open(tmp_path / "a.tar", "w") as other:
        other.addfile(tarfile.TarInfo("._hidden.jpg"))
        for entry in tar:
            start = tarfile.TarInfo("./v1.2")
            start.type = tarfile.DIRTYPE
            other.addfile(start)
            data = tar.extractfile(entry).read()
            copy = tarfile.TarInfo(f"./v1.2/{entry.name.replace('.jpg', '.JPEG')}")
            copy.size = len(data)
            other.addfile(copy, io.BytesIO(data))
    for one, same in zip(TrainingShards(folder / "000000.tar"), TrainingShards(tmp_path), strict=True):
        assert one.name == same.name
        np.testing.assert_array_equal(one.image, same.image)


def test_no_shards_are_refused(tmp_path):
    with pytest.raises(AnnotationError, match=r"expected shards: a folder with \*\.tar"):
        TrainingShards(tmp_path)
    with pytest.raises(FileNotFoundError):
        TrainingShards([tmp_path / "none.tar"])


def test_a_loader_reads_shards_in_any_order_with_workers(folder):
    shards = TrainingShards(folder)
    loader = DataLoader(shards, batch_size=None, shuffle=True, num_workers=1)
    assert sorted(sample.name for sample in loader) == sorted(sample.name for sample in shards)
    assert shards[-1].name == shards[5].name


def test_people_with_hands_have_posed_fingers_in_their_shards(mannequin_asset, tmp_path):
    """Of a body with fingers, the labels have COCO's 133 points, and training gets the hands of everyone."""
    hands = agebody.SMPLH(with_fingers(mannequin_asset, expressions=4), num_expression=4)
    synthesize(hands, tmp_path, Recipe(count=3, size=(64, 64), seed=2, layout="coco133"))
    labels = load_labels(tmp_path / "labels.npz")
    assert labels.observed.shape == (3, 133, 3)
    fingers = labels.body_pose[:, 21:]
    assert fingers.shape[1] == 30
    assert np.abs(fingers - fingers.mean(0)).max() > 0.1
    assert np.abs(fingers).max() < 2
    assert np.abs(labels.betas[:, 10:]).max() > 0.1
    target = TrainingData(tmp_path, size=(16, 16), family="smplx", filters=Filters(visible=1))
    target = target.__getitems__(range(3)).target
    assert target["body_pose_weights"].tolist() == [[1.0] * 21 + [0.0] * 3 + [1.0] * 30] * 3
    assert target["expression_weights"].tolist() == [1.0] * 3
    angles = axis_angle_to_matrix(torch.from_numpy(fingers)).float()
    order = torch.cdist(target["betas"], torch.from_numpy(labels.betas[:, :10]).float()).argmin(1)
    torch.testing.assert_close(target["body_pose"][:, 24:], angles[order], atol=1e-5, rtol=0)
