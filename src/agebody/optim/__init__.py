"""Nonlinear least squares for batches of bodies: the solver, the terms and their derivatives."""

from agebody.optim.least_squares import ChainQuadratic, Model, Quadratic, Solution, Stop, minimize

__all__ = ["ChainQuadratic", "Model", "Quadratic", "Solution", "Stop", "minimize"]
