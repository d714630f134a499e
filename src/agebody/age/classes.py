"""Age classes, and stated ages of people."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age.values import MAX_YEARS, as_given

UNKNOWN = -1
"""Age class of a person whose class is unknown."""
AGE_FIELDS = ("age_offset", "age_months", "years", "age_class")
"""Arguments of `parse_ages`, which are fields of files of people: the first one that is stated counts."""


class AgeClass(NamedTuple):
    """A range of age offsets, ``low < a <= high``, and a representative offset."""

    name: str
    low: float
    mid: float
    high: float


AGE_CLASSES = (
    AgeClass("adult", -0.05, 0.0, 0.15),
    AgeClass("teen", 0.15, 0.3, 0.45),
    AgeClass("kid", 0.45, 0.6, 0.75),
    AgeClass("baby", 0.75, 0.9, 1.0),
)
"""The age classes of BEV (CVPR 2022) and of its data set, Relative Human."""
_YOUNGEST = (12.5, 6.5, 1.5)
"""Youngest adult, teen and kid [years], to half a year: where the WHO's median stature is that of the
published adult (1.72 m) and infant (0.534 m) at the bounds of the classes."""


def age_class(age_offset: Any) -> Any:
    """Return the index into ``AGE_CLASSES`` of each age offset, -1 for NaN; the outer classes are open.

    Offsets are compared in at most float32, so that an offset on a bound has the same class from a number, a
    tensor or a file of any precision.

    Args:
        age_offset: a number, an array or a tensor of any shape.

    Returns:
        An int, an array or a tensor of integers, as given.
    """
    if isinstance(age_offset, Tensor):
        offsets = age_offset
    else:
        array = np.array(age_offset)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"age_offset: expected numbers, got {reprlib.repr(age_offset)}")
        offsets = torch.as_tensor(array)
    offsets = offsets.float() if offsets.dtype not in (torch.float16, torch.bfloat16) else offsets
    highs = offsets.new_tensor([kind.high for kind in AGE_CLASSES[:-1]])
    found = torch.where(offsets.isnan(), UNKNOWN, torch.bucketize(offsets.contiguous(), highs))
    return found if isinstance(age_offset, Tensor) else as_given(found.numpy(), age_offset, int)


class AgeError(ValueError):
    """An invalid age: the argument, the person, and what was expected."""

    def __init__(self, name: str, person: int, problem: str) -> None:
        """Keep the parts, so that a reader of files can name the place of the age."""
        super().__init__(f"{name}: {problem}")
        self.name, self.person, self.problem = name, person, problem


class Ages(NamedTuple):
    """Stated ages of people, at most one of the three numbers per person."""

    age_offset: Float[np.ndarray, "*people"]
    """0 adult, 1 infant; NaN where unknown."""
    years: Float[np.ndarray, "*people"]
    """NaN where unknown."""
    age_class: Int[np.ndarray, "*people"]
    """Index into ``AGE_CLASSES``, ``UNKNOWN`` where unknown."""

    @property
    def known(self) -> Bool[np.ndarray, "*people"]:
        """Whether the age of each person is stated."""
        return ~np.isnan(self.age_offset) | ~np.isnan(self.years) | (self.age_class != UNKNOWN)

    def select(self, rows: Any) -> Ages:
        """Return the ages of some of the people."""
        return Ages(*(part[rows] for part in self))

    def fill(self, other: Ages) -> Ages:
        """Return these ages, and the other ones where these are unknown."""
        return Ages(*(np.where(self.known, mine, theirs) for mine, theirs in zip(self, other, strict=True)))

    def classes(self) -> Int[np.ndarray, "*people"]:
        """Return each person's age class; of years, for any body: adults from 12.5, teens 6.5, kids 1.5."""
        by_years = (np.expand_dims(self.years, -1) < _YOUNGEST).sum(-1)
        found = np.where(np.isnan(self.years), age_class(self.age_offset), by_years)
        return np.where(np.isnan(self.age_offset) & np.isnan(self.years), self.age_class, found)


def parse_ages(
    *,
    age_offset: Any = None,
    age_months: Any = None,
    years: Any = None,
    age_class: Any = None,
    shape: tuple[int, ...] | None = None,
) -> Ages:
    """Check ages of people and keep one per person: the rule of all files, arguments and commands.

    Each argument may be one value or a list, an array or a tensor of values. None, NaN and empty strings are
    unknown. Where a person has several ages, the age offset counts before months, these before the years, and
    the class last.

    Args:
        age_offset: finite numbers; 0 adult, 1 infant.
        age_months: ages from 0 to below 12 times ``MAX_YEARS``, which become years.
        years: ages from 0 to below ``MAX_YEARS``.
        age_class: names of ``AGE_CLASSES``, in lower or upper case, or their indices; ``UNKNOWN`` is unknown.
        shape: of the people; by default the one that the arguments broadcast to.

    Raises:
        AgeError: a value is out of its range or not a number; the error says of which person.
    """
    names = ", ".join(kind.name for kind in AGE_CLASSES)
    parsed = {
        "age_offset": _parse("age_offset", age_offset, _number, "a finite number"),
        "age_months": _parse_ages("age_months", age_months, 12 * MAX_YEARS),
        "years": _parse_ages("years", years, MAX_YEARS),
        "age_class": _parse("age_class", age_class, _class_index, f"{names} or 0 to {len(AGE_CLASSES) - 1}"),
    }
    shape = np.broadcast_shapes(*(part.shape for part in parsed.values())) if shape is None else shape
    for name, part in parsed.items():
        try:
            parsed[name] = np.broadcast_to(part, shape)
        except ValueError:
            expected = f"a shape that broadcasts to {tuple(shape)}"
            raise ValueError(f"{name}: expected {expected}, got {part.shape}") from None
    offsets, months, years, kinds = parsed.values()
    years = np.where(np.isnan(offsets), np.where(np.isnan(months), years, months / 12), np.nan)
    kinds = np.where(np.isnan(offsets) & np.isnan(years) & ~np.isnan(kinds), kinds, UNKNOWN)
    return Ages(offsets.copy(), years, kinds.astype(np.int64))


def _parse(
    name: str, values: Any, read: Callable[[Any], float | None], expected: str
) -> Float[np.ndarray, "*people"]:
    """Return numbers, NaN where unknown. ``read`` returns None for an invalid value."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    elif isinstance(values, (list, tuple)):  # of anything: NumPy would look for a common type
        values = np.fromiter(values, dtype=object, count=len(values))
    array = np.array(values, dtype=object) if np.isscalar(values) or values is None else np.asarray(values)
    found = np.full(array.size, np.nan)
    for person, value in enumerate(array.ravel().tolist()):
        unknown = value is None or (isinstance(value, str) and not value) or value != value
        number = np.nan if unknown else read(value)
        if number is None:
            raise AgeError(name, person, f"expected {expected}, got {reprlib.repr(value)}")
        found[person] = number
    return found.reshape(array.shape)


def _parse_ages(name: str, values: Any, below: float) -> Float[np.ndarray, "*people"]:
    def read(value: Any) -> float | None:
        return float(value) if is_number(value) and 0 <= value < below else None

    return _parse(name, values, read, f"a number from 0 to below {below:g}")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite real number that a float64 holds; booleans are not numbers."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _class_index(value: Any) -> float | None:
    names = [kind.name for kind in AGE_CLASSES]
    if isinstance(value, str):
        return names.index(value.lower()) if value.lower() in names else None
    if isinstance(value, Integral) and not isinstance(value, bool) and UNKNOWN <= int(value) < len(names):
        return np.nan if value == UNKNOWN else float(value)
    return None
