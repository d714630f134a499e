"""Synthetic people: what the images, maps and labels say of each other, and how shards are made."""

import numpy as np
import pytest

import agebody
from agebody.annotations import AnnotationError
from agebody.pipelines.labels import TrainingShards
from agebody.pipelines.synthesis import Recipe, synthesize

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
        synthesize(body, tmp_path, Recipe(**{**vars(RECIPE), "seed": 4}))
