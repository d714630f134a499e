import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import trimesh
import typer
from PIL import Image
from typer.testing import CliRunner

from agebody import load_asset, save_asset
from agebody.age import median_stature
from agebody.people import POSES, pose
from agebody.pipelines.cli import app
from agebody.pipelines.cli.app import fail, running
from agebody.pipelines.demo import PEOPLE, run_demo

RUNNER = CliRunner()


@pytest.fixture
def asset(mannequin_asset):
    return mannequin_asset


@pytest.fixture(scope="module")
def body_file(mannequin_asset, tmp_path_factory):
    path = tmp_path_factory.mktemp("bodies") / "body.safetensors"
    save_asset(mannequin_asset, path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return folder, run("demo", "--body", "mannequin", "-o", folder, "--width", 240)


@pytest.fixture
def untimed(monkeypatch):
    monkeypatch.setattr("agebody.pipelines.demo._time", lambda *arguments: (0.0, 0.0))


def run(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def assert_one_line_error(result, message, exit_code=1):
    assert result.exit_code == exit_code
    assert not isinstance(result.exception, Exception), result.exception  # SystemExit is none
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_version_and_help():
    assert run("--version").output == f"agebody {version('agebody')}\n"
    for command in ((), ("demo",), ("inspect",), ("convert",)):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output
    assert run().exit_code == 2
    assert run("dance").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [("inspect", ""), ("inspect", " "), ("demo", "-o", ""), ("demo", "--output=")]
)
def test_empty_arguments_are_not_the_current_folder(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*arguments), "an argument is empty", 2)
    assert not any(tmp_path.iterdir())


def test_the_home_folder_is_found_where_shells_do_not_expand_it(tmp_path, monkeypatch, body_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(body_file.parent)
    assert run("convert", body_file, "--output=~/a.npz").exit_code == 0
    assert_one_line_error(run("inspect", "~/b.npz"), f"{tmp_path / 'b.npz'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    (body_file.parent / "~").mkdir()
    assert_one_line_error(run("inspect", "./~/b.npz"), "~/b.npz: ")


def test_demo_writes_its_three_files_and_nothing_else(demo):
    folder, result = demo
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(folder)) == ["ages.glb", "ages.npz", "ages.png"]
    for name in ("ages.glb", "ages.npz", "ages.png"):
        assert f"wrote {folder / name}" in result.stdout
    for person in PEOPLE:
        assert person.name in result.stdout


def test_demo_draws_every_person_on_a_light_ground(demo):
    with Image.open(demo[0] / "ages.png") as image:
        assert image.width == 240
        pixels = np.asarray(image.convert("RGB")).astype(int)
    colorful = np.ptp(pixels, axis=-1) > 40
    thirds = np.array_split(colorful, 6, axis=1)
    assert all(third.any() for third in thirds)
    assert pixels[0].min() > 220


def test_demo_writes_arrays_of_the_body(demo, asset):
    with np.load(demo[0] / "ages.npz", allow_pickle=False) as arrays:
        assert arrays["vertices"].shape == (2, 6, asset.num_vertices, 3)
        assert arrays["body_pose"].shape == (2, 6, asset.num_joints - 1, 3)
        assert arrays["age_offset"][-1] == 0
        assert (np.diff(arrays["age_offset"]) < 0).all()
        medians = median_stature(arrays["years"])
        # The body's adult is within 2 % of the WHO's, and its children no further off.
        np.testing.assert_allclose(arrays["stature"], medians, rtol=0.02)
        np.testing.assert_allclose(arrays["stature"][0], medians[0], rtol=1e-3)


def test_demo_scene_has_the_people_by_name_and_on_the_ground(demo):
    scene = trimesh.load_scene(demo[0] / "ages.glb")
    names = {f"{person.name} {person.calm[0]}" for person in PEOPLE}
    names |= {f"{person.name} {person.lively[0]}" for person in PEOPLE}
    assert set(scene.geometry) == names
    for mesh in scene.geometry.values():
        assert mesh.bounds[0, 1] == pytest.approx(0, abs=1e-6)


def test_the_package_runs_as_a_program(body_file):
    command = [sys.executable, "-m", "agebody", "inspect", str(body_file), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["num_vertices"] == 6890
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["demo", "synthesize", "export"])
def test_a_misspelt_body_is_answered_with_the_built_in_ones(tmp_path, command):
    body = ["manequin"] if command == "export" else ["--body", "manequin"]
    result = run(command, *body, "-o", tmp_path / "out.glb")
    assert_one_line_error(
        result, "manequin: neither a file nor a built-in body (anny, anny-hands, mannequin)"
    )


def test_an_error_that_is_printed_is_not_printed_again(capsys):
    with pytest.raises(typer.Exit), running(RuntimeError):
        fail("said once")
    assert capsys.readouterr().err == "error: said once\n"


def test_demo_reports_errors_in_one_line(tmp_path, body_file, asset, monkeypatch, untimed):
    assert_one_line_error(run("demo", "--body", tmp_path / "none.pkl", "-o", tmp_path), "none.pkl")
    adult = tmp_path / "adult.safetensors"
    save_asset(asset.replace(age_templates=None, age_offsets=np.zeros(0)), adult)
    assert_one_line_error(
        run("demo", "--body", adult, "-o", tmp_path), "agebody convert BODY INFANT` adds one"
    )
    assert_one_line_error(run("demo", "--body", body_file, "-o", adult), "cannot write in this folder")
    assert_one_line_error(
        run("demo", "--body", body_file, "-o", adult / "sub"), "cannot write in this folder"
    )
    for device in ("cuda:99", "tpu", "meta"):
        result = run("demo", "--body", body_file, "--device", device, "-o", tmp_path)
        assert result.exit_code == 2
        assert "--device" in result.stderr
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    assert_one_line_error(run("demo", "--body", body_file, "-o", tmp_path, "--width", 64), "agebody[render]")
    assert os.listdir(tmp_path) == ["adult.safetensors"]


def test_an_interrupted_demo_leaves_nothing(tmp_path, asset, monkeypatch, untimed):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(asset, tmp_path, width=64)
    assert os.listdir(tmp_path) == []


def test_inspect_describes_a_body(body_file, asset):
    result = run("inspect", body_file)
    assert result.exit_code == 0, result.output
    for word in (str(asset.num_vertices), "coco17", asset.metadata.license, "float", "sha256"):
        assert word in result.stdout
    report = json.loads(run("inspect", body_file, "--json").stdout)
    assert report["num_joints"] == 24
    assert report["age_offsets"] == [1.0]
    assert report["problems"] == []


def test_inspect_describes_a_built_in_body():
    report = json.loads(run("inspect", "mannequin", "--json").stdout)
    assert report["num_vertices"] == 6890
    assert report["variant"] == "mannequin model (built in)"
    assert report["sha256"] is None  # of a file


def test_inspect_exits_with_1_for_other_files(tmp_path):
    noise = tmp_path / "noise.pkl"
    noise.write_bytes(b"this is no body")
    result = run("inspect", noise)
    assert result.exit_code == 1
    assert "not a body" in result.stdout
    assert json.loads(run("inspect", noise, "--json").stdout)["problems"]
    assert_one_line_error(run("inspect", tmp_path / "none.pkl"), "none.pkl")


def test_convert_joins_an_infant_and_regressors(tmp_path, asset):
    adult = tmp_path / "adult.safetensors"
    save_asset(asset.replace(age_templates=None, age_offsets=np.zeros(0), regressors={}), adult)
    infant, regressor = tmp_path / "kid.npy", tmp_path / "h36m.npy"
    np.save(infant, asset.age_templates[0] + 0.25)  # wherever it lies: templates are centred
    np.save(regressor, np.full((17, asset.num_vertices), 1 / asset.num_vertices))
    out = tmp_path / "out.safetensors"
    options = (infant, "--regressor", f"h36m17={regressor}")
    result = run("convert", adult, *options, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.stdout
    joined = load_asset(out)
    assert joined.age_offsets.tolist() == [1]
    assert set(joined.regressors) == {"h36m17"}
    assert_one_line_error(run("convert", adult, "-o", out), "exists; give --overwrite to replace it")
    assert run("convert", adult, "-o", out, "--overwrite").exit_code == 0
    assert not load_asset(out).has_age
    before = adult.read_bytes()
    same = run("convert", adult, "--regressor", f"h36m17={regressor}", "-o", adult, "--overwrite")
    assert_one_line_error(same, "--output is a file that the command reads; give another")
    assert adult.read_bytes() == before


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_convert_writes_smpl_files_and_notes_missing_parts(tmp_path, body_file, asset, suffix):
    out = tmp_path / f"body{suffix}"
    result = run("convert", body_file, "-o", out)
    assert result.exit_code == 0, result.output
    assert "note: " in result.stderr
    assert "age templates" in result.stderr
    np.testing.assert_allclose(load_asset(out).template, asset.template)


def test_convert_names_wrong_options(tmp_path, body_file):
    result = run("convert", body_file, "-o", tmp_path / "body.obj")
    assert result.exit_code == 2
    assert "--output" in result.stderr
    result = run("convert", body_file, "-o", tmp_path / "a.npz", "--regressor", "h36m17")
    assert result.exit_code == 2
    assert "NAME=FILE" in result.stderr
    assert_one_line_error(run("convert", tmp_path / "none.pkl", "-o", tmp_path / "a.npz"), "none.pkl")
    assert_one_line_error(run("convert", body_file, "-o", body_file / "no" / "a.npz"), "no")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", POSES)
def test_poses_turn_only_joints_that_bodies_have(asset, name):
    angles = pose(name, asset.joint_names, heading=0.4)
    assert angles.shape == (asset.num_joints, 3)
    turns = np.linalg.norm(angles, axis=1)
    assert turns.max() < np.pi
    assert 3 < np.count_nonzero(turns) <= len(POSES[name]) + 1


def test_poses_name_missing_parts(asset):
    with pytest.raises(ValueError, match=r"name: expected one of standing, .*, got 'flying'"):
        pose("flying", asset.joint_names)
    with pytest.raises(ValueError, match=r"moves head, .*, which this body does not have"):
        pose("standing", ["pelvis", "left_hip"])
