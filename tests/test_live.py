"""The live view, with a real server on this machine's own address."""

import sys
import time
import urllib.request

import numpy as np
import pytest
import torch

import agebody
from agebody.draw import LiveView


@pytest.fixture
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, num_betas=3)


@pytest.fixture
def view(body):
    pytest.importorskip("viser")
    view = LiveView(body, port=18480)
    yield view
    view.stop()


def shown(view):
    (mesh,) = view._people
    assert mesh.name == "/body/0"
    return mesh.vertices


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sliders_move_the_body(view, body):
    assert urllib.request.urlopen(view.url, timeout=10).status == 200
    assert list(view.sliders) == ["age_offset", *body.asset.metadata.shape_names[:3], "pose"]
    adult = shown(view).copy()
    view.sliders["age_offset"].value = 1.0
    wait_for(lambda: np.ptp(shown(view)[:, 1]) < 0.4 * np.ptp(adult[:, 1]))
    infant = body(age_offset=1.0).vertices.numpy()
    wait_for(lambda: np.allclose(np.ptp(shown(view), axis=0), np.ptp(infant, axis=0), atol=1e-6))
    view.sliders["pose"].value = "cheering"
    wait_for(lambda: np.ptp(shown(view)[:, 0]) < 0.9 * np.ptp(infant[:, 0]))


def test_people_take_the_place_of_the_body(view, body):
    people = agebody.BodyParameters.zeros(body, 2)._replace(age_offset=torch.tensor([0.0, 0.5]))
    view.show(people)
    assert [mesh.name for mesh in view._people] == ["/people/0", "/people/1"]
    first = view._people[0]
    view.show(people._replace(age_offset=torch.ones(2)))
    assert view._people[0] is first
    np.testing.assert_allclose(first.vertices, body(age_offset=1.0).vertices, atol=1e-6)
    view.show(body_of(people, 0))
    assert [mesh.name for mesh in view._people] == ["/people/0"]


def body_of(people, row):
    return type(people)(*(part[row] if torch.is_tensor(part) else part for part in people))


def test_without_viser_the_extra_is_named(body, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(
        ImportError, match=r'^a live view needs viser, which is not installed; pip install "agebody\[view\]"$'
    ):
        LiveView(body)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"port": -1}, "port: expected 0 to 65535"),
        ({"port": "a"}, "port: expected 0 to 65535"),
        ({"host": "nowhere.invalid"}, "host: expected an address of this machine, got 'nowhere.invalid'"),
    ],
)
def test_wrong_places_are_refused_before_the_server_waits_for_them(body, option, message, unchecked):
    with pytest.raises(ValueError, match=message):
        LiveView(body, **option)
