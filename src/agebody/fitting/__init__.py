"""From observations to bodies: keypoints in images, points, meshes, measurements and scans."""

from agebody.fitting.conversion import convert
from agebody.fitting.frames import AIONHMR, SMPLIFY, fit_keypoints, fit_sequence
from agebody.fitting.measures import fit_measurements
from agebody.fitting.points import fit_points, fit_vertices
from agebody.fitting.scans.clouds import Cloud, Plane, fit_plane
from agebody.fitting.scans.registration import fit_scans
from agebody.fitting.scans.stages import SMPLIFY_KIDS
from agebody.optim.stages import Fit

__all__ = [
    "AIONHMR",
    "SMPLIFY",
    "SMPLIFY_KIDS",
    "Cloud",
    "Fit",
    "Plane",
    "convert",
    "fit_keypoints",
    "fit_measurements",
    "fit_plane",
    "fit_points",
    "fit_scans",
    "fit_sequence",
    "fit_vertices",
]
