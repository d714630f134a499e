"""Videos: people keep their tracks and one shape; what cannot be read is one line, and nothing is left."""

import re
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pose_models import TINY, save_network
from test_detect import COCO, STANDING, run

import agebody
import agebody.detect
from agebody.annotations import AnnotationError, ImageEntry
from agebody.annotations.people import make_people
from agebody.annotations.tracks import link_people
from agebody.annotations.videos import Video, _silent, frame_name, write_video
from agebody.detect import Detections, detect_people
from agebody.detect.photographs import detect_frame
from agebody.nets import Lifter
from agebody.nets.vit import VIT_SIZES
from agebody.pipelines.labels import fit_annotations, load_labels
from agebody.pipelines.labels.live import Stream

SIZE = 320, 240
COLOURS = np.array([[250, 0, 0], [0, 0, 250]])


def frame(*places):
    """A picture with a red and a blue square; none where a place is None."""
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for colour, place in zip(COLOURS, places, strict=False):
        if place is not None:
            x, y = place
            image[y - 4 : y + 4, x - 4 : x + 4] = colour
    return image


def save_video(path, places):
    assert write_video(path, (frame(*each) for each in places), 25.0) == len(places)
    return path


class Squares:
    """Finds a person around each square, from right to left, and remembers how many pictures it holds."""

    names = COCO

    def __call__(self, image):
        found = []
        for colour in COLOURS:
            y, x = np.nonzero(image[..., colour > 0][..., 0] > 120)
            if len(x):
                middle = np.array([x.mean() + 0.5, y.mean() + 0.5])
                found.append(np.concatenate((STANDING + middle, np.full((17, 1), 0.9)), -1))
        points = np.array(sorted(found, key=lambda one: -one[0, 0])).reshape(-1, 17, 3)
        ends = points[..., :2].min(1, initial=999), points[..., :2].max(1, initial=0)
        return Detections(points, np.concatenate(ends, 1), np.full(len(points), 0.9))


@pytest.fixture
def squares(monkeypatch):
    monkeypatch.setattr(agebody.detect, "load_detector", lambda name: Squares())
    return "--body", "mannequin", "--detector", "squares"


# --- frames


def test_every_frame_is_read_where_it_is_in_rgb(tmp_path):
    path = save_video(tmp_path / "a.mp4", [[(20 + 10 * i, 40), (200, 50 + 10 * i)] for i in range(7)])
    video = Video(path)
    assert (video.rate, video.count) == (25.0, 7)
    found = dict(video.frames(3))
    assert sorted(found) == [0, 3, 6]
    for i, image in found.items():
        np.testing.assert_allclose(image, frame((20 + 10 * i, 40), (200, 50 + 10 * i)), atol=80)
    assert frame_name(0) == "000001.jpg"


@pytest.mark.parametrize("size", [(100, 150), (101, 150), (100, 151), (101, 151), (1, 1)])
def test_videos_of_odd_sizes_keep_their_last_row_and_column(tmp_path, size):
    picture = np.zeros((*size, 3), np.uint8)
    picture[-1], picture[:, -1] = 250, 250
    write_video(tmp_path / "a.mp4", iter([picture]), 25.0)
    ((_, found),) = Video(tmp_path / "a.mp4").frames()
    assert found.shape[:2] == tuple(side + side % 2 for side in size)
    assert min(found[size[0] - 1].min(), found[:, size[1] - 1].min()) > 150


def test_people_of_a_video_are_those_of_its_frames(tmp_path):
    path = save_video(tmp_path / "a.mp4", [[(100 + 5 * i, 120)] for i in range(5)])
    people = detect_people(Squares(), path, every=2)
    assert [(image.name, image.size) for image in people.images] == [
        (name, SIZE) for name in ("000001.jpg", "000003.jpg", "000005.jpg")
    ]
    np.testing.assert_allclose(people.keypoints[:, 0, 0], [100, 110, 120], atol=1)


def test_frames_are_not_kept(tmp_path):
    seen = []

    class Watching(Squares):
        def __call__(self, image):
            seen.append(weakref.ref(image))
            assert sum(one() is not None for one in seen) <= 2
            return super().__call__(image)

    detect_people(Watching(), save_video(tmp_path / "a.mp4", [[(100, 120)]] * 6))
    assert len(seen) == 6


def test_a_damaged_end_is_noted(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25.0, SIZE)
    for _ in range(20):
        writer.write(frame((100, 120)))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    people = detect_people(Squares(), path)
    assert 5 < len(people.images) < 15
    assert f"damaged after frame {len(people.images)} of 20; the rest is left out" in people.notes[0]


def test_names_that_crash_opencv_and_texts_are_refused(tmp_path):
    """A first G would be MPEG's byte that packets begin with, which lets FFmpeg guess at any text."""
    data = save_video(tmp_path / "a.mp4", [[]]).read_bytes()
    other = tmp_path / "b\udcff.mp4"
    try:
        other.write_bytes(data)
    except (OSError, UnicodeEncodeError):
        pytest.skip("all names of this file system are in UTF-8")
    with pytest.raises(AnnotationError, match="OpenCV opens names in UTF-8 alone"):
        Video(other)
    with pytest.raises(AnnotationError, match="OpenCV opens names in UTF-8 alone"):
        write_video(tmp_path / "c\udcff.mp4", iter([frame()]), 25.0)
    (tmp_path / "a.ts").write_bytes(b"GIF89a" + bytes(400))
    with pytest.raises(AnnotationError, match="not a video that is read"):
        Video(tmp_path / "a.ts")


# --- tracks


def people_in(frames):
    """People standing at places (x, y) of each frame, in the order given."""
    points = [np.concatenate((STANDING + each, np.ones((17, 1))), -1) for one in frames for each in one]
    return make_people(
        Path("a"),
        np.array(points).reshape(-1, 17, 3),
        COCO,
        None,
        images=[ImageEntry(f"{i}.jpg", i, SIZE) for i in range(len(frames))],
        image=np.repeat(np.arange(len(frames)), list(map(len, frames))),
    )


def tracks_of(frames, **options):
    tracks = link_people(people_in(frames), **options).tracks
    assert tracks is not None
    return tracks.tolist()


def test_people_who_cross_keep_their_tracks():
    rng = np.random.default_rng(0)
    right = [(60 + 10 * i, 120) for i in range(20)]
    left = [(250 - 10 * i, 122) for i in range(20)]
    turns = rng.integers(0, 2, 20)
    frames = [
        [pair[turn], pair[1 - turn]] for pair, turn in zip(zip(right, left, strict=True), turns, strict=True)
    ]
    tracks = np.reshape(tracks_of(frames), (20, 2))
    names = np.where(turns[:, None] == 0, [0, 1], [1, 0])
    np.testing.assert_array_equal(tracks, names if turns[0] == 0 else 1 - names)


def test_running_and_turning_people_keep_their_tracks():
    rng = np.random.default_rng(1)
    tall = np.ptp(STANDING[:, 1])
    moves = tall * rng.uniform(0.1, 0.2, 12) * rng.choice([-1, 1], 12)
    places = 160 + np.concatenate(([0], np.cumsum(moves)))
    assert tracks_of([[(x, 120)] for x in places]) == [0] * 13
    beside = [[(x, 120), (x + 1.2 * tall, 120)] for x in places]
    assert tracks_of(beside) == [0, 1] * 13


def test_leaping_people_do_not_take_other_tracks():
    near = 60 + 0.2 * np.ptp(STANDING[:, 1])
    assert tracks_of([[(60, 120)], [(near, 120), (60, 120)]]) == [0, 1, 0]


@pytest.mark.parametrize(("gap", "tracks"), [(4, [0, 0, 0, 0]), (3, [0, 0, 1, 1])])
def test_returning_people_keep_their_track_up_to_a_gap(gap, tracks):
    frames = [[(60, 120)], [(64, 120)], [], [], [], [], [(84, 120)], [(88, 120)]]
    assert tracks_of(frames, gap=gap) == tracks


def test_somebody_elsewhere_is_somebody_else():
    assert tracks_of([[(60, 120)], [(260, 120)], [(62, 120)]]) == [0, 1, 0]


def test_frames_come_in_the_order_of_their_numbers():
    frames = [[(60 + 12 * i, 120)] for i in range(12)]  # of which 10.jpg comes after 9.jpg
    assert tracks_of(frames, gap=0) == [0] * 12


def test_tracks_of_a_file_stay():
    people = replace(people_in([[(60, 120)], [(60, 120)]]), tracks=np.array([7, 8]))
    assert link_people(people) is people


# --- the command


def walk(count=8, missing=()):
    return [[(80 + 3 * i, 120), None if i in missing else (230 - 3 * i, 120)] for i in range(count)]


def test_a_video_becomes_labels_with_one_shape_per_person(tmp_path, squares):
    path = save_video(tmp_path / "clip.mp4", walk(5, missing=(2,)))
    result = run("fit", path, *squares, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"labels.npz", "train.npz", "report.json", "report.md", "overlay.mp4"}
    assert "9 of 9 detections kept, of 2 people, in 5 images" in result.stdout
    assert "note: 2 people of unknown age" in result.stderr
    labels = load_labels(tmp_path / "out/labels.npz")
    assert len(labels) == 9
    assert sorted(set(labels.image_ids.tolist())) == [frame_name(i) for i in range(5)]
    for track, x, count in ((0, 230, 4), (1, 80, 5)):
        its = labels.select(labels.track == track)
        assert len(its) == count
        assert np.ptp(its.betas, axis=0).max() == 0
        assert np.ptp(its.age_offset) == 0
        assert abs(its.observed[0, 0, 0] - x) < 1.5
        assert its.reprojection.max() < 5
        assert (np.sign(np.diff(its.transl[:, 0])) == (-1 if track == 0 else 1)).all()
    film = Video(tmp_path / "out/overlay.mp4")
    assert (film.count, film.rate) == (5, 25)
    again = run("fit", path, *squares, "-o", tmp_path / "out")
    assert again.exit_code == 1
    assert "exists; give --overwrite" in again.stderr


def test_frames_in_a_folder_are_a_video_if_asked(tmp_path, squares):
    (tmp_path / "frames").mkdir()
    for i, places in enumerate(walk(3, missing=range(3))):
        Image.fromarray(frame(*places)).save(tmp_path / f"frames/{i}.png")
    result = run("fit", tmp_path / "frames", *squares, "--video", "--every", "2", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    labels = load_labels(tmp_path / "out/labels.npz")
    assert labels.track.tolist() == [0, 0]
    film = Video(tmp_path / "out/overlay.mp4")
    assert (film.count, film.rate) == (2, 15)
    Image.new("RGB", (50, 60)).save(tmp_path / "frames/3.png")
    result = run("fit", tmp_path / "frames", *squares, "--video", "-o", tmp_path / "two")
    assert_refused(result, "expected frames of one size")


def assert_refused(result, problem):
    assert result.exit_code in (1, 2), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert problem in line


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a video"),
        (b"neither a video nor a body", "not a video"),
        (b"#EXTM3U\nother.mp4", "not a video"),
        (b"\0\0\0\x18ftypmp42" + bytes(200), "the video is damaged"),
        (None, "the video is damaged"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "detect"])
def test_files_other_than_videos_give_one_line(tmp_path, squares, capfd, command, content, problem):
    path = tmp_path / "bad.mp4"
    if content is None:  # its index is at its end
        content = save_video(path, walk()).read_bytes()[:-300]
    path.write_bytes(content)
    out = tmp_path / ("out" if command == "fit" else "out.json")
    result = run(command, path, *squares[0 if command == "fit" else 2 :], "-o", out)
    assert_refused(result, f"{path}: {problem}")
    assert not out.exists()
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg are silent


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--shards"], "--shards: it needs frames as images: `ffmpeg -i VIDEO frames/%06d.jpg`"),
        (["--depth", "."], "--depth: it places people of single images"),
        (["--every", "0"], "--every"),
        (["--gap", "-1"], "--gap"),
    ],
)
def test_options_without_meaning_for_videos_are_refused(tmp_path, squares, options, problem):
    path = save_video(tmp_path / "a.mp4", walk())
    assert_refused(run("fit", path, *squares, *options, "-o", tmp_path / "out"), problem)
    assert not (tmp_path / "out").exists()


def test_videos_without_people_give_one_line(tmp_path, squares):
    path = save_video(tmp_path / "a.mp4", [[]] * 3)
    result = run("fit", path, *squares, "-o", tmp_path / "out")
    assert_refused(result, "a.mp4: there is nobody to fit")
    assert not (tmp_path / "out").exists()


def test_keypoints_have_no_every(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert_refused(run("fit", tmp_path / "a.json", "--every", "2", "-o", tmp_path / "out"), "--every")


def test_without_opencv_the_error_names_the_extra(tmp_path, squares, monkeypatch):
    path = save_video(tmp_path / "a.mp4", walk())
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = run("fit", path, *squares, "-o", tmp_path / "out")
    assert_refused(result, 'a video needs OpenCV, which is not installed; pip install "agebody[video]"')
    assert not (tmp_path / "out").exists()


def test_networks_take_photographs(tmp_path, squares, monkeypatch):
    path = save_video(tmp_path / "a.mp4", walk())
    monkeypatch.setitem(VIT_SIZES, "tiny", TINY)
    save_network(tmp_path / "net.safetensors")
    given = ("--checkpoint", tmp_path / "net.safetensors", *squares)
    result = run("predict", path, *given, "-o", tmp_path / "out")
    assert_refused(result, "a.mp4: expected photographs, got a video")


def test_fits_over_time_need_tracks():
    body = agebody.SMPLA(agebody.mannequin())
    people = people_in([[(60, 120)], [(60, 120)]])
    with pytest.raises(AnnotationError, match="tracks: expected a number for everybody"):
        fit_annotations(body, people, motion_sd=0.1)
    twice = people_in([[(60, 120)], [(60, 120), (90, 120)]])
    with pytest.raises(AnnotationError, match="1.jpg: the same track twice"):
        fit_annotations(body, replace(twice, tracks=np.zeros(3, int)), motion_sd=0.1)


# --- picture by picture


def test_a_video_is_fitted_as_it_comes(tmp_path, squares):
    path = save_video(tmp_path / "a.mp4", [[(90 + 6 * i, 120), (220, 120)] for i in range(4)])
    result = run("live", path, *squares, "-o", tmp_path / "drawn.mp4")
    assert result.exit_code == 0, result.output
    said = re.search(
        r"4 pictures, ([\d.]+) frames a second: (detecting .*) \(means\)", " ".join(result.stdout.split())
    )
    assert said
    assert "reading and writing" in said[2]
    steps = sum(int(each) for each in re.findall(r"(\d+) ms", said[2]))
    np.testing.assert_allclose(float(said[1]), 1e3 / steps, rtol=0.05, atol=0.05)
    assert Video(tmp_path / "drawn.mp4").count == 4


def test_people_of_a_stream_keep_their_number_shape_and_place():
    body = agebody.SMPLA(agebody.mannequin())
    stream, found = Stream(body, Lifter.load(), age_class="adult"), []
    places = [[(90, 120), (220, 120)], [(96, 120), (220, 120)], [None, (220, 120)], [(108, 120), None], []]
    for i, each in enumerate(places):
        found.append(stream(detect_frame(Squares(), frame(*each), Path("a.mp4"), i)))
    assert [sorted(labels.track.tolist()) for labels in found] == [[0, 1], [0, 1], [0], [1], []]
    first, last = (labels.select(labels.track == 1) for labels in (found[0], found[3]))
    assert abs(first.stature[0] - last.stature[0]) < 0.05
    assert all((labels.reprojection < 4).all() for labels in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "-o", "out.mp4"], "expected a video"),
        (["none.mp4", "-o", "out.mp4"], "no such file"),
        (["a.mp4", "-o", "out.gif"], "ends in .mp4"),
        (["a.mp4", "--camera", "0"], "--camera: expected a camera or a video"),
        (["--camera", "99", "-o", "out.mp4"], "no such camera"),
        (["a.mp4"], "-o FILE.mp4"),
    ],
)
def test_unviewable_input_is_refused_in_one_line(tmp_path, monkeypatch, squares, arguments, message):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", SIZE).save("a.png")
    save_video(tmp_path / "a.mp4", [[(90, 120)]])
    result = run("live", *arguments, *squares)
    assert result.exit_code in (1, 2)
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png"]


@pytest.mark.parametrize("old", [False, True])
def test_opencv_is_silent_wherever_it_keeps_its_level(old):
    levels = [3]
    log = types.SimpleNamespace(getLogLevel=lambda: levels[-1], setLogLevel=levels.append)
    opencv = types.SimpleNamespace(utils=types.SimpleNamespace(), **vars(log)) if old else None
    opencv = opencv or types.SimpleNamespace(utils=types.SimpleNamespace(logging=log))
    with _silent(opencv):
        assert levels == [3, 0]
    assert levels == [3, 0, 3]
