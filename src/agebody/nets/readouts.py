"""Linear layers that read numbers out of features, each as a difference from its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from agebody.checks import expect, expect_tensor, read_count

_MODULES = {
    "pose": ("decpose", "init_body_pose"),
    "betas": ("decshape", "init_betas"),
    "camera": ("deccam", "init_cam"),
    "keypoints": ("deckp", "init_kp"),
    "hands": ("dechandpose", "init_hand_pose"),
}
"""Read-out -> names of its layer and of its start in the published weights."""


def layer_names(readout: str) -> tuple[str, str]:
    """Return the names in the weights of a read-out's layer and of its start."""
    return _MODULES.get(readout, (f"dec{readout}", f"init_{readout}"))


def readout_of(layer: str) -> str:
    """Return the read-out of a layer, the inverse of `layer_names`."""
    return next((name for name, (own, _) in _MODULES.items() if own == layer), layer.removeprefix("dec"))


class ReadoutHead(nn.Module):
    """The read-outs of a head, and the condition that it takes.

    Args:
        readouts: name -> start, or the size of a read-out without one.
        condition: how many numbers a call gives beside the features.
    """

    def __init__(self, readouts: Mapping[str, Tensor | int], condition: int = 0) -> None:
        super().__init__()
        if not isinstance(readouts, Mapping):
            raise TypeError(f"readouts: expected starts or sizes by name, got {type(readouts).__name__}")
        for name, value in readouts.items():
            if not name.isidentifier() or not (
                isinstance(value, Tensor) or (type(value) is int and value >= 0)
            ):
                wanted = "a name without dots and spaces, and a tensor to start from or a size"
                raise ValueError(f"readouts: expected {wanted}, got {name!r} and {type(value).__name__}")
        self.condition = read_count("condition", condition)
        self.sizes = {name: v.numel() if isinstance(v, Tensor) else v for name, v in readouts.items()}
        for name, start in readouts.items():
            if isinstance(start, Tensor):
                self.register_buffer(layer_names(name)[1], start.detach().clone().reshape(1, -1))

    def add_layers(self, width: int, names: Sequence[str] | None = None) -> None:
        """Add one linear layer per read-out; a new head reads its starts."""
        for name in self.sizes if names is None else names:
            layer = nn.Linear(width, self.sizes[name])
            nn.init.xavier_uniform_(layer.weight, gain=0.01)
            nn.init.zeros_(layer.bias)
            self.add_module(layer_names(name)[0], layer)

    def read(self, name: str, features: Tensor, last: Tensor | None = None) -> Tensor:
        """Return a read-out as a difference from the last one, or from its start."""
        found = self.get_submodule(layer_names(name)[0])(features)
        last = self.start(name) if last is None else last
        return found if last is None else found + last

    def start(self, name: str) -> Tensor | None:
        """Return the start (1, size) of a read-out, if it has one."""
        return getattr(self, layer_names(name)[1], None)

    def starts(self, people: int) -> dict[str, Tensor]:
        """Return the starts (people, size) of the read-outs that have one."""
        found = {name: self.start(name) for name in self.sizes}
        return {name: start.expand(people, -1) for name, start in found.items() if start is not None}

    def expect_features(self, features: Tensor, like: Tensor, channels: int, *forms: str) -> Tensor:
        """Check features, and return them in the type of the weights, such as ``like``.

        The ``forms`` are the axes of each shape that the head takes, such as "B C h w", with so many
        channels.
        """
        shape = expect_tensor("features", features).shape
        fits = [
            len(axes) == len(shape) and shape[axes.index("C")] == channels for axes in map(str.split, forms)
        ]
        if not any(fits):
            wanted = " or ".join(f"({', '.join(axes.split())})" for axes in forms).replace("C", str(channels))
            raise ValueError(f"features: expected shape {wanted}, got {tuple(shape)}")
        return features.to(like.dtype)

    def expect_condition(self, condition: Tensor | None, like: Tensor) -> Tensor | None:
        """Check a condition, one row per row of ``like``, and return it in that type."""
        if self.condition == 0:
            if condition is not None:
                raise ValueError("condition: expected None, for this head takes no condition")
            return None
        shape = (like.shape[0], self.condition)
        if condition is None:
            raise ValueError(f"condition: expected shape {shape}, got None")
        given = expect("condition", condition, self.condition)
        if given.shape != shape:
            raise ValueError(f"condition: expected shape {shape}, got {tuple(given.shape)}")
        return given.to(like.dtype)
