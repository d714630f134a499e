"""Detectors find points where they are, in any photograph, and say in one line why they cannot."""

import json
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image
from pose_models import save_rtmo, save_rtmpose
from typer.testing import CliRunner

from agebody.annotations import AnnotationError, read_people, save_people
from agebody.annotations.orders import order_by_title
from agebody.detect import Detections, Detector, detect_people, load_detector
from agebody.detect.blazepose import BlazePose
from agebody.detect.detector import DetectorError
from agebody.detect.movenet import MoveNet
from agebody.detect.windows import Window, letterbox
from agebody.keypoints import LAYOUTS
from agebody.pipelines.cli import app
from agebody.pipelines.labels import load_labels

COCO = LAYOUTS["coco17"].names
STANDING = np.array(
    [
        *[[0, -78], [3, -81], [-3, -81], [7, -79], [-7, -79]],
        *[[17, -60], [-17, -60], [22, -32], [-22, -32], [24, -8], [-24, -8]],
        *[[10, -2], [-10, -2], [11, 40], [-11, 40], [12, 80], [-12, 80]],
    ],
    dtype=float,
)
"""COCO's keypoints of a person from the front."""


def person(x, y, scale=1.0, score=0.9, count=1):
    points = np.concatenate((STANDING * scale + (x, y), np.full((17, 1), 0.8)), -1)
    keypoints = np.repeat(points[None], count, 0)
    low, high = keypoints[..., :2].min(1), keypoints[..., :2].max(1)
    return Detections(keypoints, np.concatenate((low, high), 1), np.full(count, score))


class Fixed:
    """A detector that finds the same people in every image, and remembers what it saw."""

    names = COCO

    def __init__(self, found):
        self.found, self.seen = found, []

    def __call__(self, image):
        self.seen.append(image)
        return self.found


def save_photo(path, size=(160, 240), dot=None, **options):
    image = np.full((size[1], size[0], 3), 40, np.uint8)
    if dot is not None:
        image[dot[1] - 2 : dot[1] + 3, dot[0] - 2 : dot[0] + 3] = 255
    Image.fromarray(image).save(path, **options)
    return image


# --- photographs


def test_people_of_a_folder(tmp_path):
    (tmp_path / "more").mkdir()
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "more/b.jpg", size=(200, 220))
    detector = Fixed(person(80, 120))
    assert isinstance(detector, Detector)
    done = []
    people = detect_people(detector, tmp_path, progress=lambda *counts: done.append(counts))
    assert [(image.name, image.size) for image in people.images] == [
        ("a.png", (160, 240)),
        ("more/b.jpg", (200, 220)),
    ]
    assert people.layout is LAYOUTS["coco17"]
    np.testing.assert_allclose(people.keypoints[1], STANDING + np.array([80, 120]))
    np.testing.assert_allclose(people.weights, 0.8)
    np.testing.assert_allclose(people.boxes, np.repeat(person(80, 120).boxes, 2, 0))
    assert people.scores.tolist() == [0.9, 0.9]
    assert done == [(0, 2), (1, 2)]
    assert people.focal is None
    assert "2 of 2 images are guessed" in people.notes[0]


def test_photographs_are_turned_upright_and_their_focal_length_is_read(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    exif.get_ifd(0x8769)[41989] = 28
    save_photo(tmp_path / "a.jpg", size=(240, 160), exif=exif)
    detector = Fixed(person(80, 120))
    people = detect_people(detector, tmp_path / "a.jpg")
    assert detector.seen[0].shape == (240, 160, 3)
    assert people.images[0].size == (160, 240)
    np.testing.assert_allclose(people.focal, 28 * np.hypot(240, 160) / np.hypot(36, 24))
    assert "1 of 1 images are from their EXIF" in people.notes[0]
    assert detect_people(detector, tmp_path / "a.jpg", exif=False).focal is None
    save_photo(tmp_path / "b.png")
    people = detect_people(detector, tmp_path)
    assert np.isnan(people.focal).tolist() == [False, True]
    assert "1 of 2 images are guessed to be their diagonals" in people.notes[1]


def test_of_doubles_the_best_is_kept_and_neighbours_stay(tmp_path):
    save_photo(tmp_path / "a.png")
    parts = [person(60, 120, score=0.5), person(60.5, 120, score=0.7), person(110, 120, score=0.6)]
    people = detect_people(Fixed(Detections.join(parts)), tmp_path)
    assert people.scores.tolist() == [0.7, 0.6]
    assert people.left_out == (("the same person again", 1),)


def test_halves_of_a_person_are_joined_and_people_who_touch_stay():
    """One detection has the arms, the other the legs; boxes of networks are of the whole person."""
    upper, lower = person(60, 120), person(60, 121, score=0.8)
    upper.keypoints[:, 11:] += [25, -30, -0.65]
    lower.keypoints[:, 5:11] += [-25, 40, -0.65]
    near = person(80, 120, score=0.7)
    near.boxes[:] += [0, 0, 15, 0]
    found = Detections.join([lower, upper, near]).merged(COCO)
    assert found.scores.tolist() == [0.9, 0.7]
    np.testing.assert_array_equal(found.keypoints[0], upper.keypoints[0])


def test_keypoints_find_their_layout_by_name(tmp_path):
    save_photo(tmp_path / "a.png")
    detector = Fixed(person(80, 120))
    detector.names = ("root", *COCO[1:])  # no nose
    people = detect_people(detector, tmp_path)
    assert people.weights[0, 0] == 0
    assert people.weights[0, 1:].all()
    assert "root" in people.notes[0]
    assert detect_people(Fixed(person(80, 120)), tmp_path, layout="openpose25").layout.name == "openpose25"
    detector.names = tuple(f"point{i}" for i in range(17))
    with pytest.raises(AnnotationError, match="expected names of"):
        detect_people(detector, tmp_path)


def test_unreadable_photographs_are_noted_unless_they_are_all(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(AnnotationError, match="no photograph can be read; .*bad.jpg"):
        detect_people(Fixed(person(80, 120)), tmp_path)
    save_photo(tmp_path / "good.png")
    people = detect_people(Fixed(person(80, 120)), tmp_path)
    assert [image.name for image in people.images] == ["good.png"]
    assert "bad.jpg: not an image" in people.notes[0]
    with pytest.raises(AnnotationError, match="bad.jpg: not an image"):
        detect_people(Fixed(person(80, 120)), tmp_path / "bad.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="no photographs"):
        detect_people(Fixed(person(80, 120)), tmp_path / "empty")


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        (1, 2),
        (np.zeros((1, 16, 3)), np.zeros((1, 4)), np.zeros(1)),
        (np.zeros((1, 17, 2)), np.zeros((1, 4)), np.zeros(1)),
        (np.zeros((2, 17, 3)), np.zeros((1, 4)), np.zeros(2)),
        (np.full((1, 17, 3), np.nan), np.zeros((1, 4)), np.zeros(1)),
    ],
)
def test_detectors_that_break_the_protocol_are_refused(tmp_path, wrong):
    save_photo(tmp_path / "a.png")
    with pytest.raises(DetectorError, match="a.png: "):
        detect_people(Fixed(wrong), tmp_path)


def test_no_people_is_not_an_error(tmp_path):
    save_photo(tmp_path / "a.png")
    people = detect_people(Fixed(person(0, 0, count=0)), tmp_path)
    assert len(people) == 0
    assert len(people.images) == 1
    save_people(people, tmp_path / "people.json")
    assert len(read_people(tmp_path / "people.json")) == 0


# --- files


def test_written_people_are_read_as_they_were(tmp_path):
    numbers = [0.2 * i for i in range(51)]
    entries = [
        {"id": 7, "image_id": 2, "keypoints": numbers, "score": 0.25, "years": 3.5, "track_id": 4},
        {"id": 3, "image_id": 2, "keypoints": numbers, "bbox": [1, 2, 3.5, 4], "age_class": "kid"},
        {"id": 9, "image_id": 1, "keypoints": numbers, "age_offset": 0.75},
    ]
    names = ({"id": 1, "file_name": "d/ü.png"}, {"id": 2, "file_name": "b.png"})
    images = [{**name, "width": 50, "height": 40 + name["id"]} for name in names]
    (tmp_path / "given.json").write_text(json.dumps({"images": images, "annotations": entries}))
    given = read_people(tmp_path / "given.json")
    save_people(given, tmp_path / "saved.json")
    found = read_people(tmp_path / "saved.json")
    assert found.images == given.images
    assert found.layout is given.layout
    for name in ("image", "ids", "keypoints", "weights", "boxes", "tracks", "scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(given, name), err_msg=name, atol=1e-4)
    for mine, theirs in zip(found.ages, given.ages, strict=True):
        np.testing.assert_allclose(mine, theirs)
    with pytest.raises(FileExistsError, match="saved.json"):
        save_people(given, tmp_path / "saved.json")


# --- windows


@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.3])
def test_a_point_of_a_window_is_where_it_is_in_the_image(angle, scale):
    image = np.zeros((240, 160, 3), np.uint8)
    image[150:155, 60:65] = 255
    window = Window((70.0, 140.0), scale, (96, 128), angle)
    cut = window.cut(image)
    assert cut.shape == (128, 96, 3)
    y, x = (np.average(grid, weights=cut[..., 0]) + 0.5 for grid in np.indices(cut.shape[:2]))
    np.testing.assert_allclose(window.to_image(np.array([x, y])), (62.5, 152.5), atol=0.4)


def test_a_letterbox_shows_everything():
    image = np.full((100, 200, 3), 250, np.uint8)
    window = letterbox(image, (64, 64))
    cut = window.cut(image, 9)
    assert (cut[1:31, 1:63] == 250).all()
    assert (cut[33:] == 9).all()
    np.testing.assert_allclose(window.to_image(np.array([[0, 0], [64.0, 32]])), [[0, 0], [200, 100]])


# --- models in files


def test_rtmo(tmp_path):
    points = np.array([[[10.0 + i, 20, 0.9] for i in range(17)], [[5.0, 6, 0.1]] * 17])
    save_rtmo(tmp_path / "m.onnx", points, (0.8, 0.1), box=(8, 16, 40, 48))
    detector = load_detector(f"rtmo:{tmp_path / 'm.onnx'}")
    found = detector(np.zeros((256, 128, 3), np.uint8))  # shown at a quarter of its size
    assert tuple(detector.names) == COCO
    np.testing.assert_allclose(found.keypoints[0, :, 0], 4 * (10 + np.arange(17)), atol=1e-4)
    np.testing.assert_allclose(found.keypoints[0, :, 1:], [[80, 0.9]] * 17, atol=1e-4)
    np.testing.assert_allclose(found.boxes, [[32, 64, 160, 192]])
    np.testing.assert_allclose(found.scores, [0.8], atol=1e-6)


@pytest.mark.parametrize(("count", "title"), [(26, "Halpe-26"), (133, "COCO-WholeBody")])
def test_rtmo_of_other_keypoints(tmp_path, count, title):
    save_rtmo(tmp_path / "m.onnx", np.full((1, count, 3), 0.5), (0.8,))
    detector = load_detector(f"rtmo:{tmp_path / 'm.onnx'}")
    assert detector.names == order_by_title(title).said
    assert detector(np.zeros((64, 64, 3), np.uint8)).keypoints.shape == (1, len(detector.names), 3)


@pytest.mark.parametrize("finder", [False, True])
def test_rtmpose_finds_a_point_in_a_box_or_in_the_image(tmp_path, finder):
    save_rtmpose(tmp_path / "p.onnx")
    image = save_photo(tmp_path / "a.png", dot=(101, 61))
    name = f"rtmpose:{tmp_path / 'p.onnx'}"
    if finder:
        save_rtmo(tmp_path / "m.onnx", np.ones((1, 17, 3)), (0.8,), box=(20, 10, 30, 40))
        name = f"rtmo:{tmp_path / 'm.onnx'}+{name}"
    found = load_detector(name)(image)
    np.testing.assert_allclose(found.keypoints[0, :, :2], [(101.5, 61.5)] * 17, atol=3.5)
    assert found.scores.tolist() == [1.0]


def test_rtmlib_is_asked_for_boxes_first(monkeypatch):
    asked = []

    class BodyWithFeet:
        def __init__(self, **options):
            asked.append(options)

        def det_model(self, image):
            asked.append(image[0, 0].tolist())
            return np.array([[1.0, 2, 30, 40]]) if image.any() else np.array([])

        def pose_model(self, image, bboxes):
            return np.full((len(bboxes), 26, 2), 5.0), np.full((len(bboxes), 26), 1.2)

    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(BodyWithFeet=BodyWithFeet))
    detector = load_detector("rtmlib:lightweight")
    found = detector(np.full((50, 40, 3), (1, 2, 3), np.uint8))
    assert asked == [{"mode": "lightweight", "backend": "onnxruntime"}, [3, 2, 1]]
    assert found.keypoints.shape == (1, 26, 3)
    assert found.scores.tolist() == [1.0]
    assert len(detector(np.zeros((50, 40, 3), np.uint8)).scores) == 0
    with pytest.raises(DetectorError, match="expected performance, balanced, lightweight"):
        load_detector("rtmlib:")

    def fail(**options):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(BodyWithFeet=fail))
    with pytest.raises(DetectorError, match=r"cannot download its weights \(no route to host\); connect"):
        load_detector("rtmlib")


class FakeInterpreter:
    """LiteRT's interface to a network that is a function."""

    def __init__(self, model_content, num_threads):
        if model_content not in self.known:
            raise ValueError("not a flatbuffer")
        self.shapes, self.dtype, self.function = self.known[model_content]
        self.given = None

    def get_input_details(self):
        shape = self.shapes[0] if self.given is None else self.given
        return [{"index": 0, "shape": np.abs(shape), "shape_signature": self.shapes[0], "dtype": self.dtype}]

    def get_output_details(self):
        return [{"index": i + 1, "shape_signature": shape} for i, shape in enumerate(self.shapes[1:])]

    def resize_tensor_input(self, index, shape, strict):
        self.given = np.array(shape)

    def allocate_tensors(self):
        pass

    def set_tensor(self, index, value):
        assert value.dtype == self.dtype
        self.value = value

    def invoke(self):
        self.outputs = self.function(self.value)

    def get_tensor(self, index):
        return self.outputs[index - 1].astype(np.float32)


@pytest.fixture
def lite(monkeypatch):
    """LiteRT with networks by the contents of their files."""
    known = {}
    fake = type("Fake", (FakeInterpreter,), {"known": known})
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    module = types.SimpleNamespace(Interpreter=fake)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    return known


def brightest(picture):
    """Return x and y of the middle of what is bright, in pixels."""
    bright = np.asarray(picture, dtype=float)[..., 0]
    weights = np.where(bright > (bright.min() + bright.max()) / 2, bright - bright.min(), 0)
    y, x = (np.average(grid, weights=weights) + 0.5 for grid in np.indices(bright.shape))
    return x, y


def multipose(batch):
    (x, y), (height, width) = brightest(batch[0]), batch.shape[1:3]
    points = np.array([x, y]) + STANDING * max(width, height) / 512
    row = np.concatenate((points[:, ::-1] / (height, width), np.full((17, 1), 0.9)), 1).ravel()
    row = np.array([*row, 0.1, 0.2, 0.5, 0.6, 0.8])
    return [np.stack((row, *[np.zeros(56)] * 5))[None]]


def singlepose(batch):
    return [multipose(batch)[0][0, 0, :51].reshape(1, 1, 17, 3)]


def test_movenet_finds_a_point_at_both_sizes_once(tmp_path, lite):
    (tmp_path / "m.tflite").write_bytes(b"multi")
    lite[b"multi"] = ((1, -1, -1, 3), (1, 6, 56)), np.uint8, multipose
    detector = load_detector(f"movenet:{tmp_path / 'm.tflite'}")
    assert isinstance(detector, MoveNet)
    found = detector(save_photo(tmp_path / "a.png", dot=(101, 61)))
    truth = STANDING * 240 / 512 + (101.5, 61.5)
    np.testing.assert_allclose(found.keypoints[..., :2], truth[None], atol=1)
    np.testing.assert_allclose(found.scores, [0.8], atol=1e-6)
    # Seen at 256 pixels, 160 x 240 becomes 171 x 256, padded to 192 x 256.
    np.testing.assert_allclose(found.boxes, [[36, 24, 108, 120]], atol=0.5)


def test_movenet_for_one_person(tmp_path, lite):
    (tmp_path / "m.tflite").write_bytes(b"single")
    lite[b"single"] = ((1, 192, 192, 3), (1, 1, 17, 3)), np.float32, singlepose
    found = load_detector(f"movenet:{tmp_path / 'm.tflite'}")(save_photo(tmp_path / "a.png", dot=(101, 61)))
    truth = STANDING * 240 / 512 + (101.5, 61.5)
    np.testing.assert_allclose(found.keypoints[..., :2], truth[None], atol=1)
    np.testing.assert_allclose(found.scores, [0.9], atol=1e-6)


def blaze_finder(picture):
    """Find one person who leans: hips in the middle, the circle's end 40 pixels right and 30 below."""
    boxes, scores = np.zeros((1, 2254, 12)), np.full((1, 2254, 1), -20.0)
    cell = 2 * (14 * 28 + 14)  # of stride 8, about (116, 116)
    boxes[0, cell] = [0, 0, 50, 50, -4, -4, 36, 26, 0, 0, 0, 0]
    boxes[0, cell + 1] = boxes[0, cell]
    scores[0, cell : cell + 2] = 5
    return [boxes, scores]


def blaze_landmarks(picture):
    x, y = brightest(picture[0])
    points = np.tile([x, y, 0, 2, 2], 39)[None]
    return [points, np.array([[0.9]])]


def test_blazepose_turns_to_the_person(tmp_path, lite):
    shapes = (1, 224, 224, 3), (1, 2254, 12), (1, 2254, 1)
    lite[b"finder"] = shapes, np.float32, blaze_finder
    lite[b"landmarks"] = ((1, 256, 256, 3), (1, 195), (1, 1)), np.float32, blaze_landmarks
    with zipfile.ZipFile(tmp_path / "m.task", "w") as bundle:
        bundle.writestr("pose_detector.tflite", b"finder")
        bundle.writestr("pose_landmarks_detector.tflite", b"landmarks")
    (tmp_path / "pose_detection.tflite").write_bytes(b"finder")
    (tmp_path / "landmarks.tflite").write_bytes(b"landmarks")
    image = save_photo(tmp_path / "a.png", dot=(101, 101))
    for file in ("m.task", "landmarks.tflite"):
        detector = load_detector(f"blazepose:{tmp_path / file}")
        assert isinstance(detector, BlazePose)
        (window,) = detector._windows(image)
        np.testing.assert_allclose(window.center, (80, 120), atol=1e-6)
        np.testing.assert_allclose(window.angle, np.pi - np.arctan(40 / 30))  # head down
        np.testing.assert_allclose(window.scale, 256 / (2 * 1.25 * 50 * 240 / 224))
        found = detector(image)
        np.testing.assert_allclose(found.keypoints[..., :2], [[(101.5, 101.5)] * 33], atol=0.5)
        np.testing.assert_allclose(found.keypoints[..., 2], 1 / (1 + np.exp(-2)), atol=1e-6)
        np.testing.assert_allclose(found.scores, [0.9], atol=1e-6)
    people = detect_people(detector, tmp_path / "a.png")
    assert people.layout.name == "openpose25"


def test_wrong_models_are_refused_in_one_line(tmp_path, lite):
    (tmp_path / "text").write_bytes(b"text")
    (tmp_path / "text.task").write_bytes(b"text")
    save_rtmpose(tmp_path / "p.onnx")
    save_rtmo(tmp_path / "m.onnx", np.ones((1, 17, 3)), (0.8,))
    save_rtmo(tmp_path / "m19.onnx", np.ones((1, 19, 3)), (0.8,))
    lite[b"text"] = ((1, 5), (1, 6)), np.float32, None
    for name, problem in {
        "rtmo:p.onnx": "p.onnx: not a model of RTMO; expected",
        "rtmpose:m.onnx": "m.onnx: not a model of RTMPose; expected",
        "rtmo:m19.onnx": "not a model of people with 19 keypoints; expected a known number",
        "rtmo:text": "text: not a model that ONNX Runtime can run",
        "rtmo:none": "none: no such file of weights",
        "movenet:text": "text: not a model of MoveNet; expected",
        "movenet:p.onnx": "p.onnx: not a TensorFlow Lite model",
        "blazepose:text": "pose_detection.tflite: no such file",
        "blazepose:text.task": "text.task: not a bundle",
    }.items():
        kind, _, file = name.partition(":")
        with pytest.raises(DetectorError) as raised:
            load_detector(f"{kind}:{tmp_path / file}")
        assert problem in str(raised.value)
        assert "\n" not in str(raised.value)
    for name in ("", "movenet", "movenet:", "yolo:x", "rtmpose", "+rtmpose:x.onnx"):
        with pytest.raises(DetectorError):
            load_detector(name)


def test_missing_runtimes_are_named(tmp_path, monkeypatch):
    (tmp_path / "m").write_bytes(b"")
    for module, kind in (("ai_edge_litert", "movenet"), ("onnxruntime", "rtmo"), ("rtmlib", "rtmlib")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.interpreter", None)
        with pytest.raises(ImportError, match=r'pip install "agebody\[detect\]"'):
            load_detector(kind if kind == "rtmlib" else f"{kind}:{tmp_path / 'm'}")


# --- commands


@pytest.fixture
def photos(tmp_path):
    """A photograph, and a detector of somebody in it."""
    (tmp_path / "photos").mkdir()
    save_photo(tmp_path / "photos/a.png", size=(160, 240))
    points = np.concatenate((STANDING + np.array([80, 120]), np.full((17, 1), 0.9)), -1)[None]
    save_rtmo(tmp_path / "m.onnx", points * (64 / 240, 64 / 240, 1), (0.9,), box=(10, 8, 32, 56))
    return tmp_path / "photos", f"rtmo:{tmp_path / 'm.onnx'}"


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_photographs_are_fitted_as_detected_files(tmp_path, photos):
    folder, name = photos
    result = run("detect", folder, "--detector", name, "-o", tmp_path / "people.json")
    assert result.exit_code == 0, result.output
    assert "1 person in 1 of 1 images" in result.stdout
    common = ("--body", "mannequin")
    first = run("fit", folder, "--detector", name, "-o", tmp_path / "one", *common)
    assert first.exit_code == 0, first.output
    assert "1 person of unknown age: stature and depth are guesses" in first.stderr
    second = run("fit", tmp_path / "people.json", "--images", folder, "-o", tmp_path / "two", *common)
    assert second.exit_code == 0, second.output
    one, two = (load_labels(tmp_path / folder / "labels.npz") for folder in ("one", "two"))
    np.testing.assert_allclose(one.transl, two.transl, atol=1e-3)
    np.testing.assert_allclose(one.observed, two.observed, atol=1e-3)
    assert one.kept.all()
    assert [path.name for path in (tmp_path / "one/overlays").iterdir()] == ["a.png.png"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--detector", "{name}", "--images", "{folder}"), "--images"),
        (("--size", "160x240", "--detector", "{name}"), "--size"),
        (("--detector", "rtmo:nothing.onnx"), "nothing.onnx: no such file of weights"),
        (("--detector", "else"), "detector: expected rtmlib, movenet:FILE.tflite"),
    ],
)
def test_wrong_ways_to_detect_are_one_line(tmp_path, photos, arguments, problem):
    folder, name = photos
    given = [part.format(name=name, folder=folder) for part in arguments]
    result = run("fit", folder, *given, "-o", tmp_path / "out", "--body", "mannequin")
    assert result.exit_code in (1, 2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_detector_is_not_for_files_of_keypoints(tmp_path, command):
    (tmp_path / "people.json").write_text("[]")
    (tmp_path / "net.ckpt").write_text("")
    weights = ("--checkpoint", tmp_path / "net.ckpt") if command == "predict" else ()
    result = run(command, tmp_path / "people.json", "--detector", "rtmlib", *weights, "-o", tmp_path / "out")
    (line,) = result.stderr.splitlines()
    assert "--detector: it finds people in photographs and videos, not in people.json" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "there", "problem"),
    [
        (
            "fit",
            False,
            'rtmlib, which finds people in photographs, is missing; pip install "agebody[detect]"',
        ),
        ("predict", False, "net.ckpt: no such file"),
        (
            "predict",
            True,
            'rtmlib, which finds people in photographs, is missing; pip install "agebody[detect]"',
        ),
    ],
)
def test_missing_detectors_and_weights_end_a_command_before_a_body_is_built(
    tmp_path, photos, monkeypatch, command, there, problem
):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    monkeypatch.setattr(
        "agebody.pipelines.cli.options.load_body", lambda *_: pytest.fail("a body was loaded")
    )
    if there:
        (tmp_path / "net.ckpt").write_text("")
    weights = ("--checkpoint", tmp_path / "net.ckpt") if command == "predict" else ()
    result = run(command, photos[0], *weights, "-o", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert problem in line
