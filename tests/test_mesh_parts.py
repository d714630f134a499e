"""Parts of a body: which vertices they cover, which joints they show."""

import re

import numpy as np
import pytest
from bodies import random_body

import agebody
from agebody.keypoints import mirror_order
from agebody.mesh import PartMap

BODIES = {"mannequin": agebody.mannequin, "anny": agebody.anny_body}


def test_one_part_per_joint():
    asset = random_body(num_vertices=40, parents=(-1, 0, 0, 2, 3))
    parts = PartMap.from_joints(asset)
    assert parts.names == asset.joint_names
    np.testing.assert_array_equal(parts.joints, np.arange(5))
    for vertex, part in enumerate(parts.vertices):
        weights = dict.fromkeys(range(5), 0.0)
        for joint, weight in zip(asset.skin_joints[vertex], asset.skin_weights[vertex], strict=True):
            weights[int(joint)] += weight
        assert weights[part] == max(weights.values())


@pytest.mark.parametrize("name", BODIES)
def test_few_parts_are_unions_of_parts_per_joint(name):
    asset = BODIES[name]()
    every = PartMap.from_joints(asset)
    for starts in (6, 7):
        parts = PartMap.from_joints(asset, starts)
        np.testing.assert_array_equal(parts.vertices, parts.joints[every.vertices])
        assert set(parts.vertices) == set(range(starts))
        limb = {joint: parts.names[part] for joint, part in zip(asset.joint_names, parts.joints, strict=True)}
        assert limb["head"] == "head"
        assert limb["left_collar"] == limb["spine3"] != "head"
        for side in ("left_", "right_"):
            assert {limb[f"{side}{joint}"] for joint in ("shoulder", "wrist", "hand")} == {f"{side}arm"}
            assert {limb[f"{side}{joint}"] for joint in ("hip", "knee", "foot")} == {f"{side}leg"}
        assert (limb["spine1"] == limb["spine2"]) == (starts == 6)


def test_left_and_right_are_alike():
    parts = PartMap.from_joints(agebody.mannequin(), 7)
    sizes = np.bincount(parts.vertices)
    np.testing.assert_allclose(sizes, sizes[list(mirror_order(parts.names))], atol=3)


def test_a_map_of_vertices_gives_back_the_map_it_came_from():
    asset = agebody.mannequin()
    expected = PartMap.from_joints(asset, 7)
    found = PartMap.from_vertices(asset, expected.vertices.astype(np.uint8), expected.names)
    assert found.names == expected.names
    np.testing.assert_array_equal(found.vertices, expected.vertices)
    np.testing.assert_array_equal(found.joints, expected.joints)


def test_a_joint_without_weights_is_shown_by_its_parents_part():
    asset = agebody.anny_body()
    expected = PartMap.from_joints(asset, 7)
    weights = asset.dense_weights()
    weights[:, 22] += weights[:, 22:].sum(1) - weights[:, 22]  # the left hand takes the right hand's too
    weights[:, 23] = 0
    skin_joints, skin_weights = agebody.assets.asset.sparse_weights(weights)
    asset = asset.replace(skin_joints=skin_joints, skin_weights=skin_weights)
    found = PartMap.from_vertices(asset, expected.vertices, expected.names)
    assert found.names[found.joints[23]] == "right_arm"


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ({"head": "skull"}, "starts: expected joints among joint0, joint1, joint2, joint3, got skull"),
        ({"arm": "joint1"}, "starts: expected different joints, joint0 among them"),
        ({"a": "joint0", "b": "joint0"}, "starts: expected different joints, joint0 among them"),
    ],
)
def test_bad_starts(starts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PartMap.from_joints(random_body(), starts)


@pytest.mark.parametrize(
    ("vertices", "message"),
    [
        (
            np.zeros(11, int),
            "vertices: expected 12 whole numbers, one per vertex of the body, got int64 of sh",
        ),
        (np.zeros(12), "vertices: expected 12 whole numbers, one per vertex of the body, got float64"),
        (np.full(12, 2), "vertices: expected parts 0..1, one per name, got 2..2"),
        (np.full(12, -1), "vertices: expected parts 0..1, one per name, got -1..-1"),
    ],
)
def test_bad_vertices(vertices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PartMap.from_vertices(random_body(), vertices, ["a", "b"])


@pytest.mark.parametrize("names", ["ab", ["a", "a"]])
def test_names_of_parts_differ(names):
    with pytest.raises(ValueError, match="names: expected a sequence of different names"):
        PartMap.from_vertices(random_body(), np.zeros(12, int), names)


def test_other_numbers_of_parts_are_refused(unchecked):
    with pytest.raises(TypeError, match="starts: expected 6, 7 or a joint by each part's name, got 5"):
        PartMap.from_joints(agebody.mannequin(), 5)
