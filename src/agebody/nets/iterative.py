"""The head of HMR and SPIN: iterative regression with error feedback."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import read_share, read_sizes
from agebody.nets.readouts import ReadoutHead


class IterativeHead(ReadoutHead):
    """Regress the read-outs from image features iteratively, with error feedback.

    The head of HMR (Kanazawa et al., CVPR 2018) as SPIN has it (Kolotouros et al., ICCV 2019), and that of
    CLIFF (Li et al., ECCV 2022) with a condition. Two linear layers take the features, the condition and the
    read-outs so far, which begin at their starts; one linear layer per read-out gives its change.

    Args:
        readouts: name -> start, in their order after the features. `start_readouts` gives
            those of a body.
        channels: of the features, such as 2048 of a ResNet-50.
        condition: how many numbers a call gives beside the features, such as 3 for `box_condition`.
        width: of the two layers.
        iterations: how often the read-outs are changed.
        dropout: after each of the two layers, in training.
    """

    def __init__(
        self,
        readouts: Mapping[str, Tensor],
        *,
        channels: int = 2048,
        condition: int = 0,
        width: int = 1024,
        iterations: int = 3,
        dropout: float = 0.5,
    ) -> None:
        read_sizes(channels=channels, width=width, iterations=iterations)
        dropout = read_share("dropout", dropout)
        super().__init__(readouts, condition)
        without = [name for name in self.sizes if self.start(name) is None]
        if without:
            raise ValueError(
                f"readouts: expected a start to begin from, got the size of {', '.join(without)}"
            )
        self.channels, self.iterations = channels, iterations
        self.fc1 = nn.Linear(channels + condition + sum(self.sizes.values()), width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.add_layers(width)

    def forward(
        self,
        features: Float[Tensor, "B C h w"] | Float[Tensor, "B T C"] | Float[Tensor, "B C"],
        condition: Float[Tensor, "B K"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the read-outs by name, each (B, size).

        Args:
            features: a vector per person, or a map or tokens, whose mean is taken.
            condition: numbers beside the features; None where there are none.
        """
        given = self.expect_features(features, self.fc1.weight, self.channels, "B C", "B T C", "B C h w")
        pooled = given.mean((-2, -1)) if given.dim() == 4 else given
        pooled = pooled.mean(1) if pooled.dim() == 3 else pooled
        given = self.expect_condition(condition, pooled)
        fixed = pooled if given is None else torch.cat((pooled, given), -1)
        found = self.starts(pooled.shape[0])
        for _ in range(self.iterations):
            hidden = self.dropout(self.fc1(torch.cat((fixed, *found.values()), -1)))
            hidden = self.dropout(self.fc2(hidden))
            found = {name: self.read(name, hidden, last) for name, last in found.items()}
        return found
