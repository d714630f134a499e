"""Nonlinear least squares for batches of bodies: the solver, the terms and their derivatives."""
