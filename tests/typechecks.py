"""The run-time type checker of the tests.

jaxtyping's own wrapper checks arguments twice and gives every function a context of dimensions, though many
have none; with it, a fit took a third more time.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

in_context = jaxtyping.jaxtyped
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as PEP 484 says


def resolve(hint: Any, names: dict[str, Any]) -> Any:
    """Return what a postponed annotation means in a module; anything, where a name is not known there yet."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except NameError:
        return Any


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

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if jaxtyping.config.jaxtyping_disable:
                return function(*args, **kwargs)
            if not has_dimensions:
                return with_check(*args, **kwargs)
            with in_context("context"):
                return with_check(*args, **kwargs)

        return wrapped

    return decorate
