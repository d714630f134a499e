"""Preset of the stages of a fit to scans."""

from agebody.optim.problem import Stage

_WEIGHTED = ("s2m", "m2s", "keypoints", "pose", "hyperextension", "shape", "inside", "close", "collision")
_SCALED = ("s2m", "m2s", "keypoints")
_TABLE = (
    ((1e5, 0.0, 0.07**2, 1.0, 1.0, 5.0, 10.0, 0.0, 0.0), (0.3, 0.3, 500.0)),
    ((2e5, 0.0, 0.07**2, 0.5**2, 1.0, 0.1, 10.0, 0.0, 0.0), (0.1, 0.103, 50.0)),
    ((8e5, 1e5, 0.27**2, 0.5**2, 0.1**2, 0.001, 1e6, 5000.0, 0.01), (0.03, 0.03, 4.0)),
)

SMPLIFY_KIDS = tuple(
    Stage(
        weights=dict(zip(_WEIGHTED, weights, strict=True)),
        scales=dict(zip(_SCALED, scales, strict=True)),
        max_iterations=10,
        cost_tolerance=1e-3,
    )
    for weights, scales in _TABLE
)
"""The three stages of smplify-kids (Hesse, 2022), by the author of SMIL, whose own weights are not published.

Weights are the squares of those that smplify-kids squares in its energy; scales are in metres, or pixels for
keypoints. Its root of the sum of collisions is replaced by the sum.
"""
