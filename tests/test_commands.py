"""Every command refuses every kind of bad input in one line, with an exit code, and leaves nothing behind."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image
from pose_models import TINY, save_network, save_rtmo
from typer.testing import CliRunner

import agebody
from agebody.annotations.videos import write_video
from agebody.assets.io import save_asset
from agebody.nets.vit import VIT_SIZES
from agebody.pipelines.cli import app
from agebody.pipelines.cli.app import running
from agebody.pipelines.outputs import amount

COMMANDS = {
    "demo": ["--body", "{body}", "-o", "{output}"],
    "inspect": ["{body}"],
    "convert": ["{body}", "-o", "{output}.npz", "--regressor", "mine={regressor}"],
    "convert-mesh": [
        *["{mesh}", "--map", "{map}", "--faces", "{mesh}", "--body", "{body}", "-o", "{output}.npz"],
    ],
    "export": ["{body}", "--motion", "{motion}", "-o", "{output}.glb"],
    "view": ["{labels}", "--body", "{body}", "--images", "{images}", "-o", "{output}.html"],
    "bench": [],
    "warmup": [],
    "detect": ["{images}", "--detector", "rtmo:{weights}", "-o", "{output}.json"],
    "live": ["{video}", "--detector", "rtmo:{weights}", "--body", "{body}", "-o", "{output}.mp4"],
    "fit": ["{keypoints}", "--body", "{body}", "--images", "{images}", "-o", "{output}"],
    "predict": [
        *["{keypoints}", "--images", "{images}", "--checkpoint", "{checkpoint}", "--body", "{body}"],
        *["-o", "{output}"],
    ],
    "shard": ["{keypoints}", "--images", "{images}", "-o", "{output}"],
    "fit-shards": ["{shards}", "--body", "{body}", "-o", "{output}"],
    "synthesize": [
        "--body",
        "{body}",
        "--count",
        "2",
        "--size",
        "32x32",
        "--backgrounds",
        "{images}",
        "-o",
        "{output}",
    ],
    "crowd": [
        *["{labels}", "--depth", "{maps}", "--masks", "{maps}", "--people", "{people}"],
        *["--body", "{body}", "-o", "{output}.npz"],
    ],
    "evaluate": ["{labels}", "{labels}"],
    "release": [
        *["{images}", "{labels}", "--body", "{body}", "--hide", "{keypoints}", "--masks", "{maps}"],
        *["--key", "{key}", "-o", "{output}"],
    ],
}
"""Arguments of each command; names in braces are files and folders."""
INPUTS = [
    "weights",
    "checkpoint",
    "body",
    "regressor",
    "motion",
    "mesh",
    "map",
    "keypoints",
    "images",
    "shards",
    "labels",
    "maps",
    "people",
    "video",
]
USES = [
    (name, part) for name, given in COMMANDS.items() for part in INPUTS if f"{{{part}}}" in " ".join(given)
]
WRITERS = [name for name, given in COMMANDS.items() if "{output}" in " ".join(given)]
ARRAY = "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}".ljust(118).encode()


def as_file(data):
    return lambda path: path.write_bytes(data)


def deep_json(path):
    path.write_text('{"images": ' + "[" * 50_000)


WRONG = {
    "missing": lambda path: None,
    "folder": lambda path: (path / "in").mkdir(parents=True),
    "loop": lambda path: path.symlink_to(path),
    "empty": as_file(b""),
    "text": as_file(b"neither JSON nor a body"),
    "deep": deep_json,
    "number": as_file(b"17"),
    "list": as_file(b"[1, 2]"),
    "object": as_file(b'{"images": 3, "annotations": {"a": 1}}'),
    "half a zip": as_file(b"PK\x03\x04" + bytes(40)),
    "half a pickle": as_file(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"),
    "half an array": as_file(b"\x93NUMPY\x01\x00\x76\x00" + ARRAY),
    "half a safetensors": as_file((2**62).to_bytes(8, "little") + b"{}"),
    "half a Parquet": as_file(b"PAR1" + bytes(20) + b"PAR1"),
    "image": lambda path: Image.new("RGB", (4, 4)).save(path, "PNG"),
}
NAMES = ["bad [/x] [bold] \n two \x1b[31m", os.fsdecode(b"bad \xff") + " ü"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Files that are right, so that each run has one that is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIT_SIZES, "tiny", TINY)
        yield make_files(tmp_path_factory.mktemp("good"))


def make_files(place):
    save_asset(agebody.mannequin(), place / "body.safetensors")
    (place / "images").mkdir()
    Image.new("RGB", (64, 48)).save(place / "images/a.png")
    (place / "maps").mkdir()
    np.save(place / "maps/a.npy", np.ones((48, 64)))
    Image.new("L", (64, 48), 1).save(place / "maps/a.png")
    flat = [number for i in range(17) for number in (8.0 + i, 9.0 + 2 * i, 2)]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "bbox": [8, 9, 20, 35],
                "keypoints": flat,
            }
        ],
    }
    (place / "keypoints.json").write_text(json.dumps(document))
    (place / "people.json").write_text("{}")
    save_rtmo(place / "weights.onnx", np.ones((1, 17, 3)), (0.8,))
    save_network(place / "net.safetensors")
    write_video(place / "video.mp4", iter([np.zeros((48, 64, 3), np.uint8)]), 25.0)
    np.savez(place / "motion.npz", body_pose=np.zeros((2, 23, 3)))
    np.save(place / "regressor.npy", np.full((3, 6890), 1 / 6890))
    (place / "shards").mkdir()
    files = {name: place / name for name in ("images", "maps", "shards")}
    files |= {"keypoints": place / "keypoints.json", "people": place / "people.json"}
    files |= {"weights": place / "weights.onnx", "checkpoint": place / "net.safetensors"}
    files |= {"body": place / "body.safetensors", "regressor": place / "regressor.npy"}
    files |= {"motion": place / "motion.npz", "video": place / "video.mp4"}
    corners, weights = np.zeros((4, 3), int), np.full((4, 3), 1 / 3)
    np.savez(place / "mesh.npz", vertices=np.eye(4)[:, :3], faces=np.zeros((1, 3), int))
    np.savez(place / "map.npz", corners=corners, barycentric=weights, num_source_vertices=6890)
    files |= {name: place / f"{name}.npz" for name in ("mesh", "map")}
    run("shard", [str(files["keypoints"]), "-o", str(place / "shards")])
    made = run("fit", [str(files["keypoints"]), "--body", str(files["body"]), "-o", str(place / "out")])
    assert made.exit_code == 0, made.output
    return files | {"labels": place / "out/labels.npz"}


def run(command, arguments, **options):
    return CliRunner(**options).invoke(app, [command, *arguments])


def fill(command, files, place, **changes):
    paths = {**files, "output": place / "output", "key": place / "key.json", **changes}
    return [part.format(**paths) for part in COMMANDS[command]]


def assert_refused(result, place, before=()):
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert "Errno" not in lines[0]
    assert ".agebody" not in lines[0]
    files = {str(path.relative_to(place)) for path in place.rglob("*")}
    assert files == set(before)


def test_every_command_is_in_the_table():
    names = {
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
    }
    assert names == set(COMMANDS)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("command", "part"), USES)
def test_wrong_input_is_refused_in_one_line(tmp_path, good, command, part, kind):
    if (part, kind) in (("images", "folder"), ("shards", "list")) or (command, kind) == ("shard", "none"):
        pytest.skip("right for this command")
    path = tmp_path / f"bad{good[part].suffix}"
    WRONG[kind](path)
    before = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")]
    result = run(command, fill(command, good, tmp_path, **{part: path}))
    if command == "inspect" and result.exit_code == 1 and not result.stderr:
        assert "problems" in result.stdout  # the report is the answer
        return
    assert_refused(result, tmp_path, before)
    assert "bad" in result.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("command", "part"), USES)
def test_hostile_names_are_one_printable_line(tmp_path, good, command, part, name):
    path = tmp_path / f"{name}{good[part].suffix}"
    result = run(command, fill(command, good, tmp_path, **{part: path}))
    assert_refused(result, tmp_path)
    assert "bad" in result.stderr


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("kind", ["file", "below a file", "nowhere", "long"])
def test_places_that_cannot_be_written_are_refused_in_one_line(tmp_path, good, command, kind):
    (tmp_path / "file").write_text("mine")
    places = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file/output",
        "nowhere": "/proc/nowhere/output",
        "long": tmp_path / ("n" * 260),
    }
    suffixes = {
        "detect": "json",
        "export": "glb",
        "convert": "npz",
        "crowd": "npz",
        "view": "html",
        "live": "mp4",
        "convert-mesh": "npz",
    }
    if kind == "file" and command in suffixes:
        (tmp_path / f"file.{suffixes[command]}").mkdir()
    before = [path.name for path in tmp_path.iterdir()]
    result = run(command, fill(command, good, tmp_path, output=places[kind]))
    assert_refused(result, tmp_path, before)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_options_are_refused_in_one_line(tmp_path, good, command):
    arguments = fill(command, good, tmp_path)
    for wrong in (["--no-such-option"], ["--size", "[/x]"], [*arguments, "--device", "[/red]"]):
        assert_refused(run(command, wrong), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("people", "inf"), ("people", "1.5-3"), ("focal", "0"), ("fov", "nan")]
)
def test_wrong_ranges_of_synthesize_are_named(tmp_path, good, name, value):
    result = run("synthesize", [*fill("synthesize", good, tmp_path), f"--{name}", value])
    assert_refused(result, tmp_path)
    assert f"--{name}" in result.stderr


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("batch_size: expected at least 1, got 0", "--batch-size: expected at least 1, got 0"),
        ("batch_size, unfitted: expected one", "--batch-size, --unfitted: expected one"),
        ("batch_size, masks: expected one", "batch_size, masks: expected one"),
        (
            'p.png: no fit; choose unfitted="drop" or x_unfitted="a"',
            "p.png: no fit; choose --unfitted drop or x_",
        ),
        ("exists; pass overwrite=True to replace it", "exists; give --overwrite to replace it"),
        ("folder: expected one", "folder: expected one"),
    ],
)
def test_errors_of_the_library_name_options_of_the_command(said, shown, tmp_path):
    small = typer.Typer(cls=type(typer.main.get_group(app)))

    @small.command()
    def fit(
        folder: str = typer.Argument(""), batch_size: int = 1, unfitted: str = "", overwrite: bool = False
    ):
        with running(ValueError):
            raise ValueError(said)

    small.callback()(lambda: None)
    result = CliRunner().invoke(small, ["fit"])
    assert_refused(result, tmp_path)
    assert result.stderr.startswith(f"error: {shown}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_can_be_shown_without_unicode(command):
    result = run(command, ["--help"], charset="ascii")
    assert result.exit_code == 0, result.output
    assert result.stdout.isascii()


def test_names_in_files_are_shown_as_they_are(tmp_path):
    name = "[/x] [bold]ü\x1b[31m\nfake"
    asset = agebody.mannequin()
    metadata = dataclasses.replace(asset.metadata, name=name, license=name)
    (tmp_path / "[").mkdir()
    path = tmp_path / "[/x]ü\x1b.safetensors"
    save_asset(asset.replace(metadata=metadata), path)
    for charset in ("utf-8", "ascii"):
        result = run("inspect", [str(path)], charset=charset)
        assert result.exit_code == 0, result.output
        assert "[/x] [bold]" in result.stdout
        assert "\x1b" not in result.stdout
        result = run("convert", [str(path), "-o", str(tmp_path / f"[/{charset}]ü.npz")], charset=charset)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.stdout


@pytest.mark.parametrize("columns", ["0", "00", "1", "19"])
def test_terminals_of_impossible_width_hide_nothing(good, columns):
    for arguments in (["--help"], [str(good["body"])]):
        usual = run("inspect", arguments)
        result = run("inspect", arguments, env={"COLUMNS": columns})
        assert result.exit_code == 0, result.output
        assert usual.stdout
        assert result.stdout == usual.stdout


def test_closed_or_full_output_gives_one_line(good):
    command = [sys.executable, "-m", "agebody", "inspect", str(good["body"])]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["error: no space left on device"]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "", *command], stderr=subprocess.PIPE, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "--help"], ["inspect", "mannequin"]], ids=" ".join
)
def test_a_reader_that_ends_early_is_no_error(arguments):
    reads, writes = os.pipe()
    os.close(reads)
    result = subprocess.run(
        [sys.executable, "-m", "agebody", *arguments], stdout=writes, stderr=subprocess.PIPE, check=False
    )
    os.close(writes)
    assert (result.returncode, result.stderr) == (0, b"")


def test_amounts_are_in_the_right_number():
    found = [amount(count, noun) for noun in ("images", "people", "bodies") for count in (0, 1, 2)]
    assert found == [
        *("0 images", "1 image", "2 images"),
        *("0 people", "1 person", "2 people"),
        *("0 bodies", "1 body", "2 bodies"),
    ]


def test_arguments_are_named_alike():
    usages = [run(name, ["--help"]).stdout.split("[OPTIONS]")[1].split("\n")[0] for name in COMMANDS]
    assert [usage for usage in usages if usage != usage.upper()] == []
