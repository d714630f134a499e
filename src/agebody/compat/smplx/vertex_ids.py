"""Vertices of face, feet and finger tips, under smplx's short names."""

from agebody.assets.landmarks import SURFACE_VERTICES


def short_name(point: str) -> str:
    """Return smplx's name of a point: right_eye is reye, left_thumb lthumb, left_big_toe LBigToe."""
    side, _, part = point.partition("_")
    if part in ("big_toe", "small_toe", "heel"):
        return side[0].upper() + part.title().replace("_", "")
    return side[0] + part if part else point


vertex_ids = {
    "smplh": {short_name(point): vertex for point, vertex in SURFACE_VERTICES[6890].items()},
    "smplx": {short_name(point): vertex for point, vertex in SURFACE_VERTICES[10475].items()},
    "mano": SURFACE_VERTICES[778],
}
"""SMPL and SMPL-H share one mesh; smplx has its vertices under the name of SMPL-H."""
