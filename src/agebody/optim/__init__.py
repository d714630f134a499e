"""Nonlinear least squares for batches of bodies: the solver, stages, and the terms of fits."""

from agebody.optim.least_squares import minimize
from agebody.optim.problem import Stage
from agebody.optim.quadratic import Quadratic
from agebody.optim.stages import fit_bodies
from agebody.optim.state import State
from agebody.optim.terms import Points, PosePrior, Reprojection, ShapePrior

__all__ = [
    "Points",
    "PosePrior",
    "Quadratic",
    "Reprojection",
    "ShapePrior",
    "Stage",
    "State",
    "fit_bodies",
    "minimize",
]
