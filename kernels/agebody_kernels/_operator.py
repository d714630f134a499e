"""Torch operators made of a value, a gradient and a reference implementation.

An operator treats all rows of a batch alike. Its gradient is an operator too. The gradient of that one is
taken from the *reference implementation*, the definition in plain torch, so that derivatives are right to
every order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Tensors = tuple[Tensor, ...]
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Operator:
    """A function of batched tensors, defined in torch and computed by kernels.

    Calls look like ``operator(*rows, *constants)``: first the tensors with a batch dimension, which are
    differentiated, then the tensors and numbers that describe the body. The shapes of the rows are checked
    against the constants; the constants themselves are trusted to be what their class packed.
    """

    name: str
    rows: tuple[str, ...]
    """Names of the batched tensors."""
    constants: tuple[str, ...]
    """Schema of the remaining arguments, such as ``"Tensor weights"`` or ``"int width"``."""
    num_outputs: int
    reference: Callable[..., Tensors]
    """(*rows, *constants) -> outputs, in differentiable torch: the definition."""
    value: Callable[..., Tensors]
    """(*rows, *constants) -> outputs, by kernels."""
    gradient: Callable[..., tuple[Tensor | None, ...]]
    """(wants, grads, *rows, *constants) -> gradient of each of the rows that is wanted, by kernels."""
    shapes: Callable[..., Shapes]
    """(*rows, *constants) -> shapes of the outputs."""
    row_shapes: Callable[..., Sequence[Sequence[int | None]]]
    """(*constants) -> shape of one row of each batched tensor; None where any size is allowed."""

    def __post_init__(self) -> None:
        rows = [f"Tensor {name}" for name in self.rows]
        arguments = ", ".join([*rows, *self.constants])
        grads = ", ".join(f"Tensor grad{i}" for i in range(self.num_outputs))
        schema = f"({arguments}) -> {_returns(self.num_outputs)}"
        _register(self.name, schema, self._value, self._fake, self._differentiate, len(self.rows))
        _register(
            f"{self.name}_backward",
            f"({grads}, {arguments}, bool[] wants) -> {_returns(len(rows))}",
            self._gradient,
            self._fake_gradient,
            self._differentiate_gradient,
            self.num_outputs + len(rows),
        )

    def __call__(self, *arguments: Any) -> Tensors:
        """Return the outputs.

        Raises:
            TypeError: the floating types of the tensors differ, or are neither float32 nor float64.
            ValueError: the batches or the devices differ, a shape does not fit the constants, or one of the
                constants requires a gradient.
        """
        self._check(arguments[: len(self.rows)], arguments[len(self.rows) :])
        return _tuple(getattr(torch.ops.agebody, self.name)(*arguments))

    def _check(self, rows: Sequence[Tensor], constants: Sequence[Any]) -> None:
        """Check shapes, types and devices: kernels would read beyond the end of what does not fit."""
        first = rows[0]
        if first.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{self.rows[0]}: expected float32 or float64, got {first.dtype}")
        for name, tensor, row in zip(self.rows, rows, self.row_shapes(*constants), strict=True):
            fits = tensor.dim() == 1 + len(row) and all(
                size is None or size == given for size, given in zip(row, tensor.shape[1:], strict=True)
            )
            if not fits:
                expected = ", ".join(["B", *("*" if size is None else str(size) for size in row)])
                raise ValueError(f"{name}: expected shape ({expected}), got {tuple(tensor.shape)}")
            if tensor.shape[0] != first.shape[0]:
                raise ValueError(f"{name}: expected a batch of {first.shape[0]}, got {tensor.shape[0]}")
        names = [*self.rows, *(schema.split()[-1] for schema in self.constants)]
        for name, tensor in zip(names, (*rows, *constants), strict=True):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.is_floating_point() and tensor.dtype != first.dtype:
                raise TypeError(f"{name}: expected {first.dtype}, got {tensor.dtype}")
            if tensor.device != first.device:
                raise ValueError(f"{name}: expected a tensor on {first.device}, got one on {tensor.device}")
        for name, constant in zip(names[len(rows) :], constants, strict=True):
            if isinstance(constant, Tensor) and constant.requires_grad:
                raise ValueError(f"{name}: belongs to the body and has no gradient; detach it")

    def _value(self, *arguments: Any) -> Any:
        self._check(arguments[: len(self.rows)], arguments[len(self.rows) :])
        self._refuse_forward_mode()
        with _no_autocast(arguments[0]):
            return _plain(self.value(*arguments))

    def _fake(self, *arguments: Any) -> Any:
        return _plain(tuple(arguments[0].new_empty(tuple(shape)) for shape in self.shapes(*arguments)))

    def _gradient(self, *arguments: Any) -> Any:
        grads, rows, constants, wants = self._split(arguments)
        self._check(rows, constants)
        self._refuse_forward_mode()
        with _no_autocast(rows[0]):
            found = self.gradient(wants, grads, *rows, *constants)
        return _plain(
            tuple(
                g if wanted and g is not None else _empty(t)
                for g, wanted, t in zip(found, wants, rows, strict=True)
            )
        )

    def _fake_gradient(self, *arguments: Any) -> Any:
        _, rows, _, wants = self._split(arguments)
        pairs = zip(wants, rows, strict=True)
        return _plain(tuple(t.new_empty(t.shape) if wanted else _empty(t) for wanted, t in pairs))

    def _differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        rows, constants = ctx.saved_tensors, ctx.constants
        wants = list(ctx.needs_input_grad[: len(rows)])
        filled = [
            g if g is not None else rows[0].new_zeros(s) for g, s in zip(grads, ctx.shapes, strict=True)
        ]
        operator = getattr(torch.ops.agebody, f"{self.name}_backward")
        found = _tuple(operator(*filled, *rows, *constants, wants))
        wanted = (g if wanted else None for g, wanted in zip(found, wants, strict=True))
        return *wanted, *[None] * len(constants)

    def _differentiate_gradient(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Pull back through the gradient of the reference implementation."""
        tensors, (*constants, wants) = ctx.saved_tensors, ctx.constants
        first, rows = tensors[: self.num_outputs], tensors[self.num_outputs :]

        def pull(*tensors: Tensor) -> Tensors:
            outer, inner = tensors[: self.num_outputs], tensors[self.num_outputs :]
            return torch.func.vjp(lambda *r: self.reference(*r, *constants), *inner)[1](outer)

        cotangents = tuple(
            g if wanted and g is not None else torch.zeros_like(t)
            for g, wanted, t in zip(grads, wants, rows, strict=True)
        )
        with _no_autocast(rows[0]):
            found = torch.func.vjp(pull, *first, *rows)[1](cotangents)
        return *found, *[None] * (len(constants) + 1)

    def _refuse_forward_mode(self) -> None:
        """Raise in forward mode: torch's custom operators would drop the tangents silently."""
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                f"agebody::{self.name}: forward-mode derivatives stop at this operator; take them through a "
                "layer that is not compiled, or use reverse mode"
            )

    def _split(self, arguments: tuple[Any, ...]) -> tuple[Any, Any, Any, Any]:
        first, last = self.num_outputs, self.num_outputs + len(self.rows)
        return arguments[:first], arguments[first:last], arguments[last:-1], arguments[-1]


def _register(
    name: str,
    schema: str,
    value: Callable[..., Any],
    fake: Callable[..., Any],
    differentiate: Callable[..., Any],
    num_rows: int,
) -> None:
    operator = torch.library.custom_op(f"agebody::{name}", value, mutates_args=(), schema=schema)
    operator.register_fake(fake)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:num_rows])
        ctx.constants = inputs[num_rows:]
        ctx.shapes = [o.shape for o in _tuple(output)]
        ctx.set_materialize_grads(False)

    operator.register_autograd(differentiate, setup_context=setup_context)

    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if any(dim is not None for dim in in_dims[num_rows:] if not isinstance(dim, (list, tuple))):
            raise ValueError(f"{name}: torch.func.vmap over the body's constants is not supported")
        size = info.batch_size
        rows = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(arguments[:num_rows], in_dims, strict=False)
        ]
        batch = rows[0].shape[1]
        outputs = _tuple(operator(*(t.flatten(0, 1) for t in rows), *arguments[num_rows:]))
        return _plain(tuple(o.unflatten(0, (size, batch)) for o in outputs)), _plain((0,) * len(outputs))

    operator.register_vmap(vmap)


def _no_autocast(tensor: Tensor) -> Any:
    return torch.autocast(tensor.device.type, enabled=False)


def _returns(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _plain(outputs: tuple[Any, ...]) -> Any:
    """Return a single output as a tensor, not as a tuple, as operators do."""
    return outputs[0] if len(outputs) == 1 else outputs


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _empty(tensor: Tensor) -> Tensor:
    """Return a stand-in for a gradient that is not wanted: operators cannot return None."""
    return tensor.new_empty((tensor.shape[0], 0))
