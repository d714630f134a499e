"""From observations to bodies: keypoints in images, points, meshes and scans; batches, each person alone."""

from agebody.fitting.convert import Correspondence, convert, correspond
from agebody.fitting.images import SCHEDULE, KeypointFit, Step, fit_keypoints
from agebody.fitting.measures import MeasurementFit, fit_measurements
from agebody.fitting.points import PointFit, fit_points, fit_vertices
from agebody.fitting.scans.clouds import Cloud, Plane, above_plane, fit_plane, points_from_depth
from agebody.fitting.scans.registration import ScanFit, ScanReport, fit_scans
from agebody.fitting.scans.stages import SMPLIFY_KIDS, ScanStage
from agebody.fitting.scans.steps import StepReport
from agebody.fitting.scans.surface import register_surface
from agebody.fitting.sequences import MOTION_SCHEDULE, MotionStep, SequenceFit, fit_sequence, triangulate
from agebody.optim.jacobian import KeypointDerivatives, KeypointJacobian, SurfaceJacobian, SurfaceRows
from agebody.optim.limits import Limits
from agebody.optim.stages import Fit, FitReport, Stage, fit_bodies
from agebody.optim.terms import (
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
from agebody.parameters import GROUPS, BodyParameters

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
    "MeasurementFit",
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
    "fit_measurements",
    "fit_plane",
    "fit_points",
    "fit_scans",
    "fit_sequence",
    "fit_vertices",
    "points_from_depth",
    "register_surface",
    "triangulate",
]
