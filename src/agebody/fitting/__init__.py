"""From observations to bodies: keypoints in images, points, meshes and scans; batches, each person alone."""

from agebody.fitting.bodies import Fit, FitReport, Stage, fit_bodies
from agebody.fitting.convert import Correspondence, convert, correspond
from agebody.fitting.images import SCHEDULE, KeypointFit, Step, fit_keypoints
from agebody.fitting.jacobian import KeypointDerivatives, KeypointJacobian, SurfaceJacobian, SurfaceRows
from agebody.fitting.limits import Limits
from agebody.fitting.parameters import GROUPS, BodyParameters
from agebody.fitting.points import PointFit, fit_points, fit_vertices
from agebody.fitting.scans.clouds import Cloud, Plane, above_plane, fit_plane, points_from_depth
from agebody.fitting.scans.registration import ScanFit, ScanReport, fit_scans
from agebody.fitting.scans.stages import SMPLIFY_KIDS, ScanStage
from agebody.fitting.scans.steps import StepReport
from agebody.fitting.scans.surface import register_surface
from agebody.fitting.sequences import MOTION_SCHEDULE, MotionStep, SequenceFit, fit_sequence, triangulate
from agebody.fitting.terms import (
    Age,
    Bend,
    Block,
    Depth,
    Points,
    PosePrior,
    Reprojection,
    Robust,
    Shape,
    State,
    Term,
    Unknowns,
)

__all__ = [
    "GROUPS",
    "MOTION_SCHEDULE",
    "SCHEDULE",
    "SMPLIFY_KIDS",
    "Age",
    "Bend",
    "Block",
    "BodyParameters",
    "Cloud",
    "Correspondence",
    "Depth",
    "Fit",
    "FitReport",
    "KeypointDerivatives",
    "KeypointFit",
    "KeypointJacobian",
    "Limits",
    "MotionStep",
    "Plane",
    "PointFit",
    "Points",
    "PosePrior",
    "Reprojection",
    "Robust",
    "ScanFit",
    "ScanReport",
    "ScanStage",
    "SequenceFit",
    "Shape",
    "Stage",
    "State",
    "Step",
    "StepReport",
    "SurfaceJacobian",
    "SurfaceRows",
    "Term",
    "Unknowns",
    "above_plane",
    "convert",
    "correspond",
    "fit_bodies",
    "fit_keypoints",
    "fit_plane",
    "fit_points",
    "fit_scans",
    "fit_sequence",
    "fit_vertices",
    "points_from_depth",
    "register_surface",
    "triangulate",
]
