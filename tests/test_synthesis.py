"""Synthetic people: what the images, maps and labels say of each other, and how shards are made."""

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter

import agebody
from agebody.annotations import AnnotationError
from agebody.cameras import Camera
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


def test_labels_give_the_same_surface(body, folder):
    """The surface is drawn where the mask is: the depth of a pixel is that of the surface under it."""
    for sample in TrainingShards(folder):
        vertices = body(sample.labels.parameters(body)).vertices.double()
        focal, center = (
            torch.from_numpy(array[0]).double() for array in (sample.labels.focal, sample.labels.center)
        )
        camera = Camera(focal, center)
        pixels = camera.project(vertices).pixels.floor().long()
        for person, points in enumerate(pixels):
            inside = ((points >= 0) & (points < torch.tensor((96, 80)))).all(-1)
            column, row = points[inside].T.numpy()
            near = maximum_filter(sample.mask > 0, 3)  # half of the pixels of an outline have another centre
            assert near[row, column].mean() > 0.99  # fingers are thinner than a pixel
            # Nothing is drawn behind the surface.
            shown = minimum_filter(np.nan_to_num(sample.depth, nan=np.inf), 3)[row, column]
            behind = shown > vertices[person, inside, 2].numpy() + 0.02  # a pixel is 3 cm
            assert np.mean(behind & near[row, column]) < 0.01


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
