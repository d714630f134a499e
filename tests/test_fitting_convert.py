"""The same people on other bodies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import agebody
from agebody.assets.asset import Metadata
from agebody.fitting.conversion import Correspondence, convert, correspond, same_topology
from agebody.keypoints import LAYOUTS
from agebody.mesh.closest import closest_points
from agebody.parameters import BodyParameters
from agebody.people import random_people


@pytest.fixture(scope="module")
def mannequin(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, backend="torch")


def people(body, count: int, seed: int = 4) -> BodyParameters:
    return random_people(body, count, seed=seed).parameters


def test_to_itself(mannequin):
    parameters = people(mannequin, 4)
    fit = convert(parameters, mannequin, mannequin)
    vertices = mannequin(parameters).vertices
    found = mannequin(fit.parameters).vertices
    assert (found - vertices).norm(dim=-1).max() < 1e-4


def test_an_infant_body_and_back(mannequin, mannequin_asset):
    """SMPL-A and SMIL share vertices: infants go over exactly, and come back as they were."""
    infant = agebody.SMIL(mannequin_asset.at_age(1.0), backend="torch")
    parameters = people(infant, 4)
    grown = convert(parameters, infant, mannequin)
    vertices = infant(parameters).vertices
    found = mannequin(grown.parameters).vertices
    assert (found - vertices).norm(dim=-1).max() < 1e-3
    assert (grown.parameters.age_offset - 1).abs().max() < 0.02
    back = convert(grown.parameters, mannequin, infant)
    assert back.error.max() < 1e-4
    assert back.parameters.age_offset.count_nonzero() == 0
    adult = convert(people(mannequin, 1)._replace(age_offset=torch.zeros(1)), mannequin, infant)
    assert adult.error > 0.05  # no infant of that size: said, not hidden


def test_across_topologies(mannequin, anny_asset):
    anny = agebody.SMPLA(anny_asset, backend="torch")
    parameters = people(anny, 4)
    fit = convert(parameters, anny, mannequin, age_offset=parameters.age_offset)
    assert torch.equal(fit.parameters.age_offset, parameters.age_offset)
    source = anny(parameters)
    found = mannequin(fit.parameters)
    # Measured over 40 people: joints 17 mm apart in the median, 29 mm at most; surfaces 6 and 8 mm.
    assert (found.joints - source.joints).norm(dim=-1).mean(-1).max() < 0.035
    for mesh, points in zip(found.vertices, source.vertices[:, ::40], strict=True):
        assert closest_points(points, mesh, mannequin.faces).distance.mean() < 0.012


def test_infants_to_an_infant_body_of_another_topology(mannequin_asset, anny_asset):
    """Points are matched at the age of the target, not on the source's adult: 28 mm of joints then."""
    anny = agebody.SMPLA(anny_asset, backend="torch")
    infant = agebody.SMIL(mannequin_asset.at_age(1.0), backend="torch")
    parameters = people(anny, 3)._replace(age_offset=torch.ones(3))
    fit = convert(parameters, anny, infant)
    away = (infant(fit.parameters).joints - anny(parameters).joints).norm(dim=-1).mean(-1)
    assert away.max() < 0.018
    assert correspond(anny_asset, infant.asset).age_offset > 0.8
    assert correspond(anny_asset, mannequin_asset).age_offset == 0
    with pytest.warns(UserWarning, match="target: has one age, .*, and 2 of 3 people differ from it"):
        adults = convert(parameters._replace(age_offset=torch.tensor([0.0, 1.0, 0.1])), anny, infant)
    assert adults.error[0] > 2 * adults.error[1]


def test_correspondence_of_a_body_with_itself(mannequin_asset):
    """Another order of the vertices: the places found are the vertices themselves."""
    order = np.random.default_rng(0).permutation(mannequin_asset.num_vertices)
    place = np.argsort(order)
    shuffled = mannequin_asset.replace(
        template=mannequin_asset.template[order],
        faces=place[mannequin_asset.faces].astype(np.int32),
        joint_regressor=mannequin_asset.joint_regressor[:, order],
        skin_joints=mannequin_asset.skin_joints[order],
        skin_weights=mannequin_asset.skin_weights[order],
        shapedirs=mannequin_asset.shapedirs[order],
        posedirs=None,
        age_templates=mannequin_asset.age_templates[:, order],
        regressors={},
    )
    assert not same_topology(mannequin_asset, shuffled.replace(metadata=Metadata()))
    shared = correspond(mannequin_asset, shuffled)
    assert isinstance(shared, Correspondence)
    assert correspond(mannequin_asset, shuffled) is shared
    assert shared.distance.max() < 2e-3
    _, source = shared.source.resolve(mannequin_asset)
    _, target = shared.target.resolve(shuffled)
    gap = source @ mannequin_asset.template - target @ shuffled.template
    assert np.linalg.norm(gap, axis=1).max() < 5e-3


def test_custom_correspondence(mannequin):
    joints = LAYOUTS["smplx45"]
    parameters = people(mannequin, 2)
    own = Correspondence(joints, joints, torch.zeros(45))
    fit = convert(parameters, mannequin, mannequin, correspondence=own, sd=1e-3)
    assert fit.error.shape == (2,)
    assert fit.error.max() < 1e-3


def test_topologies(mannequin_asset, anny_asset):
    assert same_topology(mannequin_asset, mannequin_asset.at_age(0.5))
    assert not same_topology(mannequin_asset, anny_asset)
    turned = mannequin_asset.replace(faces=np.roll(mannequin_asset.faces[::-1], 1, axis=1))
    assert same_topology(mannequin_asset, turned)


def test_errors(mannequin, mannequin_asset):
    exact = agebody.SMPLA(mannequin_asset, backend="torch", dtype=torch.float64)
    with pytest.raises(ValueError, match="target: expected a layer of torch.float32"):
        convert(people(mannequin, 1), mannequin, exact)
    strange = mannequin_asset.replace(joint_names=tuple(f"bone {i}" for i in range(24)))
    with pytest.raises(ValueError, match="expected joints of the source's names, found none"):
        correspond(mannequin_asset, strange)
