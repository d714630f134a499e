"""The tests' checker of signatures finds what is wrong."""

import contextlib
from collections.abc import Callable

import pytest
import typechecks
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor, zeros

check = typechecks.jaxtyped(typechecker=typechecks.checked)


@check
def pair(first: Float[Tensor, "N 3"], second: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Return the first, or the second where it is one number."""
    return second if second.numel() == 1 else first


@check
def repeat(word: "str", times: "float" = 1.0) -> "str":
    """Return a word, or a number in place of one."""
    return times if word == "longer" else word


@pytest.mark.parametrize(
    "call",
    [
        lambda: pair(zeros(2, 3), zeros(3)),
        lambda: pair(zeros(2, 4), zeros(2)),
        lambda: pair(zeros(2, 3).int(), zeros(2)),
        lambda: pair(zeros(1, 3), zeros(1)),
        lambda: repeat(1),
        lambda: repeat("a", times="b"),
        lambda: repeat("longer"),
    ],
)
def test_wrong_calls_are_found_where_they_are_checked(call: Callable[[], object], request):
    with pytest.raises(BeartypeCallHintViolation):
        call()
    request.getfixturevalue("unchecked")
    call()


def test_calls_share_no_dimensions():
    assert pair(zeros(2, 3), zeros(2)).shape == (2, 3)
    assert pair(zeros(4, 3), zeros(4)).shape == (4, 3)
    assert repeat("a", times=2) == "a"


def test_results_of_known_arguments_are_checked_too():
    @check
    def positive(numbers: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return numbers[numbers > 0]

    for _ in range(2):
        assert positive(zeros(3) + 1).shape == (3,)
    for _ in range(2):
        with pytest.raises(BeartypeCallHintViolation):
            positive(zeros(3))


def test_arguments_may_have_any_name():
    @check
    def first(key: Float[Tensor, " N"], call: Float[Tensor, " N"], result: "int" = 0) -> Float[Tensor, " N"]:
        return key if result == 0 else key[:result]

    for result in (0, 0, 2):
        with pytest.raises(BeartypeCallHintViolation) if result else contextlib.nullcontext():
            assert first(key=zeros(3), call=zeros(3), result=result).shape == (3,)
