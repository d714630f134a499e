"""Argument checks, masks, weights and reductions that layers, losses, metrics and fits share.

Weights follow one rule. Each entry (a keypoint, a rotation, a person, a pair) has one weight, a confidence or
a mask, in any shape that broadcasts to the entries:

- entries of weight 0 are ignored, even where they are NaN or infinite: they reach neither the value nor a
  gradient;
- ``"none"`` returns weight times term per entry, ``"sum"`` adds these, and ``"mean"`` divides their sum by
  the sum of the weights, so that a common factor of all weights changes no mean, and a mask is weights of 0
  and 1;
- the result has the dtype of the terms, float32 at least, whatever that of the weights;
- negative, infinite and NaN weights are refused, by losses and metrics on the CPU, where no device has to be
  waited for, and by fits everywhere;
- where no entry counts, the mean is 0 for losses, so that a training step without labels goes on, and NaN for
  metrics, where 0 would be a perfect score.

An entry that combines several (a pair of people, neighbouring frames) has the product of their weights.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.engine.batched import at_least_float32, is_recorded, is_transformed
from agebody.rotations import ENTRY_SHAPES, PoseFormat, no_rotation

Reduction = Literal["none", "mean", "sum"]
"""``"none"`` keeps one weighted term per entry; ``"sum"`` adds them; ``"mean"`` divides the sum by the sum of
weights."""

Weights = Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None
"""Confidences or a mask that broadcast to the entries; None is 1 everywhere. Entries of weight 0 are
ignored."""

MOST_SURE = 10.0
"""Largest confidence: heatmaps give some above 1, and percent are none."""


def expect(name: str, tensor: Any, *entry: int | None) -> Tensor:
    """Check the last dimensions of a floating-point tensor; None stands for any size.

    Returns:
        The tensor, cast to float32 if it has 16 bits, whose sums overflow or lose their digits.
    """
    if not expect_tensor(name, tensor).is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {tensor.dtype}")
    last = tensor.shape[tensor.dim() - len(entry) :] if tensor.dim() >= len(entry) else None
    if last is None or any(n is not None and n != m for n, m in zip(entry, last, strict=True)):
        shape = ", ".join(["*batch", *("any" if n is None else str(n) for n in entry)])
        confident = name == "keypoints" and entry[-1:] == (2,) and tensor.shape[-1:] == (3,)
        hint = "; pass confidences as weights" if confident else ""
        raise ValueError(f"{name}: expected shape ({shape}), got {tuple(tensor.shape)}{hint}")
    return at_least_float32(tensor)


def floating(values: Tensor) -> Tensor:
    """Return integers as floating-point numbers; all else as it is."""
    counts = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    return values.to(torch.get_default_dtype()) if counts else values


def expect_tensor(name: str, value: Any) -> Tensor:
    """Check that a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def expect_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check that a value is one of some names."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {reprlib.repr(value)}")


def expand_to(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor expanded to a shape."""
    try:
        return tensor.expand(tuple(shape))
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(shape)}, got {tuple(tensor.shape)}"
        ) from None


def to_number(value: Any) -> float:
    """Return a number of any type as a float; NaN for anything else, which no range contains."""
    try:
        return math.nan if isinstance(value, (str, bool, np.bool_)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def read_texts(name: str, value: Any) -> tuple[str, ...]:
    """Check names, and return them as a tuple; one text, a sequence of letters, is a mistake."""
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    names = tuple(value) if listed else ()
    if not listed or not all(isinstance(one, str) for one in names):
        got = reprlib.repr(value) if listed or isinstance(value, str) else type(value).__name__
        raise TypeError(f"{name}: expected a sequence of names, got {got}")
    return names


def read_number(
    name: str,
    value: Any,
    what: str = "a finite number",
    least: float = -math.inf,
    most: float = math.inf,
    *,
    finite: bool = True,
) -> float:
    """Check a number from ``least`` to ``most``, of any type that makes one, and return it as a float."""
    number = to_number(value)
    if not least <= number <= most or (finite and math.isinf(number)):
        raise ValueError(f"{name}: expected {what}, got {reprlib.repr(value)}")
    return number


def read_share(name: str, value: Any) -> float:
    """Check a number from 0 to 1, and return it as a float."""
    return read_number(name, value, "a share from 0 to 1", 0, 1)


def read_range(
    name: str, value: Any, what: str, least: float = 0.0, below: float = math.inf
) -> tuple[float, float]:
    """Check two ascending numbers of ``least`` or more, and return them as floats."""
    try:
        low, high = map(to_number, value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not least <= low <= high < below:
        raise ValueError(f"{name}: expected two ascending {what}, got {reprlib.repr(value)}")
    return low, high


def read_positive(
    name: str, value: Any, what: str = "a number", unit: str = "", finite: bool = True
) -> float:
    """Check a number above 0, of any type that makes one, and return it as a float."""
    return read_number(name, value, f"{what} above 0{unit}", math.ulp(0.0), finite=finite)


def read_nonnegative(
    name: str, value: Any, what: str = "a finite number", unit: str = "", *, finite: bool = True
) -> float:
    """Check a number of 0 or more, of any type that makes one, and return it as a float."""
    return read_number(name, value, f"{what} of 0 or more{unit}", 0, finite=finite)


def read_count(
    name: str, value: Any, most: int | None = None, whose: str | None = None, *, least: int = 0
) -> int:
    """Check a whole number from ``least`` to ``most``, which ``whose`` has."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limit = f"a whole number of {least} or more" if most is None else f"{least} to {most}"
        raise ValueError(
            f"{name}: expected {limit}{'' if whose is None else f', what {whose!r} has'}, got {value!r}"
        )
    return number


def read_sizes(**sizes: Any) -> None:
    """Check whole numbers of 1 or more, such as the sizes of a network."""
    for name, size in sizes.items():
        read_count(name, size, least=1)


def read_dtype(dtype: Any) -> torch.dtype:
    """Return a floating-point type; torch's default if it is None."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point type such as torch.float32, got {dtype!r}")
    return dtype


def expect_numbers(name: str, value: Any, like: Tensor) -> Tensor:
    """Return numbers, of a tensor or anything that makes one, in the dtype and on the device of a tensor."""
    try:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected numbers, got {reprlib.repr(value)}") from None


def expect_pair(
    pred: Any, target: Any, weights: Any = None, *entry: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check two tensors of one shape, ``(*entries, *entry)``, and return them with the expanded weights.

    They are not broadcast: ``(B, 1)`` against ``(B,)`` would give B x B differences, most likely by mistake.
    """
    pred, target = expect("pred", pred, *entry), expect("target", target, *entry)
    expect_dtype("target", target, pred)
    if pred.shape != target.shape:
        raise ValueError(
            f"target: expected the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}"
        )
    return pred, target, expand_weights(weights, pred.shape[: pred.dim() - len(entry)])


def expect_dtype(name: str, tensor: Tensor, like: Tensor, whose: str = "that of pred") -> None:
    """Check that a tensor has the dtype of another one, once 16 bits were cast to float32."""
    expected, given = (at_least_float32(part).dtype for part in (like, tensor))
    if expected != given:
        raise TypeError(f"{name}: expected {expected}, {whose}, got {given}; cast one of them")


def expect_integers(name: str, value: Any) -> Int[Tensor, "*shape"]:
    """Check that a value is a tensor of integers."""
    kind = value.dtype if isinstance(value, Tensor) else None
    if kind is None or kind == torch.bool or kind.is_floating_point or kind.is_complex:
        raise TypeError(f"{name}: expected a torch.Tensor of integers, got {kind or type(value).__name__}")
    return value


def expect_labels(name: str, labels: Any, entries: torch.Size) -> Int[Tensor, "*entries"]:
    """Check integers, one per entry."""
    if expect_integers(name, labels).shape != entries:
        raise ValueError(f"{name}: expected shape {tuple(entries)}, got {tuple(labels.shape)}")
    return labels


def expect_values(*, wait: bool = True, **expected: tuple[Tensor, str]) -> None:
    """Check values of several arguments with a single device synchronisation.

    Does nothing while operations are recorded or inside a torch.func transform, where values cannot be read,
    and on the device "meta", which has none.

    Args:
        wait: whether to wait for other devices than the CPU; if not, values there are not checked.
        expected: per argument, a mask that must be true everywhere and the description of valid values. A
            double underscore in a name stands for a dot.
    """
    devices = {mask.device.type for mask, _ in expected.values()}
    if is_recorded() or is_transformed() or "meta" in devices or not (wait or devices == {"cpu"}):
        return
    valid = torch.stack([mask.all() for mask, _ in expected.values()]).tolist()
    for (name, (_, what)), good in zip(expected.items(), valid, strict=True):
        if not good:
            raise ValueError(f"{name.replace('__', '.')}: expected {what}")


def expand_weights(weights: Any, entries: torch.Size) -> Tensor | None:
    """Return the weights, one per entry; None stays None.

    Integers become floating-point numbers, as their products, such as of neighbouring frames, overflow.
    """
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: expected a torch.Tensor or None, got {type(weights).__name__}")
    expanded = expand_to("weights", weights, entries)
    expect_weights(weights)
    return floating(expanded)


def read_confidences(
    weights: Any, like: Float[Tensor, "*entries"], most: float = MOST_SURE
) -> Float[Tensor, "*entries"]:
    """Return the weights of a fit, one per entry and 1 by default, in the dtype of the entries.

    A fit's confidences have a scale, that of its priors, so percent are refused.
    """
    expanded = expand_weights(weights, like.shape)
    confidences = torch.ones_like(like) if expanded is None else expanded.to(like)
    expect_weights(confidences, wait=True)
    expect_values(weights=(confidences <= most, f"confidences, usually 0 to 1, up to {most:g}"))
    return confidences


def expect_weights(weights: Tensor, name: str = "weights", *, wait: bool = False) -> None:
    """Check that weights are finite and not negative; on a GPU only if ``wait``, as this synchronises."""
    ready = wait or (type(weights) is Tensor and weights.device.type == "cpu")
    if ready and weights.dtype != torch.bool and weights.numel() and not (is_recorded() or is_transformed()):
        least, most = map(float, weights.detach().aminmax())
        if not 0 <= least <= most < math.inf:
            raise ValueError(f"{name}: expected finite numbers of 0 or more, got {least:g} to {most:g}")


def apply_mask(tensor: Tensor, weights: Tensor | None, entry_dims: int = 0) -> Tensor:
    """Set entries of weight 0 to zero, so that NaN there reaches neither value nor gradient.

    Args:
        tensor: (*entries, ...), with ``entry_dims`` dimensions of its own after the entries.
        weights: broadcast to the entries; None keeps all.
        entry_dims: how many of the last dimensions make up one entry.
    """
    if weights is None:
        return tensor
    return torch.where((weights != 0)[(..., *[None] * entry_dims)], tensor, 0)


def residual(
    pred: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None,
    *entry: int | None,
) -> tuple[Float[Tensor, "*shape"], Tensor | None]:
    """Return ``pred - target``, zero in entries of weight 0, and the weights, one per entry.

    Both are (*entries, *entry), and None stands for any size in ``entry``.
    """
    pred, target, weights = expect_pair(pred, target, weights, *entry)
    # Masking the difference is enough: its gradient does not depend on the two values.
    return apply_mask(pred - target, weights, len(entry)), weights


def reduce(
    terms: Float[Tensor, "*entries"], weights: Tensor | None, reduction: Reduction, *, empty: float = 0.0
) -> Float[Tensor, "*left"]:
    """Weight terms and reduce them, by the rule at the head of this module.

    Args:
        terms: one per entry.
        weights: broadcast to the entries; None is 1 everywhere.
        reduction: see `Reduction`.
        empty: the mean where no entry counts: 0 for losses, NaN for metrics.
    """
    expect_choice("reduction", reduction, get_args(Reduction))
    terms, weights = at_least_float32(terms), expand_weights(weights, terms.shape)
    if weights is not None:
        weights = weights.to(terms.dtype)
        terms = torch.where(weights != 0, terms * weights, 0)
    if reduction == "none":
        return terms
    added = terms.sum()
    if reduction == "sum":
        return added
    if weights is None:
        return added / terms.numel() if terms.numel() else added + empty
    total = weights.sum()
    nothing = total == 0
    return torch.where(nothing, empty, added / torch.where(nothing, 1, total))


def safe_norm(vectors: Float[Tensor, "*batch D"], dim: int = -1) -> Float[Tensor, "*batch"]:
    """Return the Euclidean length, with gradient zero at zero."""
    squared = (vectors * vectors).sum(dim)
    zero = squared == 0
    return torch.where(zero, 0, torch.sqrt(torch.where(zero, 1, squared)))


def read_tensor(name: str, value: Any, entry: tuple[int, ...], like: Tensor) -> Tensor:
    """Return one argument of a layer, (*batch, *entry), in the dtype of another tensor; zeros by default.

    Where the entry is one number, a single one of any type is taken, as by torch's operators.
    """
    if value is None:
        return torch.zeros(entry, dtype=like.dtype, device=like.device)
    if entry == () and getattr(value, "shape", ()) == ():
        if isinstance(value, Tensor):
            value = value.to(like.dtype)
        elif not isinstance(value, bool) and (
            isinstance(value, (int, float)) or getattr(value, "dtype", np.dtype("V")).kind in "iuf"
        ):
            value = torch.full((), float(value), dtype=like.dtype, device=like.device)
    value = _expect_like(name, value, like)
    if not _ends_with(value.shape, entry):
        raise ValueError(f"{name}: expected shape {_expected(entry)}, got {tuple(value.shape)}")
    return value


def read_rotations(
    name: str, value: Tensor | None, pose_format: PoseFormat, count: int | None, like: Tensor
) -> Tensor:
    """Return rotations (*batch, count, *entry), or (*batch, *entry) if count is None; identity by default."""
    entry = ENTRY_SHAPES[pose_format]
    several = entry if count is None else (count, *entry)
    if value is None:
        return no_rotation(pose_format, like.dtype, like.device).expand(several)
    value = _expect_like(name, value, like)
    if not _ends_with(value.shape, several):
        if count is None or value.dim() == 0 or value.shape[-1] != math.prod(several):
            flat = "" if count is None else f" or {_expected((math.prod(several),))}"
            whole = name == "body_pose" and count and (count + 1, *entry)
            hint = whole and (_ends_with(value.shape, whole) or value.shape[-1:] == (math.prod(whole),))
            raise ValueError(
                f"{name}: expected shape {_expected(several)}{flat} for pose_format={pose_format!r}, "
                f"got {tuple(value.shape)}{'; pass the root as global_orient' if hint else ''}"
            )
        value = value.unflatten(-1, several)
    return value


def broadcast(**batches: tuple[int, ...]) -> tuple[int, ...]:
    """Return the batch that all broadcast to, or raise an error that lists them by name."""
    shapes = [tuple(shape) for shape in batches.values() if shape] or [()]
    if not is_recorded() and all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    try:
        return tuple(torch.broadcast_shapes(*batches.values()))
    except RuntimeError:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(f"batch dimensions do not broadcast: {listed}") from None


def flatten(tensor: Tensor, batch: tuple[int, ...] | None, entry_dims: int) -> Tensor:
    """Broadcast (*some batch, *entry) to the whole batch, its own if None, and flatten it to (B, *entry)."""
    own, entry = tensor.shape[: tensor.dim() - entry_dims], tensor.shape[tensor.dim() - entry_dims :]
    batch = own if batch is None else batch
    if len(batch) == 1 and not is_recorded() and own == batch:
        return tensor
    return tensor.expand((*batch, *entry)).reshape(math.prod(batch), *entry)


def _expect_like(name: str, value: Any, like: Tensor) -> Tensor:
    expect_tensor(name, value)
    # Half precision, the output of networks under autocast, is cast up without loss; nothing else is cast.
    if value.dtype not in (like.dtype, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: expected {like.dtype}, the layer's dtype, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(
            f"{name}: expected a tensor on {like.device}, where the layer is, got {value.device}"
        )
    return value if value.dtype == like.dtype else value.to(like.dtype)


def _ends_with(shape: tuple[int, ...], entry: tuple[int, ...]) -> bool:
    # From the last dimension on, so that a batch of symbolic size is never compared with a number.
    pairs = zip(reversed(shape), reversed(entry), strict=False)
    return len(shape) >= len(entry) and all(n == m for n, m in pairs)


def _expected(entry: tuple[int, ...]) -> str:
    return "(" + ", ".join(["*batch", *map(str, entry)]) + ")"
