"""Synthetic images of people: one scene per image, with its labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from agebody.body import BodyModel
from agebody.cameras.camera import Camera
from agebody.draw.pictures import add_background, encode_pixels
from agebody.draw.raycast import Scene, shade_pixels
from agebody.keypoints import get_layout
from agebody.people.observations import skin_near
from agebody.pipelines.labels.samples import HIDDEN_BY, OCCLUDER
from agebody.pipelines.synthesis.looks import Wardrobe, background, lights, occluder, photograph
from agebody.pipelines.synthesis.recipe import Recipe

TOUCHING = 0.005
"""Depth by which skin may lie behind what a ray meets first, and be seen [m]."""
_SEEN = 4
"""Of the 40 vertices nearest to a keypoint, how many must be seen, as in `observe`."""
VISIBLE, OWN, OTHER, THING, OUTSIDE = range(len(HIDDEN_BY))
_MOST_MM = 65535
_LIGHT_RAYS = 2


class View(NamedTuple):
    """One image of n people."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]
    parts: UInt8[np.ndarray, "H W"]
    depth: Int[np.ndarray, "H W"]
    """[mm]; 0 where there is nothing."""
    hidden: Int[np.ndarray, "n K"]


class Studio:
    """The constants of all images of a body: its faces, clothes and parts."""

    def __init__(self, body: BodyModel, recipe: Recipe) -> None:
        self.recipe = recipe
        self.faces = body.faces.cpu().numpy()
        corners = recipe.part_map(body).vertices[self.faces]
        self.parts = np.where(corners[:, 1] == corners[:, 2], corners[:, 1], corners[:, 0])
        self.wardrobe = Wardrobe(body.asset)
        near = skin_near(body.asset, get_layout(recipe.layout)).numpy()
        self.skin, self.near = np.unique(near, return_inverse=True)
        self.near = self.near.reshape(near.shape)
        self.photographs = recipe.photographs()

    def view(
        self,
        vertices: Float[np.ndarray, "n V 3"],
        keypoints: Float[np.ndarray, "n K 2"],
        camera: Camera,
        rng: np.random.Generator,
    ) -> View:
        """Draw people, whose vertices are in camera coordinates [m], before a background."""
        size = width, height = self.recipe.size
        people = len(vertices)
        colors = [self.wardrobe.dress(rng) for _ in range(people)]
        meshes, faces = list(vertices), [self.faces] * people
        for person in range(people):
            if rng.random() < self.recipe.occluders:
                thing, triangles, color = occluder(rng)
                meshes.append(_in_front(thing, vertices[person], rng))
                faces.append(triangles)
                colors.append(color)
        if self.photographs:
            behind = photograph(self.photographs[rng.integers(len(self.photographs))], size, rng)
        else:
            behind = background(size, rng)
        scene = Scene(meshes, faces, colors, camera, None, lights(rng))
        color, hits = shade_pixels(scene, size, _LIGHT_RAYS)
        linear = add_background(color.reshape(height, width, 4), behind)
        instance = hits.instance
        person = (instance >= 0) & (instance < people)
        mask = np.where(person, instance + 1, np.where(instance >= people, OCCLUDER, 0))
        parts = np.where(person, self.parts[hits.triangle] + 1, 0)
        depth = np.rint(np.where(instance >= 0, hits.depth, 0) * 1000).clip(0, _MOST_MM)
        hidden = np.stack(
            [self._hidden(scene, camera, vertices[i], keypoints[i], i, people, size) for i in range(people)]
        )
        shape = (height, width)
        return View(
            image=encode_pixels(linear)[..., :3],
            mask=mask.astype(np.uint8).reshape(shape),
            parts=parts.astype(np.uint8).reshape(shape),
            depth=depth.astype(np.uint16).reshape(shape),
            hidden=hidden,
        )

    def _hidden(
        self,
        scene: Scene,
        camera: Camera,
        vertices: Float[np.ndarray, "V 3"],
        keypoints: Float[np.ndarray, "K 2"],
        person: int,
        people: int,
        size: tuple[int, int],
    ) -> Int[np.ndarray, " K"]:
        """Return what hides each keypoint: nothing if its skin is seen, else what covers most of it."""
        skin = torch.from_numpy(vertices[self.skin]).double()
        projected = camera.project(skin)
        u, v = projected.pixels.numpy().T
        hits = scene.trace(u, v)
        clear = (hits.instance == person) & (hits.depth > skin[:, 2].numpy() - TOUCHING)
        cause = np.where(hits.instance == person, OWN, np.where(hits.instance < people, OTHER, THING))
        cause = np.where(clear, VISIBLE, np.where(hits.instance < 0, OWN, cause))[self.near]
        counts = (cause[..., None] == np.arange(OUTSIDE)).sum(1)
        seen = counts[:, VISIBLE] >= _SEEN
        why = 1 + counts[:, 1:].argmax(1)
        inside = ((keypoints >= 0) & (keypoints < size)).all(1)
        return np.where(inside, np.where(seen, VISIBLE, why), OUTSIDE)


def _in_front(
    thing: Float[np.ndarray, "N 3"], body: Float[np.ndarray, "V 3"], rng: np.random.Generator
) -> Float[np.ndarray, "N 3"]:
    """Return an object between the camera and a vertex of a body, a fifth to a half as large as the body."""
    low, high = body.min(0), body.max(0)
    aim = body[rng.integers(len(body))]
    nearest = max(float(low[2]), 1e-3)
    way = rng.uniform(0.5, 0.95) * nearest / aim[2]  # of the way to the vertex
    extent = rng.uniform(0.07, 0.18) * np.linalg.norm(high - low) * way
    depth = nearest * 0.98 - extent * abs(thing[:, 2]).max()
    place = aim * min(way, max(depth, 0.2 * nearest) / aim[2])
    return thing * extent + place
