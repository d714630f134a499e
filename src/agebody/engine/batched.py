"""Functions over a batch with hand-written value and gradient, and a reference definition in plain torch.

A body layer spends its time in a few functions that compute every row of a batch independently. Each is given
three times: its *definition* in differentiable torch, which is the reference implementation, and its *value*
and *gradient* in whatever way is fast. Second and higher derivatives, forward-mode derivatives,
`torch.compile` and export use the definition; `torch.func.vmap` becomes more rows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

try:  # private parts of torch, which another version may lack
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch._functorch.utils import unwrap_dead_wrappers

    is_transforming = torch._C._are_functorch_transforms_active
    transforms = torch._C._functorch  # pyright: ignore
except (ImportError, AttributeError):
    is_transforming = unwrap_dead_wrappers = transforms = None
    temporarily_clear_interpreter_stack = contextlib.nullcontext
try:
    from torch.utils._python_dispatch import _disable_current_modes as disable_modes
except ImportError:
    disable_modes = contextlib.nullcontext

Tensors = tuple[Tensor, ...]
Built = TypeVar("Built")


Array = Any
"""A tensor, or a NumPy array for small batches."""

NUMPY_ENTRIES = 1 << 14
"""Up to this many entries, tensors on the CPU are handed over as NumPy arrays, whose calls cost a third.

On one core NumPy is the faster of the two for eight times as many; with several, torch divides large ones."""


@dataclass(frozen=True)
class BatchedFunction:
    """A function of tensors whose first dimension is the batch, with independent rows.

    ``constants`` is any object that does not depend on the batch.
    """

    num_outputs: int
    definition: Callable[..., Tensors]
    """(constants, *tensors) -> outputs"""
    value: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]]
    """(constants, keep, *arrays) -> outputs, and what to keep for the gradient (nothing unless ``keep``)"""
    gradient: Callable[..., tuple[Array | None, ...]]
    """(constants, wants, kept, grads, *arrays) -> gradient of each array, where ``wants`` is true"""
    in_numpy: bool = False
    """Whether value and gradient use only operations that torch and NumPy share."""

    def __call__(self, constants: Any, *tensors: Tensor) -> Tensors:
        """Return the outputs."""
        with own_precision(tensors[0].device):
            if is_traced(*tensors) or _needs_definition(constants):
                return self.definition(constants, *tensors)
            if not is_differentiated(*tensors):
                return self.find_value(constants, False, *tensors)[0]
            keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            return _Value.apply(self, constants, keep, *tensors)[: self.num_outputs]

    def find_value(self, constants: Any, keep: bool, *tensors: Tensor) -> tuple[Tensors, Tensors]:
        """Compute `value` on tensors."""
        if not self._is_for_numpy(tensors[0]):
            return self.value(constants, keep, *tensors)
        with np.errstate(all="ignore"):  # as torch
            outputs, kept = self.value(constants, keep, *_arrays(tensors))
        return tuple(map(torch.from_numpy, outputs)), tuple(map(torch.from_numpy, kept))

    def find_gradient(
        self, constants: Any, wants: tuple[bool, ...], kept: Tensors, grads: Tensors, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute `gradient` on tensors."""
        if not self._is_for_numpy(tensors[0]):
            return self.gradient(constants, wants, kept, grads, *tensors)
        with np.errstate(all="ignore"):
            found = self.gradient(constants, wants, _arrays(kept), _arrays(grads), *_arrays(tensors))
        return tuple(None if g is None else torch.from_numpy(g) for g in found)

    def vjp(self, constants: Any, grads_and_tensors: Tensors) -> Tensors:
        """Return the gradient of the definition: (*grads, *tensors) -> gradient of each tensor."""
        grads, tensors = grads_and_tensors[: self.num_outputs], grads_and_tensors[self.num_outputs :]
        return torch.func.vjp(functools.partial(self.definition, constants), *tensors)[1](grads)

    def _is_for_numpy(self, tensor: Tensor) -> bool:
        plain = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
        return self.in_numpy and plain and tensor.numel() <= NUMPY_ENTRIES and tensor.device.type == "cpu"


def empty(like: Array, *shape: int) -> Array:
    """Return an uninitialised array of the kind, dtype and device of another."""
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def constant(tensor: Tensor, like: Array) -> Array:
    """Return a constant as an array of the kind of another; floating-point numbers also in its dtype."""
    if isinstance(like, np.ndarray):
        array = tensor.numpy()
        return array.astype(like.dtype, copy=False) if tensor.is_floating_point() else array
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor


def matmul(a: Array, b: Array) -> Array:
    """Return the product a @ b of two matrices, also of NumPy arrays by torch.

    NumPy's library has threads of its own. On a machine with few cores, each library then waits for threads
    of the other, which spin for milliseconds after a call.
    """
    if isinstance(a, np.ndarray):
        return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return a @ b


def _arrays(tensors: Tensors) -> tuple[np.ndarray, ...]:
    return tuple(t.numpy(force=True) for t in tensors)  # detached; forward mode has zeros without memory


class _Function(torch.autograd.Function):
    """A function whose call costs half: torch would bind its arguments to a signature first, in 30 µs."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if is_transforming is None or unwrap_dead_wrappers is None or is_transforming():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # pyright: ignore


class _Value(_Function):
    """The outputs, then what is kept."""

    @staticmethod
    def forward(function: BatchedFunction, constants: Any, keep: bool, *tensors: Tensor) -> Tensors:
        outputs, kept = function.find_value(constants, keep, *tensors)
        return *outputs, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.function, ctx.constants, _, *tensors = inputs
        kept = output[ctx.function.num_outputs :]
        ctx.num_tensors, ctx.num_kept = len(tensors), len(kept)
        ctx.output_shapes = [o.shape for o in output[: ctx.function.num_outputs]]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # zeros for what is kept would be as large as that
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing recomputes them at every access
        tensors, kept = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
        known = tuple(
            tensors[0].new_zeros(shape) if g is None else g
            for g, shape in zip(grads[: ctx.function.num_outputs], ctx.output_shapes, strict=True)
        )
        wants = ctx.needs_input_grad[3:]

        def find(kept: Tensors, grads: Tensors, tensors: Tensors) -> Tensors:
            if torch.is_grad_enabled() or is_transformed():
                return _Gradient.apply(ctx.function, ctx.constants, wants, kept, *grads, *tensors)
            found = ctx.function.find_gradient(ctx.constants, wants, kept, grads, *tensors)
            return tuple(t if g is None else g for g, t in zip(found, tensors, strict=True))

        with own_precision(tensors[0].device):
            found = _over_batched_grads(find, kept, known, tensors)
        return None, None, None, *(g if wanted else None for g, wanted in zip(found, wants, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors[: ctx.num_tensors]
        definition = functools.partial(ctx.function.definition, ctx.constants)
        return *_push(definition, tensors, _or_zeros(tangents[3:], tensors)), *[None] * ctx.num_kept

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensors, tuple[int, ...]]:
        function, constants, _, *tensors = args
        rows, shape = _more_rows(info.batch_size, in_dims[3:], tensors)
        outputs = _Value.apply(function, constants, False, *rows)
        return _fewer_rows(shape, outputs), (0,) * len(outputs)


class _Gradient(_Function):
    """The gradient of every tensor; an empty tensor where it is not wanted."""

    @staticmethod
    def forward(
        function: BatchedFunction, constants: Any, wants: tuple[bool, ...], kept: Tensors, *tensors: Tensor
    ) -> Tensors:
        grads, tensors = tensors[: function.num_outputs], tensors[function.num_outputs :]
        found = function.find_gradient(constants, wants, kept, grads, *tensors)
        return tuple(
            t.new_empty(len(t), 0) if g is None or not wanted else g
            for g, wanted, t in zip(found, wants, tensors, strict=True)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, ctx.constants, ctx.wants, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = tensors[ctx.function.num_outputs :]
        wanted = tuple(g if w else None for g, w in zip(grads, ctx.wants, strict=True))

        def find(_: Tensors, grads: Tensors, tensors: Tensors) -> Tensors:
            return torch.func.vjp(lambda *t: ctx.function.vjp(ctx.constants, t), *tensors)[1](grads)

        with own_precision(inputs[0].device):
            found = _over_batched_grads(find, (), _or_zeros(wanted, inputs), tensors)
        return None, None, None, None, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        tensors = ctx.saved_tensors
        filled = _or_zeros(tangents[4:], tensors)
        result = _push(lambda *t: ctx.function.vjp(ctx.constants, t), tensors, filled)
        return tuple(r if w else r.new_empty(len(r), 0) for r, w in zip(result, ctx.wants, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensors, tuple[int, ...]]:
        function, constants, wants, _, *tensors = args
        rows, shape = _more_rows(info.batch_size, in_dims[4:], tensors)
        # The kept tensors belong to other rows, so the gradient recomputes them.
        outputs = _Gradient.apply(function, constants, wants, (), *rows)
        return _fewer_rows(shape, outputs), (0,) * len(outputs)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product a @ b, which autocast changes neither here nor in a backward pass."""
    with own_precision(a.device):
        if is_traced(a, b) or not is_differentiated(a, b) or is_forward_nested():
            return a @ b
        return _Product.apply(a, b) if a.dim() > 1 else _Product.apply(a[None], b)[0]


class _Product(_Function):
    """The product of matrices, (*batch, n, m) and (*batch, m, k)."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b = inputs
        ctx.shapes = a.shape, b.shape
        by_a, by_b = ctx.needs_input_grad
        ctx.save_for_backward(a if by_b else None, b if by_a else None)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        return (
            None if b is None else product(grads[0], b.mT).sum_to_size(ctx.shapes[0]),
            None if a is None else product(a.mT, grads[0]).sum_to_size(ctx.shapes[1]),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        a, b = ctx.saved_tensors
        parts = (
            None if tangents[0] is None else product(tangents[0], b),
            None if tangents[1] is None else product(a, tangents[1]),
        )
        first, *others = [part for part in parts if part is not None]
        return first + others[0] if others else first

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        # Not torch's generated rule, which fails in a backward pass where the product has no gradient.
        dims = max(t.dim() - (dim is not None) for t, dim in zip(args, in_dims, strict=True))
        a, b = (
            t if dim is None else t.movedim(dim, 0)[(slice(None), *[None] * (dims + 1 - t.dim()))]
            for t, dim in zip(args, in_dims, strict=True)
        )
        return _Product.apply(a, b), 0


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Build buffers, or draw numbers, as outside of every context.

    Buffers of inference mode could not be used in training later, nor those of a transform of torch.func
    after it, a default device would get some of the constants, `torch.jit.trace` would record the sums,
    `torch.export` would leave tensors without numbers.
    """
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # pyright: ignore
    try:
        with (
            temporarily_clear_interpreter_stack(),
            disable_modes(),
            torch.inference_mode(False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch._C._set_tracing_state(tracing)  # pyright: ignore


def build(make: Callable[..., Built], *given: Any) -> Built:
    """Return ``make(*given)``, built as by `building`, and by Python alone where torch.compile compiles."""
    run: Any = torch.compiler.disable(_build) if torch.compiler.is_compiling() else _build
    return run(make, *given)


def _build(make: Callable[..., Built], *given: Any) -> Built:
    with building():
        return make(*given)


def own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context that disables autocast, under which a backward pass may run, too."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor, cast to float32 if it has 16 bits, as networks under autocast give it."""
    return tensor.float() if getattr(tensor, "dtype", None) in (torch.float16, torch.bfloat16) else tensor


def is_recorded() -> bool:
    """Return whether torch.compile, torch.export, torch.jit.trace or an ONNX export records operations.

    Values then belong to one example and must not decide anything.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore


def is_traced(*tensors: Tensor) -> bool:
    """Return whether only torch's operators may be used.

    While they are recorded, under a mode such as FakeTensorMode, for subclasses of tensors, and on the device
    "meta".
    """
    if is_recorded() or tensors[0].device.type == "meta":
        return True
    plain = all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
    return not plain or torch._C._len_torch_dispatch_stack() > 0


def is_differentiated(*tensors: Tensor) -> bool:
    """Return whether derivatives by these tensors may be needed, or a transform is active."""
    return (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)) or is_transformed()


def is_transformed() -> bool:
    """Return whether a transform of torch.func, or forward-mode differentiation, is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _push(definition: Callable[..., Tensors], tensors: Tensors, tangents: Tensors) -> Tensors:
    """Return the forward-mode derivative as the transpose of the reverse-mode one; it nests in any mode."""
    outputs, pull = torch.func.vjp(definition, *tensors)[:2]
    return torch.func.vjp(pull, tuple(torch.zeros_like(o) for o in outputs))[1](tangents)[0]


def _or_zeros(tangents: tuple[Tensor | None, ...], tensors: Tensors) -> Tensors:
    return tuple(torch.zeros_like(t) if d is None else d for d, t in zip(tangents, tensors, strict=True))


def _more_rows(
    size: int, in_dims: tuple[Any, ...], tensors: Sequence[Tensor]
) -> tuple[Tensors, tuple[int, int]]:
    """Return tensors whose rows are those of all entries of a batched dimension, and both sizes."""
    moved = tuple(
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    )
    return tuple(t.flatten(0, 1) for t in moved), (size, moved[0].shape[1])


def _fewer_rows(shape: tuple[int, int], tensors: Tensors) -> Tensors:
    return tuple(t.unflatten(0, shape) for t in tensors)


def is_forward_nested() -> bool:
    """Return whether forward mode is within forward mode, where torch drops tangents of its Functions."""
    if transforms is None or is_transforming is None or not is_transforming():
        return False
    return sum("Jvp" in str(level.key()) for level in transforms.get_interpreter_stack() or ()) > 1


def _needs_definition(constants: Any) -> bool:
    """Return whether a transform of torch.func is active under which Functions are wrong or fail.

    Those are forward mode within forward mode, and transforms of the constants, such as `vmap` over several
    bodies.
    """
    if transforms is None or is_transforming is None or not is_transforming():
        return False
    if isinstance(constants, torch.nn.Module):
        constants = tuple(constants.buffers(recurse=False))
    parts = constants if isinstance(constants, tuple) else (constants,)
    wrapped = transforms.is_functorch_wrapped_tensor
    return is_forward_nested() or any(isinstance(part, Tensor) and wrapped(part) for part in parts)


def _over_batched_grads(
    find: Callable[[Tensors, Tensors, Tensors], Tensors], kept: Tensors, grads: Tensors, tensors: Tensors
) -> Tensors:
    """Return ``find(kept, grads, tensors)``, also for gradients that torch.autograd batches.

    ``torch.autograd.grad(is_grads_batched=True)`` and ``jacobian(vectorize=True)`` do, by an older vmap that
    knows few operators. Its batch becomes more rows.
    """
    torch._C._vmapmode_increment_nesting()
    level = torch._C._vmapmode_decrement_nesting()
    batched = [level > 0 and "Batched" in str(torch._C._dispatch_keys(g)) for g in grads]
    if not any(batched):
        return find(kept, grads, tensors)
    plain = [
        torch._remove_batch_dim(g, level, 0, 0) if b else g  # pyright: ignore
        for g, b in zip(grads, batched, strict=True)
    ]
    size = next(len(g) for g, b in zip(plain, batched, strict=True) if b)
    in_dims = (*(0 if b else None for b in batched), *[None] * len(tensors))
    rows, shape = _more_rows(size, in_dims, (*plain, *tensors))
    found = _fewer_rows(shape, find((), rows[: len(grads)], rows[len(grads) :]))
    return tuple(torch._add_batch_dim(g, 0, level) for g in found)  # pyright: ignore
