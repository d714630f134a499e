"""Nonlinear least squares for batches of bodies: the solver, stages, and the terms of fits."""

from agebody.optim.jacobian import KeypointJacobian, SurfaceJacobian
from agebody.optim.least_squares import Solution, Stop, minimize
from agebody.optim.problem import Stage
from agebody.optim.quadratic import ChainQuadratic, Quadratic
from agebody.optim.stages import FitReport, fit_bodies
from agebody.optim.state import Block, State, Term
from agebody.optim.terms import (
    AgePrior,
    Points,
    PosePrior,
    Reprojection,
    ShapePrior,
    StartPrior,
)

__all__ = [
    "AgePrior",
    "Block",
    "ChainQuadratic",
    "FitReport",
    "KeypointJacobian",
    "Points",
    "PosePrior",
    "Quadratic",
    "Reprojection",
    "ShapePrior",
    "Solution",
    "Stage",
    "StartPrior",
    "State",
    "Stop",
    "SurfaceJacobian",
    "Term",
    "fit_bodies",
    "minimize",
]
