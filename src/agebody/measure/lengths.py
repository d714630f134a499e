"""Lengths of a body, differentiable."""

from jaxtyping import Float
from torch import Tensor


def stature(rest_vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch"]:
    """Height from the lowest to the highest vertex along +y [m] of a body that stands in its rest pose.

    Where several vertices are equally high or low, each receives an equal share of the gradient.
    """
    height = rest_vertices[..., 1]
    return height.amax(-1) - height.amin(-1)
