"""Closest points on the surface, for scans of one body and of sixteen, by agebody and by trimesh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import Session
from peers import reason
from torch import Tensor

from agebody.mesh.closest import closest_points, interpolate
from agebody.pipelines.bench import sample_arguments

BATCHES = {"cpu": (1600, 6400, 48000), "cuda": (6400, 48000, 384000)}
"""Number of points, of all bodies together."""
BODIES = 16
CHECKED = 160
"""Number of points per body whose results are compared."""
NOISE = 0.01
"""Standard deviation of a scan's points from the surface, in each direction [m]."""
TOLERANCES = {"agebody warp": 2e-6, "agebody torch": 2e-6, "trimesh": 2e-4}
"""[m] Float32 rounding of bodies of 2 m, and trimesh's tolerance for ties between triangles."""

Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, N, 3) points, (B, V, 3) vertices, (F, 3) faces -> (B, N) distances [m]."""


def ours(backend: str, points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    return closest_points(points, vertices, faces, backend=backend).distance


def trimesh_query(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Search one body after the other; bodies move between calls, so the tree is rebuilt at every call."""
    import trimesh

    triangles, found = faces.numpy(force=True), []
    for cloud, body in zip(points.numpy(force=True), vertices.numpy(force=True), strict=True):
        mesh = trimesh.Trimesh(body, triangles, process=False)
        found.append(trimesh.proximity.closest_point(mesh, cloud)[1])
    return torch.from_numpy(np.stack(found))


SEARCHES: dict[str, Search] = {
    "agebody warp": partial(ours, "warp"),
    "agebody torch": partial(ours, "torch"),
    "trimesh": trimesh_query,
}


def gradients(search: Search, points: Tensor, vertices: Tensor, faces: Tensor) -> tuple[Tensor, ...]:
    wanted = (points.detach().requires_grad_(), vertices.detach().requires_grad_())
    return torch.autograd.grad(search(*wanted, faces).sum(), wanted)


def scans(vertices: Tensor, faces: Tensor, count: int) -> Tensor:
    """Return points near the surface of each body (B, count, 3), evenly over its triangles."""
    generator = torch.Generator().manual_seed(count)
    face = torch.randint(len(faces), (count,), generator=generator)
    share = torch.rand(count, 3, generator=generator).to(vertices)
    corners = vertices[:, faces[face]]
    on_it = interpolate(corners, (share / share.sum(-1, keepdim=True)).expand(len(vertices), -1, -1))
    return on_it + NOISE * torch.randn(on_it.shape, generator=generator).to(on_it)


def main() -> None:
    session = Session("closest", __doc__, batches=BATCHES)
    given = sample_arguments(BODIES, device=session.device)
    with torch.no_grad():
        exact = session.exact(**{name: value.double() for name, value in given.items()}).vertices
    faces = torch.from_numpy(session.asset.faces.astype(np.int64)).to(session.device)
    vertices = exact.float()
    few = scans(exact, faces, CHECKED).float()
    truth = ours("torch", few.double(), vertices.double(), faces).cpu()
    searches: dict[str, Search] = {}
    for name, search in SEARCHES.items():
        try:
            error = float((search(few, vertices, faces).cpu() - truth).abs().max())
            if not error <= TOLERANCES[name]:
                raise ValueError(f"wrong answer: {error:.2g} m")
        except Exception as error:
            session.absent[name] = reason(error)
            if name.startswith("agebody") and not isinstance(error, ImportError):
                raise
        else:
            searches[name] = search
    for batch in session.batches:
        for bodies, title in ((1, "one body"), (BODIES, f"{BODIES} bodies")):
            shown = vertices[:bodies].contiguous()
            inputs = (scans(shown, faces, batch // bodies), shown, faces)
            with torch.no_grad():
                session.time(batch, {n: partial(s, *inputs) for n, s in searches.items()}, which=title)
            session.time(
                batch,
                {n: partial(gradients, s, *inputs) for n, s in searches.items() if n.startswith("agebody")},
                which=f"{title}, with gradients",
            )
    session.finish()


if __name__ == "__main__":
    main()
