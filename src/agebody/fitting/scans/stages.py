"""Weights of the energy of a body in a scan."""

from __future__ import annotations

from typing import NamedTuple


class ScanStage(NamedTuple):
    """Weights and widths of one stage of the energy; what is multiplied is said at each.

    The defaults of `SMPLIFY_KIDS` are the published ones nearest to SMIL, whose own are not published.
    """

    s2m: float
    """Mean over the scan's points of `gmof` of their distance from the visible surface [1/m^2]."""
    m2s: float
    """Mean over visible vertices of `gmof` of their distance from the scan [1/m^2]."""
    landmarks: float
    """118 times the mean over the landmarks' coordinates of c^2 `gmof` [1/px^2]."""
    pose: float
    """Energy of the pose prior."""
    bend: float
    """`agebody.losses.hyperextension_prior`."""
    shape: float
    """Sum of the squared betas."""
    smooth: float
    """Sum over joints of the squared distance from where the frames before foretell them [1/m^2]."""
    inside: float
    """Mean over vertices of the squared depth below the table [1/m^2]."""
    close: float
    """Mean over the back's vertices of `gmof` of their height above the table [1/m^2]."""
    collision: float
    """`agebody.losses.self_intersection_loss`."""
    rho_s2m: float
    """Distance at which a point of the scan costs half of its bound [m]."""
    rho_m2s: float
    """[m]"""
    rho_landmarks: float
    """[px]"""
    rho_close: float = 0.02
    """[m]"""


SMPLIFY_KIDS = (
    ScanStage(
        s2m=1e5, m2s=0.0, landmarks=0.07**2, pose=1.0, bend=1.0, shape=5.0, smooth=1.0, inside=10.0,
        close=0.0, collision=0.0, rho_s2m=0.3, rho_m2s=0.3, rho_landmarks=500.0,
    ),
    ScanStage(
        s2m=2e5, m2s=0.0, landmarks=0.07**2, pose=0.5**2, bend=1.0, shape=0.1, smooth=1.0, inside=10.0,
        close=0.0, collision=0.0, rho_s2m=0.1, rho_m2s=0.103, rho_landmarks=50.0,
    ),
    ScanStage(
        s2m=8e5, m2s=1e5, landmarks=0.27**2, pose=0.5**2, bend=0.1**2, shape=0.001, smooth=1.0, inside=1e6,
        close=5000.0, collision=0.01, rho_s2m=0.03, rho_m2s=0.03, rho_landmarks=4.0,
    ),
)  # fmt: skip
"""The three stages of smplify-kids (Hesse, 2022), with the squares of the weights that its energy squares. It
takes the root of the collisions' sum; here they are added as they are."""
