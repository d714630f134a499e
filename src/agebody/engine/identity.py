"""Identity of a body: coefficients and rest joints from betas and age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.engine.batched import product
from agebody.engine.deform import age_coefficients


class RestJoints(nn.Module):
    """Coefficients (1, betas, weights of the age templates) and the rest joints that they give.

    Joints are affine in the coefficients: the regressor is folded into the directions (template and
    displacements) once.
    """

    directions: Tensor

    def __init__(
        self, directions: Float[np.ndarray, "C J 3"], age_anchors: Sequence[float], *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.age_anchors = tuple(age_anchors)
        self.register_buffer("directions", torch.from_numpy(directions).to(dtype), persistent=False)

    def forward(
        self, betas: Float[Tensor, "*batch N"], age_offset: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch J 3"]]:
        """Return the coefficients, and the rest joints [m]."""
        parts = [betas.new_ones(*betas.shape[:-1], 1), betas]
        if self.age_anchors:
            parts.append(age_coefficients(age_offset, self.age_anchors))
        coefficients = torch.cat(parts, -1)
        joints = product(coefficients, self.directions.flatten(1))
        return coefficients, joints.unflatten(-1, self.directions.shape[1:])
