"""Inputs of `fit_scans` and modes of torch: the same result, or an error that says why."""

import math

import pytest
import torch

import agebody
from agebody import BodyParameters
from agebody.cameras import Camera
from agebody.fitting import SMPLIFY_KIDS, Cloud, Plane, fit_plane, fit_scans
from agebody.fitting.scans.frames import Frames
from agebody.fitting.scans.surface import register_surface
from agebody.keypoints import joint_layout
from agebody.people import pose

LAST = SMPLIFY_KIDS[-1]._replace(max_iterations=2)  # how well a fit ends does not matter here


def weighted(**weights):
    return LAST._replace(weights={**LAST.weights, **weights})


ALONE = weighted(collision=0.0)


@pytest.fixture(scope="module")
def infant(mannequin_asset):
    return agebody.SMIL(mannequin_asset.at_age(1.0))


@pytest.fixture(scope="module")
def seen(infant):
    """An infant on a table, seen from above: some vertices as its scan, and where it is, but for a little."""
    angles = torch.from_numpy(pose("lying", infant.asset.joint_names)).float()[None]
    truth = BodyParameters.zeros(infant, 1)._replace(global_orient=angles[:, 0], body_pose=angles[:, 1:])
    vertices = infant(truth).vertices[0]
    upper = vertices[vertices[:, 1] > vertices[:, 1].mean()]
    eye, target = torch.tensor([0.1, 1.0, 0.25]), vertices.mean(0)
    return {
        "scans": [upper[:: len(upper) // 80]],
        "camera": Camera.look_at(eye, target, size=(320, 240), fov=math.radians(45)),
        "keypoints": None,
        "plane": Plane(torch.tensor([0.0, 1.0, 0.0]), vertices[:, 1].min()),
        "start": truth._replace(transl=truth.transl + 0.01),
    }


def with_landmarks(body, seen):
    return seen | {"keypoints": seen["camera"].project(body.keypoints("coco17", seen["start"])).pixels}


def fit(body, seen, **options):
    """Quickly, rather than well."""
    given = {"stages": [ALONE], "rounds": 1, "sample": 20, "surface": False} | seen | options
    return fit_scans(body, given.pop("scans"), given.pop("camera"), **given)


@pytest.fixture(scope="module")
def expected(infant, seen):
    return fit(infant, with_landmarks(infant, seen))


class TestModes:
    def test_inference_mode(self, infant, seen, expected):
        with torch.inference_mode():
            given = with_landmarks(infant, seen)
            given |= {"camera": given["camera"].map(torch.clone), "start": given["start"].map(torch.clone)}
            found = fit(infant, given)
        torch.testing.assert_close(found.vertices, expected.vertices, rtol=0, atol=0)
        assert not found.vertices.is_inference()  # whoever wants can train on it

    def test_bodies_that_meet_themselves_in_inference_mode(self, infant, seen):
        """An arm in the trunk: the collision's gradient is asked for, of the pose and of the surface."""
        start = seen["start"].map(torch.clone)
        arm = infant.asset.joint_names[1:].index("left_shoulder")
        start.body_pose[0, arm] = torch.tensor([0.0, 0.6, -2.2])
        with torch.inference_mode():
            found = fit(infant, seen | {"start": start}, stages=[LAST])
            mesh = infant(start).vertices
            scan = seen["scans"][0][None]
            frames = Frames(scan, torch.ones_like(scan[..., 0]), seen["camera"])
            moved, _ = register_surface(mesh, infant.faces, frames, LAST)
        assert found.report.pose.terms["collision"].isfinite().all()
        assert moved.isfinite().all()

    def test_autocast_and_gradients_change_nothing(self, infant, seen, expected):
        given = with_landmarks(infant, seen)
        given["start"] = given["start"].map(lambda part: part.clone().requires_grad_())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fit(infant, given)
        torch.testing.assert_close(found.vertices, expected.vertices, rtol=0, atol=0)
        assert not found.vertices.requires_grad


def test_the_layout_of_all_joints_is_made_once(infant):
    names = infant.asset.joint_names
    assert joint_layout(*names) is joint_layout(*names)
    assert joint_layout(*names).names == names


class TestReport:
    def test_far_points_have_no_distance(self, infant, seen):
        """Two frames: one scan is 5 m off, the other is as it was with one point of four as far off."""
        far = torch.tensor([5.0, 0, 0])
        (scan,) = seen["scans"]
        quarter = torch.cat((scan, scan[: len(scan) // 3] + far))
        still = weighted(**dict.fromkeys(LAST.weights, 0.0))
        report = fit(infant, seen | {"scans": [scan + far, quarter], "plane": None}, stages=[still]).report
        assert report.s2m.isnan().tolist() == [True, False]
        torch.testing.assert_close(
            report.outliers, torch.tensor([1.0, (len(scan) // 3) / len(quarter)]), rtol=0, atol=1e-6
        )
        assert report.accepted.tolist() == [False, False]
        assert report.uncovered.tolist() == [1.0, pytest.approx(0.0, abs=0.1)]

    def test_a_frame_without_landmarks_is_not_accepted(self, infant, seen):
        given = with_landmarks(infant, seen)
        scan, pixels = given["scans"][0], given["keypoints"]
        weights = torch.ones(2, pixels.shape[1])
        weights[1] = 0
        given |= {"scans": [scan, scan[:0]], "keypoints": pixels.expand(2, -1, -1), "weights": weights}
        report = fit(infant, given, max_s2m=0.01).report
        assert report.reprojection is not None
        assert report.reprojection.isnan().tolist() == [False, True]
        assert report.accepted.tolist() == [True, False]
        assert report.s2m.isnan().tolist() == [False, True]
        assert report.outliers[1] == 0


class TestErrors:
    @pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
    def test_weights(self, infant, seen, weight):
        weights = torch.ones(1, 17)
        weights[0, 3] = weight
        with pytest.raises(ValueError, match="weights: expected finite numbers of 0 or more"):
            fit(infant, with_landmarks(infant, seen), weights=weights)

    def test_numbers_that_are_not_finite(self, infant, seen):
        given = with_landmarks(infant, seen)
        pixels = given["keypoints"].clone()
        pixels[0, 2, 0] = torch.nan
        with pytest.raises(ValueError, match="keypoints: expected finite pixels"):
            fit(infant, given, keypoints=pixels)
        nowhere = seen["start"].map(torch.clone)
        nowhere.betas[0, 0] = torch.nan
        with pytest.raises(ValueError, match="start.betas: expected finite numbers"):
            fit(infant, seen, start=nowhere)
        with pytest.raises(ValueError, match="plane: expected finite numbers"):
            fit(infant, seen, plane=Plane(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(math.inf)))
        with pytest.raises(ValueError, match="points: expected finite points"):
            fit_plane(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [math.nan, 0, 0]]))

    def test_keypoints_of_another_type(self, infant, seen):
        given = with_landmarks(infant, seen)
        with pytest.raises(TypeError, match=r"keypoints: expected torch.float32"):
            fit(infant, given, keypoints=given["keypoints"].double())

    def test_ages_that_are_not_numbers(self, mannequin_asset, seen):
        with pytest.raises(ValueError, match="age_offset: expected a finite number"):
            fit(agebody.SMPLA(mannequin_asset), seen, age_offset=math.nan)

    @pytest.mark.parametrize("count", [3, 50])
    def test_collinear_points_have_no_plane(self, count):
        line = torch.linspace(0, 1, count)[:, None] * torch.tensor([1.0, 2.0, 0.5])
        for points in (
            line,
            line + 0.001 * torch.randn(line.shape, generator=torch.Generator().manual_seed(0)),
        ):
            with pytest.raises(ValueError, match="points: expected a plane"):
                fit_plane(points)
        flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        torch.testing.assert_close(fit_plane(flat).normal.abs(), torch.tensor([0.0, 0, 1]))


class TestPlanes:
    """A table seen by a camera that does not stand at the origin."""

    VIEW = Camera.look_at(
        torch.tensor([0.1, -1.6, 0.25]), torch.tensor([0.0, -2.6, 0.0]), size=(80, 60), fov=math.radians(45)
    )

    def cloud(self):
        """The table y = -2.6, below the origin, with a box on it."""
        rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
        pixels = torch.stack((columns, rows), -1).view(-1, 2)
        ends = self.VIEW.unproject(pixels, torch.ones(len(pixels)))
        eye = self.VIEW.to_world(torch.zeros(1, 3))
        depth = ((-2.6 - eye[:, 1]) / (ends - eye)[:, 1]).view(60, 80)
        depth[20:40, 30:50] -= 0.15
        return Cloud.from_depth(depth, self.VIEW)

    @pytest.mark.parametrize("shift", [0.0, 2.0, 6.0])
    def test_it_points_to_the_camera_wherever_the_origin_is(self, shift):
        """By the normals, by what stands on the plane, and by the camera."""
        cloud = self.cloud()
        away = torch.tensor([0.0, shift, 0.0])
        moved = Cloud(cloud.points + away, cloud.normals)
        view = Camera.look_at(
            torch.tensor([0.1, -1.6 + shift, 0.25]), torch.tensor([0.0, -2.6 + shift, 0.0]), size=(80, 60)
        )
        for found in (fit_plane(moved), fit_plane(moved.points), fit_plane(moved.points, towards=view)):
            assert found.normal[1] > 0.99
            kept = moved.above(found).points
            assert abs(len(kept) - 400) < 80
        assert fit_plane(moved, towards=torch.tensor([0.0, -9.0, 0.0])).normal[1] < -0.99

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"towards": [0.0, 0.0, 0.0]}, ValueError, "towards: expected a camera, or a point"),
            ({"towards": torch.zeros(1, 3)}, ValueError, "towards: expected a camera, or a point"),
            ({"towards": torch.full((3,), math.nan)}, ValueError, "towards: expected a camera, or a point"),
            ({"tolerance": 0.0}, ValueError, "tolerance: expected a length above 0"),
            ({"tolerance": math.nan}, ValueError, "tolerance: expected a length above 0"),
            ({"normals": torch.zeros(3, 3)}, ValueError, "points: expected a normal for each point"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_what_is_no_side_and_no_size_is_refused(self, given, error, message):
        cloud = self.cloud()
        given = dict(given)
        points = Cloud(cloud.points, given.pop("normals", cloud.normals))
        with pytest.raises(error, match=message):
            fit_plane(points, **given)
        with pytest.raises(ValueError, match=r"camera: expected one without batch dimensions, got \(2,\)"):
            Cloud.from_depth(torch.ones(60, 80), self.VIEW.map(lambda part: part.expand(2, *part.shape)))

    def test_normals_that_say_nothing_leave_the_side_to_what_is_seen(self):
        cloud = self.cloud()
        for none in (torch.zeros_like(cloud.points), torch.full_like(cloud.points, math.nan)):
            assert fit_plane(Cloud(cloud.points, none)).normal[1] > 0.99

    def test_one_that_puts_the_scans_below_it_is_refused(self, infant, seen):
        down = Plane(-seen["plane"].normal, -seen["plane"].offset)
        with pytest.raises(ValueError, match="plane: expected the scans above it, got half of the points"):
            fit(infant, seen, plane=down)
        empty = [scan[:0] for scan in seen["scans"]]  # as `Cloud.above` leaves them
        with pytest.raises(ValueError, match="plane: expected the scans above it, got no points and the"):
            fit(infant, with_landmarks(infant, seen), scans=empty, plane=down)
        long = Plane(2 * seen["plane"].normal, 2 * seen["plane"].offset)
        with pytest.raises(ValueError, match="plane: expected a normal of length 1, got 2"):
            fit(infant, seen, plane=long)

    def test_millimetres(self, infant, seen):
        with pytest.raises(ValueError, match="depth: expected metres, got a median of 980; divide"):
            Cloud.from_depth(torch.full((60, 80), 980.0), self.VIEW)
        with pytest.raises(ValueError, match=r"scans\[0\]: expected points of a person in metres"):
            fit(infant, seen, scans=[1000 * scan for scan in seen["scans"]], plane=None)


class TestAccepted:
    """Each number of the report can refuse a frame."""

    def test_messages(self, infant, seen):
        still = weighted(**dict.fromkeys(LAST.weights, 0.0))
        true = seen["start"]._replace(transl=torch.zeros(1, 3))
        dense = infant(true).vertices[0]
        dense = dense[dense[:, 1] > dense[:, 1].mean()]
        noise = 0.01 * torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
        legs = dense[dense[:, 2] < dense[:, 2].quantile(0.6)]
        wide = true._replace(betas=torch.full_like(true.betas, 5.0))
        pixels = with_landmarks(infant, seen | {"start": true})["keypoints"]
        for accepted, options in (
            (True, {}),
            (True, {"keypoints": pixels}),
            (False, {"scans": [dense + noise]}),
            (True, {"scans": [dense + noise], "max_s2m": 0.02}),
            (False, {"scans": [torch.cat((dense, dense[::5] + 0.3))]}),
            (False, {"scans": [legs]}),
            (False, {"keypoints": pixels + 20}),
            (False, {"start": wide, "scans": [infant(wide).vertices[0]]}),
        ):
            given = seen | {"start": true, "scans": [dense], "plane": None} | options
            assert fit(infant, given, stages=[still]).report.accepted.tolist() == [accepted], options.keys()

    def test_betas_are_bounded(self, infant, seen):
        """A scan twice as large as any infant."""
        free = weighted(shape=1e-6)._replace(max_iterations=8)
        found = fit(infant, seen | {"scans": [2 * seen["scans"][0]]}, stages=[free])
        assert found.parameters.betas.abs().max() <= 5
        assert not found.report.accepted.any()
