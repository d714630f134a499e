"""Measures of a body, differentiable."""

from agebody.measure.lengths import stature

__all__ = ["stature"]
