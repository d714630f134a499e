"""The run-time type checker of the tests.

jaxtyping's own wrapper checks arguments twice and gives every function a context of dimensions, though many
have none. Fits call one function with arguments of the same types and shapes hundreds of times: here it is
checked once for each combination of them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

in_context = jaxtyping.jaxtyped
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as PEP 484 says


def resolve(hint: Any, names: dict[str, Any]) -> Any:
    """Return what a postponed annotation means in a module; anything, where a name is not known there yet."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except NameError:
        return Any


class Readers(dict[type, Callable[[Any], Any]]):
    """What a check of a value can see, by its type: types, shapes, and texts themselves."""

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if issubclass(kind, (torch.Tensor, np.ndarray)):
            self[kind] = lambda value: (kind, value.dtype, value.shape)
        elif issubclass(kind, (tuple, list)):
            self[kind] = lambda value: (kind, *[self[type(each)](each) for each in value])
        elif issubclass(kind, dict):
            self[kind] = lambda value: (kind, *[(key, self[type(each)](each)) for key, each in value.items()])
        else:
            self[kind] = (lambda value: value) if issubclass(kind, str) else lambda value: kind
        return self[kind]


READERS = Readers()


def signature(value: Any) -> Any:
    """Return the signature of a value; a million are asked for, so only a new type is looked at."""
    return READERS[type(value)](value)


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the decorator that jaxtyping's import hook gives to every class and function."""

    def decorate(function: Any) -> Any:
        if inspect.isclass(function):
            return in_context(function, typechecker=typechecker)
        written = inspect.get_annotations(function)
        hints = {name: resolve(hint, function.__globals__) for name, hint in written.items()}
        # All arguments and results of one call share their dimensions.
        has_dimensions = any("jaxtyping" in str(hint) for hint in hints.values())
        function.__annotations__ = hints
        with_check = typechecker(function)
        function.__annotations__ = written
        if with_check is function:  # nothing is annotated
            return function
        called: set[Any] = set()

        def check(call: Any, /, *args: Any, **kwargs: Any) -> Any:
            with in_context("context"):
                return call(*args, **kwargs)

        def check_result(result: Any, /, *args: Any, **kwargs: Any) -> Any:
            stand_in = functools.wraps(function)(lambda *args, **kwargs: result)
            stand_in.__annotations__ = hints
            return typechecker(stand_in)(*args, **kwargs)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if jaxtyping.config.jaxtyping_disable:
                return function(*args, **kwargs)
            if not has_dimensions:
                return with_check(*args, **kwargs)
            key = signature(args), signature(kwargs)
            try:
                known = key in called
            except TypeError:  # symbolic sizes have no hash
                return check(with_check, *args, **kwargs)
            result = (function if known else functools.partial(check, with_check))(*args, **kwargs)
            both = key, signature(result)
            if known and both not in called:
                check(check_result, result, *args, **kwargs)
            called.update((key, both))
            return result

        return wrapped

    return decorate
