"""Fits to scans: clouds by known planes, terms by the losses that they equal and by finite differences, the
solver of the surface by its dense matrix, and bodies that are recovered."""

import math
from functools import partial

import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

import agebody
from agebody import losses
from agebody.cameras import Camera
from agebody.checks import apply_mask
from agebody.fitting.scans import registration
from agebody.fitting.scans import surface as scan_surface
from agebody.fitting.scans.clouds import Cloud, Plane, fit_plane
from agebody.fitting.scans.frames import Frames
from agebody.fitting.scans.registration import choose_frames, fit_scans
from agebody.fitting.scans.stages import SMPLIFY_KIDS
from agebody.fitting.scans.start import AGES, lift_landmarks, start_from_images, start_from_landmarks
from agebody.fitting.scans.surface import register_surface
from agebody.fitting.scans.terms import LANDMARKS, ScanTerms
from agebody.keypoints import get_layout
from agebody.mesh.closest import visible_vertices
from agebody.mesh.collisions import Exclusions
from agebody.optim.problem import Stage, add_blocks
from agebody.optim.state import FreeVariables, State
from agebody.parameters import BodyParameters
from agebody.people import pose

DOUBLE = torch.float64
EYE = (0.1, 1.0, 0.25)
LAST = SMPLIFY_KIDS[-1]
WEIGHTS, SCALES = LAST.weights, LAST.scales


class Problem:
    """Terms of frames at their weights of the last stage, for the matches at one place."""

    def __init__(self, scans, guess, rows=(0, 1), joints=None, **weights):
        self.body, rows = scans.body, torch.tensor(rows)
        self.matches = scans.match(guess, rows, joints=joints)
        self.terms, self.free = scans.make(rows, self.matches), FreeVariables(scans.body)
        self.weights = dict.fromkeys(self.terms, 1.0) | WEIGHTS | weights
        for name, term in self.terms.items():
            if name in SCALES:
                term.robust_scale *= SCALES[name]

    def blocks(self, vectors, rows=None):
        rows = torch.arange(len(vectors)) if rows is None else rows
        with torch.no_grad():
            state = State(self.body, vectors, rows, self.free)
            return {name: term(state) for name, term in self.terms.items()}

    def costs(self, vectors):
        return {name: self.weights[name] * b.cost for name, b in self.blocks(vectors).items()}

    def quadratic(self, vectors, rows=None):
        blocks = self.blocks(vectors, rows).items()
        weighted = [(self.weights[name], block) for name, block in blocks]
        return add_blocks(weighted, len(vectors), len(self.free), vectors)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def camera(dtype=torch.float32):
    """Above the table, y = 0, on which infants lie."""
    eye, target = torch.tensor([EYE, (0.0, 0.05, 0.0)], dtype=dtype)
    return Camera.look_at(eye, target, size=(320, 240), fov=math.radians(45))


def infants(body, names=("lying", "kicking"), seed=0, shape=1.0):
    """A person in some poses, near those of that name, on the table."""
    bend = 0.15 * torch.randn(len(names), body.num_joints, 3, generator=seeded(seed)).to(body.dtype)
    base = torch.stack([torch.from_numpy(pose(name, body.asset.joint_names)) for name in names]).to(bend)
    turns = Rotation.from_rotvec(base.view(-1, 3).numpy()) * Rotation.from_rotvec(bend.view(-1, 3).numpy())
    full = torch.from_numpy(turns.as_rotvec()).to(bend).view_as(bend)
    betas = shape * torch.randn(body.num_betas, generator=seeded(seed + 1)).to(bend).clamp(-1.5, 1.5)
    found = BodyParameters.zeros(body, len(names))._replace(
        global_orient=full[:, 0], body_pose=full[:, 1:], betas=betas.expand(len(names), -1)
    )
    if body.age_anchors:
        found = found._replace(age_offset=torch.full_like(found.age_offset, 0.7))
    vertices = body(found).vertices
    middle = vertices.mean(1)
    middle[:, 1] = vertices[..., 1].amin(1)
    return found._replace(transl=-middle), vertices - middle[:, None]


def scan_of(vertices, faces, count, noise, seed=0):
    """Points on what the camera sees, with noise."""
    clouds = []
    eye = torch.tensor(EYE, dtype=vertices.dtype)
    for i, mesh in enumerate(vertices):
        seen = visible_vertices(mesh, faces, eye)[faces].all(-1).nonzero()[:, 0]
        generator = seeded(seed + i)
        chosen = seen[torch.randint(len(seen), (count,), generator=generator)]
        share = -torch.rand(count, 3, generator=generator).log()
        share = (share / share.sum(1, keepdim=True)).to(mesh)  # even on each triangle
        points = (share[..., None] * mesh[faces[chosen]]).sum(1)
        clouds.append(points + noise * torch.randn(points.shape, generator=generator).to(points))
    return clouds


def frames_of(clouds, **options):
    points = torch.stack(clouds)
    return Frames(
        points, torch.ones_like(points[..., 0]), options.pop("camera", camera(points.dtype)), **options
    )


@pytest.fixture(scope="module")
def infant(mannequin_asset):
    return agebody.SMIL(mannequin_asset.at_age(1.0))


@pytest.fixture(scope="module")
def precise(mannequin_asset):
    return agebody.SMIL(mannequin_asset.at_age(1.0), dtype=DOUBLE)


@pytest.fixture(scope="module")
def exclude(infant):
    """Of all bodies here: they have the mannequin's faces."""
    return Exclusions.of_body(infant.asset)


@pytest.fixture(scope="module")
def energy(precise, exclude):
    truth, vertices = infants(precise)
    clouds = scan_of(vertices, precise.faces, 150, 0.002)
    view = camera(DOUBLE)
    pixels = view.project(precise.keypoints("coco17", truth)).pixels
    confidences = torch.rand(pixels.shape[:2], generator=seeded(3)).to(DOUBLE)
    confidences[0, 4] = 0
    pixels[0, 4] = torch.nan
    plane = Plane(torch.tensor([0, 1.0, 0], dtype=DOUBLE), torch.tensor(0.01, dtype=DOUBLE))
    frames = frames_of(
        clouds, camera=view, keypoints=apply_mask(pixels, confidences, 1),
        confidences=confidences, plane=plane,
    )  # fmt: skip
    prior = losses.joint_limits_prior(precise.asset.joint_names[1:], age_offset=1.0, dtype=DOUBLE)
    found = ScanTerms(precise, frames, get_layout("coco17"), prior, sample=150, exclude=exclude)
    guess = truth.vector() + 0.02 * torch.randn(truth.vector().shape, generator=seeded(5)).to(DOUBLE)
    return found, guess


@pytest.fixture(scope="module")
def ball():
    sphere = trimesh.creation.icosphere(2, radius=0.1)
    return torch.tensor(sphere.vertices), torch.tensor(sphere.faces)


class TestClouds:
    def depth_of_plane(self, normal, offset, view):
        """z of a plane of the world at each pixel, by meeting each ray with it."""
        rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
        pixels = torch.stack((columns, rows), -1).view(-1, 2).to(DOUBLE)
        one = view.unproject(pixels, torch.ones(len(pixels), dtype=DOUBLE))
        eye = view.to_world(torch.zeros(1, 3, dtype=DOUBLE))
        share = (offset - eye @ normal) / ((one - eye) @ normal)
        return share.view(60, 80)

    @pytest.mark.parametrize("distortion", [None, (0.1, -0.05, 0.001, 0.002)])
    def test_a_plane_has_its_points_and_its_normal(self, distortion):
        eye, target = torch.tensor([(0.3, 1.2, 0.4), (0.0, 0.0, 0.0)], dtype=DOUBLE)
        view = Camera.look_at(eye, target, size=(80, 60), fov=1.0)
        if distortion:
            view = view._replace(distortion=torch.tensor(distortion, dtype=DOUBLE))
        normal = torch.tensor([0.2, 0.9, -0.1], dtype=DOUBLE)
        normal = normal / normal.norm()
        cloud = Cloud.from_depth(self.depth_of_plane(normal, 0.1, view), view, max_jump=0.5)
        torch.testing.assert_close(cloud.points @ normal, torch.full_like(cloud.points[:, 0], 0.1))
        assert len(cloud.points) == 60 * 80
        # The fit is exact but for its damping, 1e-9, and undistortion to 1e-8.
        torch.testing.assert_close(cloud.normals, normal.expand_as(cloud.normals), rtol=0, atol=1e-6)

    def test_holes_masked_pixels_and_pixels_between_two_surfaces_are_left_out(self):
        view = Camera(torch.tensor([100.0, 100.0]), torch.tensor([10.0, 10.0]))
        depth = torch.full((20, 20), 1.0)
        depth[:, 10:] = 1.5
        depth[:, 10] = 1.2  # as cameras make up at an edge
        depth[4, 3], depth[4, 4], depth[5, 5] = torch.nan, 0.0, torch.inf
        mask = torch.ones_like(depth, dtype=torch.bool)
        mask[8] = False
        cloud = Cloud.from_depth(depth, view, mask=mask)
        assert len(cloud.points) == 19 * 19 - 3
        assert set(cloud.points[:, 2].tolist()) == {1.0, 1.5}
        torch.testing.assert_close(cloud.normals, torch.tensor([0.0, 0, -1]).expand_as(cloud.normals))
        rows = ((cloud.points[:, 1] / cloud.points[:, 2]) * 100 + 10 - 0.5).round()
        assert not (rows == 8).any()

    def test_a_table_among_as_many_other_points(self):
        generator = seeded()
        normal = torch.tensor([0.1, 0.9, 0.2])
        normal = normal / normal.norm()
        flat = torch.randn(2000, 3, generator=generator)
        flat = flat - ((flat @ normal) - 0.3)[:, None] * normal
        flat = flat + 0.003 * torch.randn(flat.shape, generator=generator)
        blob = 0.2 * torch.randn(2000, 3, generator=generator) + normal * 0.5
        cloud = torch.cat((flat, blob))
        plane = fit_plane(cloud, towards=2 * normal)
        # 2000 points of 3 mm: the mean and the slope over a metre to 0.1 mm; points of the blob add some.
        assert (plane.normal @ normal) > math.cos(2e-3)
        assert abs(plane.offset - 0.3) < 1e-3
        below = fit_plane(cloud, towards=torch.zeros(3))
        torch.testing.assert_close(below.normal, -plane.normal)
        kept = Cloud(cloud, cloud).above(plane, margin=0.02, height=0.5).points
        height = cloud @ normal - 0.3
        assert abs(len(kept) - ((height > 0.02) & (height < 0.5)).sum()) < 20

    def test_errors(self, unchecked):
        view = Camera(torch.tensor([100.0, 100.0]), torch.tensor([10.0, 10.0]))
        with pytest.raises(ValueError, match="depth: expected one image"):
            Cloud.from_depth(torch.ones(2, 5, 5), view)
        with pytest.raises(ValueError, match="mask: expected booleans"):
            Cloud.from_depth(torch.ones(5, 5), view, mask=torch.ones(5, 5))
        with pytest.raises(ValueError, match="max_jump"):
            Cloud.from_depth(torch.ones(5, 5), view, max_jump=0.0)
        with pytest.raises(ValueError, match="three"):
            fit_plane(torch.ones(2, 3))
        with pytest.raises(ValueError, match="expected 20% of them on one plane"):
            fit_plane(torch.randn(500, 3, generator=seeded()))
        with pytest.raises(ValueError, match="tolerance: expected a length above 0"):
            fit_plane(torch.ones(3, 3), tolerance=math.inf)

    def test_a_plane_in_other_units_is_refused_by_their_name(self):
        """In millimetres its noise is beyond the tolerance; rounded to them, few points may seem a line."""
        table = torch.rand(3000, 3, generator=seeded()) * torch.tensor([1.5, 0.0, 0.8])
        table = table + 0.002 * torch.randn(3000, 3, generator=seeded(1)) + torch.tensor([0.0, 0.0, 2.0])
        assert fit_plane(table).normal[1].abs() > 0.999
        for scale, found in ((1000, "one plane"), (100, "one plane"), (1e6, "a line")):
            with pytest.raises(ValueError, match=f"{found}.* are these metres\\? Divide millimetres by 1000"):
                fit_plane(table * scale)
        with pytest.raises(ValueError, match=r"on a line, to 0.01 m$"):
            fit_plane(table[:1].repeat(100, 1))


class TestEnergy:
    def test_its_terms_are_the_losses(self, energy, precise):
        scans, guess = energy
        before = scans.joints_of(guess) + 0.01
        problem = Problem(scans, guess, joints=before)
        found = problem.costs(guess)
        p = BodyParameters.from_vector(guess, precise)
        out = precise(p)
        seen, faces, weights = scans.seen, precise.faces, problem.weights
        visible = visible_vertices(out.vertices, faces, torch.tensor(EYE, dtype=DOUBLE))
        assert torch.equal(visible, problem.matches.visible)
        none = {"reduction": "none"}

        def robust(name):
            return {"penalty": partial(losses.gmof, rho=SCALES.get(name, 0.02)), **none}

        on_visible = losses.mesh_to_scan_loss(
            out.vertices[:, scans.spread], seen.points, weights=visible[:, scans.spread], **robust("m2s")
        ).sum(1) / visible[:, scans.spread].sum(1)
        known = seen.confidences != 0
        pixels = seen.camera.project(precise.keypoints("coco17", p)).pixels
        landmark = losses.gmof(torch.where(known[..., None], pixels - seen.keypoints, 0), SCALES["keypoints"])
        landmark = (seen.confidences.square()[..., None] * landmark).sum((1, 2)) / (2 * known.sum(1))
        predicted = before[0]  # of the second frame: only the first comes before it
        smooth = torch.stack((torch.zeros((), dtype=DOUBLE), (out.joints[1] - predicted).square().sum()))
        normal, offset = seen.plane
        expected = {
            "s2m": losses.scan_to_mesh_loss(
                out.vertices, seen.points, faces, visible=visible, **robust("s2m")
            ).mean(1),
            "m2s": on_visible,
            "inside": losses.plane_loss(
                out.vertices[:, scans.spread], normal, offset, kind="penetration", **none
            ).mean(1),
            "close": losses.plane_loss(
                out.vertices[:, scans.back], normal, offset, kind="contact", **robust("close")
            ).mean(1),
            "keypoints": LANDMARKS * landmark,
            "smooth": smooth,
            "pose": scans.priors["pose"].prior(p.body_pose, **none),
            "hyperextension": losses.hyperextension_prior(p.body_pose, **none),
            "shape": losses.shape_prior(p.betas, **none),
            "collision": losses.self_intersection_loss(out.vertices, faces, exclude=scans.exclude, **none),
        }
        assert set(found) == set(expected)
        for name, term in found.items():
            torch.testing.assert_close(
                term, weights[name] * expected[name] / 2, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert all((term != 0).any() for name, term in found.items() if name != "collision")

    def test_gradient_by_finite_differences(self, energy):
        scans, guess = energy
        problem = Problem(scans, guess, joints=scans.joints_of(guess) + 0.01)
        model = problem.quadratic(guess)
        way = torch.zeros_like(guess)
        way[:, problem.free.columns] = torch.randn(len(guess), len(problem.free), generator=seeded(7)).to(
            DOUBLE
        )
        step = 1e-7
        up, down = (problem.quadratic(guess + s * way).cost for s in (step, -step))
        # Truncation is of the order of 1e-14 third derivatives, rounding of 1e-16 cost / step.
        torch.testing.assert_close(
            (up - down) / (2 * step),
            (model.gradient * way[:, problem.free.columns]).sum(1),
            rtol=1e-5,
            atol=1e-4,
        )
        torch.testing.assert_close(model.normal, model.normal.mT)
        assert torch.linalg.eigvalsh(model.normal).min() > -1e-6 * model.normal.abs().max()

    def test_frames_are_independent(self, energy):
        scans, guess = energy
        both = Problem(scans, guess).quadratic(guess)
        second = Problem(scans, guess).quadratic(guess[1:], torch.tensor([1]))
        alone = Problem(scans, guess[1:], (1,)).quadratic(guess[1:])
        for part in (second, alone):
            torch.testing.assert_close(both.gradient[1:], part.gradient)
            torch.testing.assert_close(both.cost[1:], part.cost)

    def test_collisions_cost_and_are_pushed_apart(self, precise, exclude):
        """An arm through the trunk."""
        truth = BodyParameters.zeros(precise, 1)
        names = precise.asset.joint_names[1:]
        truth.body_pose[0, names.index("left_shoulder")] = torch.tensor([0.0, 0.6, -2.2], dtype=DOUBLE)
        vertices = precise(truth).vertices
        scans = ScanTerms(
            precise, frames_of(scan_of(vertices, precise.faces, 20, 0.0)), get_layout("coco17"),
            losses.joint_limits_prior(names, dtype=DOUBLE), sample=20,
            exclude=exclude,
        )  # fmt: skip
        x = truth.vector()
        problem = Problem(scans, x, (0,), **dict.fromkeys(WEIGHTS, 0.0) | {"collision": 1.0})
        model = problem.quadratic(x)
        cost = losses.self_intersection_loss(vertices, precise.faces, exclude=exclude)
        torch.testing.assert_close(model.cost[0], cost / 2)
        assert cost > 0
        moved = x.clone()
        moved[:, problem.free.columns] -= 1e-5 * model.gradient / model.gradient.norm()
        assert problem.quadratic(moved).cost < model.cost


class TestStart:
    def test_landmarks_are_lifted_onto_the_scan_in_front_of_them(self):
        points = torch.tensor([[[0.0, 0, 2], [0.5, 0, 2], [9.0, 9, 9]]])
        view = Camera(torch.tensor([100.0, 100.0]), torch.tensor([50.0, 50.0]))
        keypoints = torch.tensor([[[52.0, 50.0], [75.0, 53.0], [50.0, 90.0], [torch.nan, torch.nan]]])
        frames = Frames(
            points, torch.tensor([[1.0, 1, 0]]), view, keypoints, torch.tensor([[0.5, 1.0, 1.0, 0.0]])
        )
        lifted, weights = lift_landmarks(frames)
        torch.testing.assert_close(lifted[0, :2], points[0, :2])
        assert weights.tolist() == [[0.5, 1.0, 0.0, 0.0]]

    def test_a_body_in_its_pose_is_put_where_it_is(self, mannequin_asset):
        """Exactly, where the scan is the landmarks themselves; and of the nearest of the ages tried."""
        body = agebody.SMPLA(mannequin_asset)
        truth, _ = infants(body, shape=0.0)
        truth = truth._replace(body_pose=truth.body_pose[:1].expand(2, -1, -1))
        layout, view = get_layout("coco17"), camera()
        points = body.keypoints(layout, truth)
        confidences = torch.ones_like(points[..., 0])
        frames = frames_of(
            list(points), camera=view, keypoints=view.project(points).pixels, confidences=confidences
        )
        found = start_from_landmarks(body, frames, layout, truth.body_pose[0], torch.tensor(0.7))
        put = body.keypoints(layout, found)
        # What is hidden in the image may be lifted onto another landmark near it; those of the trunk are not.
        torch.testing.assert_close(put[:, [5, 6, 11, 12]], points[:, [5, 6, 11, 12]], rtol=0, atol=1e-4)
        free = start_from_landmarks(body, frames, layout, truth.body_pose[0], None)
        assert abs(free.age_offset[0] - 0.7) <= 0.5 / (AGES - 1) + 1e-6
        confidences[1, :12] = 0
        again = start_from_landmarks(body, frames, layout, truth.body_pose[0], torch.tensor(0.7))
        torch.testing.assert_close(again.transl[1], again.transl[0])
        assert not torch.equal(found.transl[1], found.transl[0])
        with pytest.raises(ValueError, match="give start="):
            start_from_landmarks(
                body, frames._replace(confidences=0 * confidences), layout, truth.body_pose[0], None
            )


class TestSurface:
    @pytest.fixture(autouse=True)
    def weights_of_a_ball(self, monkeypatch):
        """Weights that suit a ball of 320 triangles."""
        monkeypatch.setattr(scan_surface, "STRETCH", 4e4)

    def model(self, ball, moved):
        vertices, faces = ball
        eye = torch.tensor([0, 0, 1.0], dtype=DOUBLE)
        view = Camera.look_at(eye, torch.zeros(3, dtype=DOUBLE), size=(100, 100), fov=0.5)
        scan = 1.05 * vertices[vertices[:, 2] > 0.02] + 0.003 * torch.randn(
            (int((vertices[:, 2] > 0.02).sum()), 3), generator=seeded(2)
        ).to(DOUBLE)
        plane = Plane(torch.tensor([0, 0.6, 0.8], dtype=DOUBLE), torch.tensor(-0.09, dtype=DOUBLE))
        frames = frames_of([scan], camera=view, plane=plane)
        visible = visible_vertices(vertices, faces, eye)[None]
        energy = scan_surface.SurfaceEnergy(
            vertices[None], faces, scan_surface.edges_of(faces), visible, frames, LAST, "auto"
        )
        return energy.quadratize(moved.reshape(1, -1), torch.zeros(1, dtype=torch.int64)), frames, visible

    def test_edges_are_those_of_trimesh(self, ball):
        edges = scan_surface.edges_of(ball[1])
        expected = trimesh.Trimesh(*ball, process=False).edges_unique
        assert sorted(map(tuple, edges.tolist())) == sorted(map(tuple, expected.tolist()))

    def test_gradient_by_finite_differences(self, ball):
        moved = 0.002 * torch.randn(ball[0].shape, generator=seeded(1)).to(DOUBLE)
        way = torch.randn(ball[0].shape, generator=seeded(3)).to(DOUBLE)
        model, _, _ = self.model(ball, moved)
        up, down = (self.model(ball, moved + s * way)[0].cost for s in (1e-8, -1e-8))
        torch.testing.assert_close(
            (up - down) / 2e-8, (model.vertex_gradient[0] * way).sum()[None], rtol=1e-5, atol=1e-5
        )

    def test_product_diagonal_and_solution_are_those_of_one_matrix(self, ball, monkeypatch):
        model, _, _ = self.model(ball, torch.zeros_like(ball[0]))
        size = 3 * len(ball[0])
        matrix = torch.stack([model.product(row[None])[0] for row in torch.eye(size, dtype=DOUBLE)])
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(model.diagonal()[0], matrix.diagonal())
        assert torch.linalg.eigvalsh(matrix).min() > 0
        target, added = model.gradient, 0.1 * model.diagonal()
        matrix = matrix + torch.diag(added[0])
        scaled = lambda residual: (residual.square() / matrix.diagonal()).sum().sqrt()  # noqa: E731
        rough = model.solve(target, added, None)[0]
        assert scaled(target[0] - matrix @ rough) < 1.0001 * scan_surface.CG_TOLERANCE * scaled(target[0])
        monkeypatch.setattr(scan_surface, "CG_TOLERANCE", 1e-12)
        monkeypatch.setattr(scan_surface, "CG_STEPS", size)
        torch.testing.assert_close(model.solve(target, added, None)[0], torch.linalg.solve(matrix, target[0]))

    def test_a_grown_ball_is_found_where_it_is_seen(self, ball):
        vertices, faces = ball
        _, frames, visible = self.model(ball, torch.zeros_like(vertices))
        frames = frames._replace(plane=None)
        moved, _ = register_surface(vertices[None], faces, frames, LAST)
        radius = moved[0].norm(dim=-1)
        front = visible[0] & (vertices[:, 2] > 0.05)
        assert abs(radius[front].mean() - 0.105) < 0.001
        assert (radius[vertices[:, 2] < -0.08] - 0.1).abs().max() < 0.004


class TestFit:
    def observe(self, body, names=("lying", "kicking"), seed=0):
        truth, vertices = infants(body, names, seed)
        view = camera()
        generator = seeded(seed + 9)
        keypoints = view.project(body.keypoints("coco17", truth)).pixels
        keypoints = keypoints + 1.5 * torch.randn(keypoints.shape, generator=generator)
        weights = torch.ones_like(keypoints[..., 0])
        weights[0, 9], keypoints[0, 9] = 0, torch.nan
        plane = Plane(torch.tensor([0, 1.0, 0]), torch.tensor(0.0))
        clouds = scan_of(vertices, body.faces, 800, 0.002, seed)
        clouds[-1] = clouds[-1][:700]
        options = {"keypoints": keypoints, "weights": weights, "plane": plane, "sample": 150}
        return truth, vertices, clouds, view, options

    def test_an_infant_is_found_again(self, infant, exclude):
        _, vertices, clouds, view, options = self.observe(infant)
        fit = fit_scans(infant, clouds, view, exclude=exclude, **(options | {"sample": 200}))
        report = fit.report
        assert (report.s2m < 0.003).all()
        assert (report.surface_s2m < report.s2m).all()
        assert (fit.vertices - vertices).norm(dim=-1).mean(1).max() < 0.015
        assert (fit.surface - vertices).norm(dim=-1).mean(1).max() < 0.015
        assert report.accepted.all()
        assert report.reprojection.max() < 4
        assert report.outliers.max() < 0.01
        torch.testing.assert_close(fit.parameters.betas[0], fit.parameters.betas[1])
        assert report.shape_frames.tolist() == [0, 1]
        assert report.pose.converged.shape == (2,)
        # The prior of the shape counts in each of the two frames, though they share the shape.
        shape = WEIGHTS["shape"] * fit.parameters.betas.square().sum(1)
        torch.testing.assert_close(report.shape.terms["shape"], shape[:1])
        for step in (report.shape, report.pose):
            torch.testing.assert_close(sum(step.terms.values()), step.cost)
        assert set(report.pose.terms) >= {"s2m", "m2s", "keypoints", "inside", "close", "smooth", "pose"}
        with torch.no_grad():
            again = infant(fit.parameters).vertices
        torch.testing.assert_close(again, fit.vertices)

    def test_the_cheaper_of_two_starts_goes_on(self, mannequin_asset, monkeypatch):
        """Of a fit to the images and of lifted landmarks: each is the better one of some person."""
        body = agebody.SMPLA(mannequin_asset)
        _, _, clouds, view, options = self.observe(body, ("standing",))
        stages = [stage._replace(max_iterations=5) for stage in SMPLIFY_KIDS[:2]]
        options |= {"stages": stages, "rounds": 1, "sample": 40, "surface": False}

        def cost(**replaced):
            with monkeypatch.context() as patch:
                for name, make in replaced.items():
                    patch.setattr(registration, name, make)
                return float(fit_scans(body, clouds, view, **options).report.shape.cost[0])

        def spoilt(*given):
            found = start_from_images(*given[:3], given[-1])
            return found._replace(transl=torch.full((1, 3), 2.0))  # from where it does not come back

        best = cost()
        alone = [cost(start_from_images=spoilt), cost(start_from_landmarks=spoilt)]
        assert min(alone) == best < max(alone) < cost(start_from_images=spoilt, start_from_landmarks=spoilt)

    def test_a_body_with_ages_is_found_from_a_given_start_without_landmarks(self, mannequin_asset, exclude):
        body = agebody.SMPLA(mannequin_asset)
        truth, vertices, clouds, view, options = self.observe(body, ("lying",))
        start = truth.map(lambda part: part + 0.02)._replace(
            betas=torch.zeros_like(truth.betas), age_offset=torch.tensor([0.6])
        )
        fit = fit_scans(
            body, clouds, view, start=start, plane=options["plane"], sample=200, rounds=2, surface=False,
            exclude=exclude,
        )  # fmt: skip
        # Age and betas share the shape between them: the body is asked for, not its age.
        assert fit.report.s2m.max() < 0.003
        assert (fit.vertices - vertices).norm(dim=-1).mean() < 0.02
        assert 0 <= fit.parameters.age_offset <= 1
        assert fit.report.reprojection is None
        assert fit.report.accepted.all()
        assert fit.surface is None
        known = fit_scans(body, clouds, view, start=start, age_offset=0.6, sample=20, surface=False, rounds=1)
        assert torch.equal(known.parameters.age_offset, torch.tensor([0.6]))

    def test_frames_that_show_much_and_different_things_decide_on_the_shape(self, infant):
        truth, vertices = infants(infant, ("lying", "lying", "kicking", "lying"))
        clouds = scan_of(vertices, infant.faces, 400, 0.0)
        frames = frames_of(clouds)
        frames.weights[3, 50:] = 0
        names = infant.asset.joint_names[1:]
        energy = ScanTerms(infant, frames, get_layout("coco17"), losses.joint_limits_prior(names), sample=50)
        start = truth.map(lambda part: part[[0, 0, 2, 3]])
        # The first two are the same guess; the last has an eighth of the points: not in the better half.
        assert choose_frames(energy, start, 1).tolist() == [0]
        assert 3 not in choose_frames(energy, start, 2).tolist()
        assert choose_frames(energy, start, 9).tolist() == [0, 1, 2, 3]

    def test_errors(self, infant, unchecked):
        view, scan = camera(), torch.zeros(5, 3)
        points = torch.zeros(1, 17, 2)
        for match, options in {
            "scans: expected at least one": {"scans": []},
            r"scans\[0\]: expected torch.float32": {"scans": [scan.double()]},
            r"scans\[0\]: expected finite": {"scans": [scan / 0]},
            "start: expected parameters, because": {},
            "weights: expected None": {"weights": torch.ones(1, 17)},
            r"keypoints: expected shape \(1, 17, 2\)": {"keypoints": points.expand(2, -1, -1)},
            "age_offset: SMIL has one age": {"keypoints": points, "age_offset": 0.5},
            "rounds": {"keypoints": points, "rounds": 0},
            "camera: expected one": {"camera": Camera(torch.ones(2, 2), torch.ones(2, 2))},
            "pose_prior: expected one of this body's": {
                "keypoints": points,
                "pose_prior": losses.joint_limits_prior(["left_hip"]),
            },
            "start.global_orient: expected a shape": {"start": BodyParameters.zeros(infant, 3)},
            "stages: expected names of terms": {"keypoints": points, "stages": [Stage({"nothing": 1.0})]},
        }.items():
            given = {"scans": [scan], "camera": view} | options
            with pytest.raises(ValueError, match=match):
                fit_scans(infant, given.pop("scans"), given.pop("camera"), **given)
