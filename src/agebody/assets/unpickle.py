"""A reader of pickles of body files as data: nothing that a file names is imported, created or called.

`pickle.Unpickler` calls what a file names, even under a strict `find_class`, and hashes and copies whatever
the file asks for. Here the opcodes drive a stack machine that holds plain values and *records* ("an ndarray
with this state"). The records of the few admitted classes are checked and then become NumPy arrays.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from agebody.assets.asset import AssetError, check_indices

MAX_OPCODES = 1_000_000  # an official file has hundreds; each can cost a hundred bytes of memory
MAX_DEPTH = 32
MAX_SIZE = 2**31
"""Largest size in a shape, and largest number of entries."""


class _Global(NamedTuple):
    kind: str


_GLOBALS = {
    "chumpy.ch Ch": _Global("chumpy"),
    "chumpy.reordering Select": _Global("select"),
    "numpy ndarray": _Global("ndarray"),
    "numpy dtype": _Global("dtype"),
    "_codecs encode": _Global("encode"),
}
for _name in ("set", "object"):
    _GLOBALS |= {f"{module} {_name}": _Global(_name) for module in ("builtins", "__builtin__")}
_GLOBALS |= {f"{module} _reconstructor": _Global("reconstructor") for module in ("copyreg", "copy_reg")}
for _package in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_package}.multiarray _reconstruct"] = _Global("reconstruct")
    _GLOBALS[f"{_package}.multiarray scalar"] = _Global("scalar")
for _format in ("csc", "csr", "coo"):
    _GLOBALS[f"scipy.sparse.{_format} {_format}_matrix"] = _Global(_format)
    _GLOBALS[f"scipy.sparse._{_format} {_format}_matrix"] = _Global(_format)

_POSE_PRIOR = _Global("pose_prior")
"""The class `Mahalanobis` of SMIL's pose prior, in any module: that of the script that wrote the file."""
_OBJECTS = ("chumpy", "select", "csc", "csr", "coo", "pose_prior")
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}")
"""The dtypes of plain numbers and text."""
_BYTE_ORDERS = ("<", ">", "|", "=")

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
_LITERAL_OPCODES = """
INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES
SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
"""
_LITERALS = frozenset(_LITERAL_OPCODES.split())


class _Record:
    """The description of one object in a file: its kind, the arguments of its constructor, and its state."""

    __slots__ = ("args", "kind", "state")

    def __init__(self, kind: str, args: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None


def loads(data: bytes) -> Any:
    """Return the content of a pickle as dicts, lists, tuples, sets, text, bytes, numbers and arrays.

    Text that Python 2 wrote is read as latin-1. A `chumpy` object becomes its value, an ndarray; a SciPy csc,
    csr or coo matrix becomes a `scipy.sparse.csr_array`; an instance of a class `Mahalanobis`, the form of
    SMIL's pose prior, becomes the dict of its attributes. Arrays can share memory and be read-only.

    Raises:
        AssetError: the pickle is damaged, names a class or function that no body file needs, holds an object
            array, or is not a plain tree of values.
    """
    return _Resolver(budget=4 * len(data) + 2**26).plain(_Machine().run(data))


class _Machine:
    """The stack machine of the pickle format, which records calls instead of making them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        opcodes = pickletools.genops(data)
        for _ in range(MAX_OPCODES):
            try:
                opcode, arg, _position = next(opcodes)
            except (ValueError, OverflowError, DeprecationWarning) as error:  # the last for "\\K" in old text
                raise AssetError(f"damaged or truncated pickle ({error}); download the file again") from error
            if opcode.name == "STOP":
                return self.pop()
            self.step(opcode.name, arg)
        raise AssetError(f"a pickle of more than {MAX_OPCODES} steps; a body file has some hundreds")

    def pop(self) -> Any:
        if not self.stack:
            raise AssetError("damaged pickle (a value is missing); download the file again")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise AssetError(f"damaged pickle (a {kind.__name__} is missing); download the file again")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.outer:
            raise AssetError("damaged pickle (a mark is missing); download the file again")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def step(self, name: str, arg: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in _LITERALS:
                stack.append(arg)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(self.pop())
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                value = self.pop()
                stack.append(value)
                self.memo[len(self.memo) if arg is None else arg] = value
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise AssetError("damaged pickle (a reference to nothing); download the file again")
                stack.append(self.memo[arg])
            case _ if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "LIST" | "TUPLE" | "FROZENSET":
                items = self.since_mark()
                self.stack.append({"LIST": list, "TUPLE": tuple, "FROZENSET": _keys}[name](items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                self.set_items(items)
            case "APPEND":
                value = self.pop()
                self.top(list).append(value)
            case "APPENDS":
                items = self.since_mark()
                self.top(list).extend(items)
            case "ADDITEMS":
                items = self.since_mark()
                self.top(set).update(_keys(items))
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                items = self.since_mark()
                self.set_items(items)
            case "GLOBAL":
                stack.append(_admitted(arg))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                if not (isinstance(attribute, str) and isinstance(module, str)):
                    raise AssetError("damaged pickle (a name is missing); download the file again")
                stack.append(_admitted(f"{module} {attribute}"))
            case "REDUCE":
                args, function = self.pop(), self.pop()
                stack.append(_reduce(function, args))
            case "NEWOBJ":
                args, cls = self.pop(), self.pop()
                stack.append(_new(cls, args == ()))
            case "BUILD":
                state = self.pop()
                record = self.top(_Record)
                if record.state is not None:
                    raise AssetError(f"damaged pickle (a second state for a {record.kind})")
                record.state = state
            case _:
                raise AssetError(f"the pickle uses {name}, which no body file needs; it was not opened")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise AssetError("damaged pickle (a key without a value); download the file again")
        _keys(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))


def _keys(items: list[Any]) -> set[Any]:
    """Return the items as a set: hashing anything but text and numbers could take forever."""
    for item in items:
        if not isinstance(item, (str, bytes, int, float)):
            raise AssetError(f"the pickle has a {_what(item)} as a key; expected text or a number")
    return set(items)


def _what(value: Any) -> str:
    return value.kind if isinstance(value, (_Global, _Record)) else type(value).__name__


def _admitted(name: str) -> _Global:
    if name.endswith(" Mahalanobis"):
        return _POSE_PRIOR
    if name not in _GLOBALS:
        shown = name if len(name) <= 100 else name[:100] + "..."
        raise AssetError(
            f"the pickle names {shown.replace(' ', '.', 1)!r}, which no body file needs; nothing was run. "
            "If you trust the file, save its arrays as .npz with the tool that wrote it"
        )
    return _GLOBALS[name]


def _reduce(function: Any, args: Any) -> _Record:
    match function, args:
        case _Global("set"), ([*_],):
            return _Record("set", tuple(args))
        case _Global("encode"), (str(), "latin1" | "latin-1"):
            return _Record("bytes", tuple(args))
        case _Global("reconstruct"), (_Global("ndarray"), _, _):
            return _Record("ndarray")
        case _Global("dtype"), (str() | bytes(), *_):
            return _Record("dtype", tuple(args))
        case _Global("scalar"), (_Record(kind="dtype"), _):
            return _Record("scalar", tuple(args))
        case _Global("reconstructor"), (cls, _Global("object"), None):
            return _new(cls, True)
    raise AssetError(f"the pickle calls {_what(function)} as no body file does; it was not opened")


def _new(cls: Any, plain: bool) -> _Record:
    if not (plain and isinstance(cls, _Global) and cls.kind in _OBJECTS):
        raise AssetError(f"the pickle makes a {_what(cls)} as no body file does; it was not opened")
    return _Record(cls.kind)


class _Resolver:
    """Turns the machine's result into plain values; a shared value is converted once.

    `budget` limits the bytes that records unfold into: a short file can name the same content many times.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.done: dict[int, Any] = {}
        self.open: set[int] = set()

    def plain(self, value: Any) -> Any:
        if isinstance(value, _Global):
            raise AssetError(f"the pickle has a bare {value.kind} where a value was expected")
        if not isinstance(value, (dict, list, tuple, _Record)):
            return value
        key = id(value)
        if key in self.done:
            return self.done[key]
        if key in self.open:
            raise AssetError("the pickle is cyclic: a value contains itself; a body file is a plain tree")
        if len(self.open) >= MAX_DEPTH:
            raise AssetError(f"the pickle is nested more than {MAX_DEPTH} deep; a body file is a flat dict")
        self.open.add(key)
        if isinstance(value, dict):
            result: Any = {k: self.plain(v) for k, v in value.items()}
        elif isinstance(value, (list, tuple)):
            result = type(value)(self.plain(item) for item in value)
        else:
            result = getattr(self, value.kind)(value)
        self.open.discard(key)
        self.done[key] = result
        return result

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise AssetError("the pickle unfolds into many times its own size; it was not opened")

    def set(self, record: _Record) -> set[Any]:
        (items,) = record.args
        self.spend(64 * len(items))
        return _keys(items)

    def bytes(self, record: _Record) -> bytes:
        return self.raw(record.args[0])

    def raw(self, content: Any) -> bytes:
        """Return bytes: those of Python 3, or the latin-1 text that stands for bytes of Python 2."""
        if isinstance(content, _Record) and content.kind == "bytes":
            return self.plain(content)
        if isinstance(content, bytes):
            return content
        if not isinstance(content, str):
            raise AssetError(f"the pickle holds an array whose content is a {_what(content)}; expected bytes")
        self.spend(len(content))
        try:
            return content.encode("latin-1")
        except UnicodeEncodeError as error:
            raise AssetError(f"damaged pickle ({error}); download the file again") from error

    def dtype(self, record: _Record) -> np.dtype:
        code = _text(record.args[0])
        if code.startswith("O"):
            raise AssetError(
                "the pickle holds an object array, which only running its code could read; "
                "of SMPL-X take the .npz file instead"
            )
        if not DTYPE_CODE.fullmatch(code):
            raise AssetError(f"the pickle holds an array of dtype {code[:20]!r}; expected numbers or text")
        match record.state:
            case None:
                return np.dtype(code)
            case (int(), (str() | bytes()) as order, None, None, None, *_) if _text(order) in _BYTE_ORDERS:
                return np.dtype(code).newbyteorder(_text(order))  # pyright: ignore[reportArgumentType]
        raise AssetError("the pickle holds a structured array; expected plain numbers")

    def ndarray(self, record: _Record) -> np.ndarray:
        match record.state:
            case (int(), shape, _Record(kind="dtype") as kind, fortran, content):
                dtype = self.plain(kind)
            case _:
                raise AssetError("the pickle holds an array without numbers")
        shape = _shape(self.plain(shape))
        raw = self.raw(content)
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise AssetError(
                f"the pickle holds a {dtype} array of shape {shape} in {len(raw)} bytes, which do not fill it"
            )
        array = np.ndarray(shape, dtype, raw, order="F" if fortran is True else "C")
        if dtype.isnative:
            return array
        self.spend(array.nbytes)
        return array.astype(dtype.newbyteorder("="))

    def scalar(self, record: _Record) -> Any:
        kind, content = record.args
        dtype, raw = self.plain(kind), self.raw(content)
        if dtype.kind == "U" or len(raw) != dtype.itemsize:
            raise AssetError("the pickle holds a number whose bytes do not fit its dtype")
        return np.ndarray((), dtype, raw)[()]

    def chumpy(self, record: _Record) -> np.ndarray:
        return self.array(record, "x")

    def select(self, record: _Record) -> np.ndarray:
        values = self.array(record, "a").ravel()
        indices = self.array(record, "idxs").ravel()
        shape = _shape(self.state(record, "preferred_shape"))
        check_indices("idxs of a chumpy Select", indices, values.size)
        if math.prod(shape) != indices.size:
            raise AssetError(f"a chumpy Select of {indices.size} values cannot have shape {shape}")
        self.spend(indices.size * values.itemsize)
        return values[indices].reshape(shape)

    def pose_prior(self, record: _Record) -> dict[str, Any]:
        return {name: self.plain(value) for name, value in self.fields(record).items()}

    def csc(self, record: _Record) -> sparse.csr_array:
        return self.compressed(record, sparse.csc_array, axis=1)

    def csr(self, record: _Record) -> sparse.csr_array:
        return self.compressed(record, sparse.csr_array, axis=0)

    def compressed(self, record: _Record, cls: Any, *, axis: int) -> sparse.csr_array:
        shape = self.matrix_shape(record)
        data, indices, indptr = (self.array(record, key) for key in ("data", "indices", "indptr"))
        check_indices("indices of a sparse matrix", indices, shape[1 - axis])
        check_indices("indptr of a sparse matrix", indptr, len(data) + 1)
        if (
            not data.shape == indices.shape == (len(data),)
            or indptr.shape != (shape[axis] + 1,)
            or indptr[0] != 0
            or indptr[-1] != len(data)
            or np.any(np.diff(indptr.astype(np.int64)) < 0)
        ):
            raise AssetError(
                f"a sparse matrix of shape {shape} has {data.shape} values, {indices.shape} indices and "
                f"{indptr.shape} row or column starts, which do not fit together"
            )
        self.spend(data.nbytes + 8 * len(data) + 8 * shape[0])
        return sparse.csr_array(cls((data, indices, indptr), shape=shape))

    def coo(self, record: _Record) -> sparse.csr_array:
        shape = self.matrix_shape(record)
        if "coords" in self.fields(record):
            coords = self.state(record, "coords")
            if not isinstance(coords, tuple) or len(coords) != 2:
                raise AssetError("a sparse matrix has coordinates that are not a pair of arrays")
            data, row, column = self.array(record, "data"), *coords
        else:
            data, row, column = (self.array(record, key) for key in ("data", "row", "col"))
        for name, index, size in (("rows", row, shape[0]), ("columns", column, shape[1])):
            if not isinstance(index, np.ndarray) or not index.shape == data.shape == (data.size,):
                raise AssetError(f"a sparse matrix has as many {name} as it has values, in one row")
            check_indices(f"{name} of a sparse matrix", index, size)
        self.spend(data.nbytes + 8 * len(data) + 8 * shape[0])
        return sparse.csr_array(sparse.coo_array((data, (row, column)), shape=shape))

    def fields(self, record: _Record) -> dict[Any, Any]:
        if not isinstance(record.state, dict):
            raise AssetError(f"the pickle holds a {record.kind} object without its content")
        return record.state

    def state(self, record: _Record, key: str) -> Any:
        if key not in self.fields(record):
            raise AssetError(f"the pickle holds a {record.kind} object without its {key!r}")
        return self.plain(record.state[key])

    def array(self, record: _Record, key: str) -> np.ndarray:
        value = self.state(record, key)
        if not isinstance(value, np.ndarray):
            kind = type(value).__name__
            raise AssetError(f"{key!r} of a {record.kind} object: expected an array, got {kind}")
        return value

    def matrix_shape(self, record: _Record) -> tuple[int, ...]:
        shape = _shape(self.state(record, "_shape"))
        if len(shape) != 2:
            raise AssetError(f"a sparse matrix of {len(shape)} dimensions; expected 2")
        if self.array(record, "data").dtype.kind not in "biuf":
            raise AssetError("a sparse matrix without real numbers")
        return shape


def _shape(value: Any) -> tuple[int, ...]:
    """Return a shape as a tuple, after checking that NumPy can hold it."""
    if (
        not isinstance(value, (tuple, list))
        or len(value) > MAX_DEPTH
        or not all(isinstance(n, (int, np.integer)) and 0 <= n <= MAX_SIZE for n in value)
        or math.prod(max(int(n), 1) for n in value) > MAX_SIZE
    ):
        raise AssetError(f"the pickle holds an array whose shape is no tuple of sizes up to {MAX_SIZE}")
    return tuple(int(n) for n in value)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
