"""Pages of bodies: their numbers against the layer, their controls in a browser, and what they refuse."""

import chromium
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import agebody
from agebody.draw import save_html
from agebody.draw.html_files import Scene, save_scenes_html
from agebody.measure import Measurements
from agebody.people import random_people
from agebody.pipelines.cli import app

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium: the page was not opened")


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    found = chromium.Page(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def path(body, tmp_path_factory):
    found = tmp_path_factory.mktemp("page") / "body.html"
    save_html(body, found)
    return found


@needs_chromium
def test_the_page_equals_the_layer(body, page, path):
    """Vertices, keypoints and measures of random people of every age are those of the layer."""
    page.open(path)
    people = random_people(body, 3, seed=2).parameters
    shaped = body.shape(people)
    out = shaped(people._replace(transl=torch.zeros(3, 3)))
    points = shaped.keypoints("coco17", people._replace(transl=torch.zeros(3, 3)))
    names = ["stature", "head_circumference", "arm_span"]
    expected = Measurements(body.asset, names)(shaped.rest_vertices)
    for i in range(3):
        pose = torch.cat((people.global_orient[i, None], people.body_pose[i])).flatten().tolist()
        script = f"""(() => {{
            const {{body}} = window.agebody, named = body.layouts.find(each => each.name === "coco17");
            const shaped = body.shape({people.betas[i].tolist()}, {float(people.age_offset[i])});
            const {{vertices, joints}} = body.pose(shaped, {pose});
            const points = body.keypoints(named, vertices, joints);
            return {{vertices: [...vertices], points, values: body.measure(shaped.rest)}};
        }})()"""
        found = page.run(script)
        vertices = np.reshape(found["vertices"], (-1, 3))
        assert np.linalg.norm(vertices - out.vertices[i].numpy(), axis=1).max() < 1e-4
        np.testing.assert_allclose(np.reshape(found["points"], (-1, 3)), points[i], atol=1e-4)
        for name, value in zip(names, expected[i].tolist(), strict=True):
            assert abs(found["values"][name] - value) < 5e-4, name


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_slider_changes_the_stature(page, path, width):
    page.open(path, width=width, height=800, dark=width == 390)
    page.requests.clear()
    before = page.run("window.agebody.values().stature")
    left, top, wide, high = page.box("input[aria-label=years]")
    page.drag((left + wide - 8, top + high / 2), (left + wide / 4, top + high / 2), touch=width == 390)
    page.wait_for(f"window.agebody.values().stature < {before} - 0.3")
    shown = page.run("document.getElementById('subline').textContent")
    assert shown == f"{page.run('window.agebody.values().stature'):.3f} m tall"
    code = page.run("document.getElementById('code').textContent")
    assert "age_offset=" in code
    room = {}
    exec(code, room)  # what is copied makes the same person
    tall = np.ptp(room["body"].shape(age_offset=page.run("window.agebody.state.age")).rest_vertices[..., 1])
    assert abs(tall - page.run("window.agebody.values().stature")) < 1e-3
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.requests == []
    assert page.complaints == []


def test_a_page_is_small_and_asks_for_nothing(path):
    text = path.read_text("utf-8")
    assert len(text) < 3e6
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_a_licensed_body_does_not_leave(mannequin_asset, tmp_path):
    metadata = mannequin_asset.metadata.__class__(
        **{**mannequin_asset.metadata.__dict__, "license": "non-commercial", "name": "Licensed"}
    )
    asset = mannequin_asset.replace(metadata=metadata)
    with pytest.raises(ValueError, match=r"'non-commercial', is not one of"):
        save_html(agebody.SMPLA(asset), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def scene(body, image=None, distortion=()):
    people = random_people(body, 2, seed=5, together=[2])
    camera = people.camera.map(lambda part: part[0])
    if distortion:
        camera = camera._replace(distortion=torch.tensor(distortion))
    vertices = body(people.parameters).vertices.numpy()
    size = tuple(int(side) for side in people.size[0])
    return camera, Scene(
        "a </script> of & 'people'",
        list(vertices),
        ["one", "two"],
        ["#c08060", "#6080c0"],
        size,
        tuple(camera.focal.tolist()),
        tuple(camera.center.tolist()),
        image,
        distortion,
    )


BARREL = (-0.3, 0.02, 0.01, -0.02)
RATIONAL = (-0.35, 0.1, 0.002, 0.003, 0.05, 0.1, -0.02, 0.01)
FOLDING = (-8.0, 2.0, 0.0, 0.0)  # whose view ends inside the people


@pytest.mark.parametrize("distortion", [(), BARREL, RATIONAL, FOLDING], ids=str)
@needs_chromium
def test_people_stand_where_their_camera_sees_them(distortion, body, page, tmp_path):
    camera, given = scene(body, distortion=distortion)
    path = tmp_path / "people.html"
    faces = body.faces.numpy()
    save_scenes_html([given, given], faces, path, title="people", license="none", rate=10.0)
    page.open(path, width=1000, height=700)
    wide, high = page.run("[document.getElementById('stage').clientWidth, innerHeight]")
    scale = min(wide / given.size[0], high / given.size[1])
    offset = np.array([wide - scale * given.size[0], high - scale * given.size[1]]) / 2
    for i, vertices in enumerate(given.vertices):
        places = page.run(f"[...window.agebody.surface(window.agebody.scenes[0].people[{i}])]")
        found = np.reshape(places, (-1, 3))
        assert np.abs(found * (1, -1, -1) - vertices).max() < 1e-4
        some = [100, *vertices.argmin(0), *vertices.argmax(0)]
        seen = [page.run(f"window.agebody.project({found[v].tolist()})") for v in some]
        pixels = camera.project(torch.from_numpy(vertices[some])).pixels.numpy()
        np.testing.assert_allclose(seen, offset + scale * pixels, atol=0.2)
    page.run("document.querySelector('input[aria-label=frame]').value")
    page.run("window.agebody.go(1)")
    assert page.run("window.agebody.state.at") == 1
    assert page.run("document.getElementById('subline').textContent") == given.title
    assert page.complaints == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mannequin", "-o", "a.txt"], "one of the suffixes .html"),
        (["mannequin", "--images", "photos", "-o", "a.html"], "it belongs to labels"),
        (["nobody.pkl", "-o", "a.html"], "nobody.pkl"),
    ],
)
def test_the_command_refuses_in_words(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["view", *arguments])
    assert found.exit_code != 0
    assert message in " ".join(found.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_page(tmp_path):
    path = tmp_path / "body.html"
    found = CliRunner().invoke(app, ["view", "mannequin", "-o", str(path)])
    assert found.exit_code == 0, found.output
    assert path.stat().st_size > 1e5
