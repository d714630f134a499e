"""A reader of pickles of body files as data: nothing that a file names is imported, created or called.

`pickle.Unpickler` calls what a file names, even under a strict `find_class`, and hashes and copies whatever
the file asks for. Here the opcodes drive a stack machine that holds plain values and *records* ("an ndarray
with this state"). The records of a few admitted classes are checked and then become NumPy arrays. Torch's
files are pickles too, whose tensors name a storage outside of the pickle.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import scipy

from agebody.assets.asset import AssetError, check_indices
from agebody.assets.opcodes import SPARSE, Global, Machine, Record, Stream, checked_keys, kind_of

MAX_DEPTH = 32
MAX_SIZE = 2**31
"""Largest size in a shape, and largest number of entries."""
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}")
"""The dtypes of plain numbers and text."""
_BYTE_ORDERS = ("<", ">", "|", "=")


def loads(data: bytes) -> Any:
    """Return the content of a pickle as dicts, lists, tuples, sets, text, bytes, numbers and arrays.

    Text that Python 2 wrote is read as latin-1, keys of bytes too. A `chumpy` object or a torch tensor
    becomes its value, an ndarray; a SciPy sparse matrix becomes a `scipy.sparse.csr_array`; an instance of a
    class `Mahalanobis`, the form of SMIL's pose prior, or of smplx's `Struct` becomes the dict of its
    attributes; an array of objects becomes the object in it, or their list.

    Raises:
        AssetError: the pickle is damaged, names a class or function that no body file needs, or is not a
            plain tree of values.
    """
    return parse(io.BytesIO(data)).resolve(size=len(data))


def load_torch_stream(data: bytes) -> Any:
    """Return the content of a file that torch before 1.6 wrote."""
    return parse_torch_stream(io.BytesIO(data), len(data)).resolve(size=len(data))


def parse_torch_stream(stream: Stream, size: int, *, lenient: bool = False) -> Parsed:
    """Read a file that torch before 1.6 wrote: pickles, then the storages one by one."""
    for _ in range(3):  # torch's magic number, its protocol, and sizes of the writing machine
        parse(stream)
    parsed = parse(stream, lenient=lenient)
    keys = parse(stream).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise AssetError("damaged torch file (its list of storages); download the file again")
    contents: dict[str, bytes] = {}
    for key in keys:
        if key not in parsed.storages:
            raise AssetError("damaged torch file (a storage without a tensor); download the file again")
        code, count = parsed.storages[key]
        stored = int.from_bytes(stream.read(8), "little")
        if stored != count:
            raise AssetError("damaged torch file (the size of a storage); download the file again")
        contents[key] = stream.read(min(count * _item_size(code), size))
    return parsed._replace(read_storage=lambda key: contents.get(key, b""))


def _no_storage(key: str) -> bytes:
    raise AssetError("the pickle names a storage of torch, which is not in it; download the file again")


class Parsed(NamedTuple):
    """The result of the stack machine, before its records are converted."""

    value: Any
    storages: dict[str, tuple[str, int]]
    """Storage of a torch file -> code of its numbers, and how many it holds."""
    read_storage: Callable[[str], bytes] = _no_storage

    def resolve(self, *, size: int) -> Any:
        """Return the plain values; `size` is that of the whole file [bytes]."""
        return _Resolver(4 * size + 2**26, self.read_storage).plain(self.value)

    def tensors(self, *, size: int) -> tuple[Iterator[tuple[str, np.ndarray]], tuple[str, ...]]:
        """Return the named tensors of a checkpoint, read one by one, and the names of its other entries.

        They are the entry "model_state_dict", "model", "state_dict", or "module" as in files of DeepSpeed;
        else the only entry that has tensors by name; else the dict itself.
        """
        whole = self.value if isinstance(self.value, dict) else {}
        tables = {key: part for key, part in whole.items() if _has_tensors(part)}
        usual = ("model_state_dict", "model", "state_dict", "module")
        chosen = next((key for key in (*usual, *tables) if key in tables), None)
        if chosen not in usual and len(tables) > 1:
            listed = ", ".join(str(key)[:100] for key in [*tables][:8])
            raise AssetError(f"holds the weights of several networks, {listed}; save those of one")
        table = tables.get(chosen, whole)
        if not _has_tensors(table):
            raise AssetError("holds no tensors by name; expected the weights of a network")
        others = [key for key, value in table.items() if not _is_tensor(value)]
        others += [key for key in whole if key != chosen and table is not whole]
        resolver = _Resolver(4 * size + 2**26, self.read_storage)

        def read() -> Iterator[tuple[str, np.ndarray]]:
            for name, value in table.items():
                if _is_tensor(value):
                    yield str(name), resolver.plain(value)
                    resolver.done.clear()  # which would keep every tensor

        return read(), tuple(map(str, others))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Record) and value.kind == "tensor"


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(_is_tensor, value.values()))


def parse(stream: Stream, *, lenient: bool = False) -> Parsed:
    """Read one pickle from a stream, up to its end."""
    machine = Machine(lenient=lenient)
    return Parsed(machine.run(stream), machine.storages)


def widen_bfloat16(raw: Any) -> np.ndarray:
    """Return the bytes of bfloat16 numbers as float32, which has their bits first."""
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def _item_size(code: str) -> int:
    return 2 if code == "bf16" else np.dtype(code).itemsize


class _Resolver:
    """Turns the machine's result into plain values; a shared value is converted once.

    `budget` limits the bytes that records unfold into: a short file can name the same content many times.
    """

    def __init__(self, budget: int, read_storage: Callable[[str], bytes]) -> None:
        self.budget = budget
        self.read_storage = read_storage
        self.done: dict[int, tuple[Any, Any]] = {}
        self.open: set[int] = set()

    def plain(self, value: Any) -> Any:
        if isinstance(value, Global):
            raise AssetError(f"the pickle has a bare {value.kind} where a value was expected")
        if not isinstance(value, (dict, list, tuple, Record)):
            return value
        key = id(value)
        if key in self.done:
            return self.done[key][1]
        if key in self.open:
            raise AssetError("the pickle is cyclic: a value contains itself; a body file is a plain tree")
        if len(self.open) >= MAX_DEPTH:
            raise AssetError(f"the pickle is nested more than {MAX_DEPTH} deep; a body file is a flat dict")
        self.open.add(key)
        if isinstance(value, dict):
            result: Any = {self.key(k): self.plain(v) for k, v in value.items()}
        elif isinstance(value, (list, tuple)):
            result = type(value)(self.plain(item) for item in value)
        else:
            read = self.sparse if value.kind in SPARSE else getattr(self, value.kind)
            result = read(value)
        self.open.discard(key)
        self.done[key] = value, result  # the value too: its id must not be given to another one
        return result

    def key(self, key: Any) -> Any:
        """Return a key, as text where Python 2 or ``encoding="bytes"`` made bytes of it."""
        if isinstance(key, tuple):
            return self.plain(key)
        return key.decode("latin-1") if isinstance(key, bytes) else key

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise AssetError("the pickle unfolds into many times its own size; it was not opened")

    def foreign(self, record: Record) -> Any:
        raise AssetError("the pickle holds an object of an unknown class where a tensor was expected")

    def set(self, record: Record) -> set[Any]:
        (items,) = record.args
        self.spend(64 * len(items))
        return checked_keys(items)

    def bytes(self, record: Record) -> bytes:
        return self.raw(record.args[0])

    def raw(self, content: Any) -> bytes:
        """Return bytes: those of Python 3, or those that Python 2 wrote as latin-1 text."""
        if isinstance(content, Record) and content.kind == "bytes":
            return self.plain(content)
        if isinstance(content, (bytes, bytearray)):
            return bytes(content) if isinstance(content, bytearray) else content
        if not isinstance(content, str):
            raise AssetError(
                f"the pickle holds an array whose content is a {kind_of(content)}; expected bytes"
            )
        self.spend(len(content))
        try:
            return content.encode("latin-1")
        except UnicodeEncodeError as error:
            raise AssetError(f"damaged pickle ({error}); download the file again") from error

    def dtype(self, record: Record) -> np.dtype:
        code = _text(record.args[0])
        if re.fullmatch("O[48]?", code):
            return np.dtype(object)
        if not DTYPE_CODE.fullmatch(code):
            raise AssetError(f"the pickle holds an array of dtype {code[:20]!r}; expected numbers or text")
        match record.state:
            case None:
                return np.dtype(code)
            case (int(), (str() | bytes()) as order, None, None, None, *_) if _text(order) in _BYTE_ORDERS:
                return np.dtype(code).newbyteorder(_text(order))  # pyright: ignore[reportArgumentType]
        raise AssetError("the pickle holds a structured array; expected plain numbers")

    def ndarray(self, record: Record) -> Any:
        match record.state:
            case (int(), shape, Record(kind="dtype") as kind, fortran, content):
                dtype = self.plain(kind)
            case _:
                raise AssetError("the pickle holds an array without numbers")
        if dtype.kind == "O":
            return self.objects(_shape(self.plain(shape)), content)
        return self.filled(self.raw(content), dtype, shape, "F" if fortran is True else "C")

    def buffer(self, record: Record) -> np.ndarray:
        """Return an array of pickle protocol 5, which NumPy 2.3 can write with its axes in another order."""
        content, kind, shape, order, *axes = record.args
        dtype = self.plain(kind)
        if dtype.kind == "O":
            raise AssetError("the pickle holds an array of objects in a buffer; it was not opened")
        if order != "K":
            return self.filled(self.raw(content), dtype, shape, order)
        permutation = _sizes(self.plain(axes[0])) if axes else ()
        array = self.filled(self.raw(content), dtype, shape, "C")
        if sorted(permutation) != list(range(array.ndim)):
            raise AssetError("damaged pickle (the order of an array's axes); download the file again")
        return array.transpose(permutation)

    def array_of_bytes(self, record: Record) -> np.ndarray:
        """Return ``numpy.ndarray(shape, type, content)``, as our shards for training hold arrays."""
        shape, code, content = record.args
        order, code = (code[:1], code[1:]) if code[:1] in _BYTE_ORDERS else ("=", code)
        dtype = self.dtype(Record("dtype", (code,))).newbyteorder(order)  # pyright: ignore[reportArgumentType]
        if dtype.kind == "O":
            raise AssetError("the pickle holds an array of objects in a buffer; it was not opened")
        return self.filled(self.raw(content), dtype, shape, "C")

    def filled(self, raw: bytes, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
        """Return an array that shares the memory of bytes."""
        shape = _shape(self.plain(shape))
        if math.prod(shape) * dtype.itemsize != len(raw) or order not in ("C", "F"):
            raise AssetError(
                f"the pickle holds a {dtype} array of shape {shape} in {len(raw)} bytes, which do not fill it"
            )
        array = np.ndarray(shape, dtype, raw, order=order)
        if dtype.isnative:
            return array
        self.spend(array.nbytes)
        return array.astype(dtype.newbyteorder("="))

    def objects(self, shape: tuple[int, ...], content: Any) -> Any:
        """Return the object in an array of no dimension, and else the objects of an array as a list."""
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise AssetError("damaged pickle (an array of objects); download the file again")
        items = self.plain(content)
        return items[0] if shape == () else items

    def storage(self, record: Record) -> np.ndarray:
        """Return the numbers of a storage of a torch file, bfloat16 as float32."""
        key, code, count = record.args
        raw = self.read_storage(key)
        if len(raw) != count * _item_size(code):
            raise AssetError(f"truncated: a tensor has {len(raw)} bytes for {count} numbers")
        if code != "bf16":
            return np.frombuffer(raw, np.dtype(code).newbyteorder("<"))
        self.spend(2 * len(raw))
        return widen_bfloat16(raw)

    def tensor(self, record: Record) -> np.ndarray:
        storage, offset, size, stride, *others = record.args
        values, shape, strides = self.plain(storage), _shape(self.plain(size)), _sizes(self.plain(stride))
        if others and isinstance(others[-1], Global):  # of bytes, with the type of the numbers
            code = others[-1].kind.removeprefix("number ")
            if code == others[-1].kind or len(values) % np.dtype(code).itemsize:
                raise AssetError("damaged torch file (the type of a tensor); download the file again")
            values = values.view(code)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False))
        if len(shape) != len(strides) or offset < 0 or (math.prod(shape) and last >= len(values)):
            raise AssetError("damaged torch file (a tensor outside its storage); download the file again")
        self.spend(math.prod(shape) * values.itemsize)
        if not math.prod(shape):
            return np.zeros(shape, values.dtype)
        steps = [step * values.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
        return np.ascontiguousarray(view).reshape(shape)  # which makes one row of a single number

    def scalar(self, record: Record) -> Any:
        kind, content = record.args
        dtype, raw = self.plain(kind), self.raw(content)
        if dtype.kind == "U" or len(raw) != dtype.itemsize:
            raise AssetError("the pickle holds a number whose bytes do not fit its dtype")
        return np.ndarray((), dtype, raw)[()]

    def chumpy(self, record: Record) -> np.ndarray:
        return self.array(record, "x")

    def select(self, record: Record) -> np.ndarray:
        values = self.array(record, "a").ravel()
        indices = self.array(record, "idxs").ravel()
        shape = _shape(self.state(record, "preferred_shape"))
        check_indices("idxs of a chumpy Select", indices, values.size)
        if math.prod(shape) != indices.size:
            raise AssetError(f"a chumpy Select of {indices.size} values cannot have shape {shape}")
        self.spend(indices.size * values.itemsize)
        return values[indices].reshape(shape)

    def attributes(self, record: Record) -> dict[str, Any]:
        return {self.key(name): self.plain(value) for name, value in self.fields(record).items()}

    def sparse(self, record: Record) -> scipy.sparse.csr_array:
        """Return a SciPy matrix of any format; SciPy checks that its parts fit together."""
        shape = _shape(self.state(record, "_shape"))
        if len(shape) != 2:
            raise AssetError(f"a sparse matrix of {len(shape)} dimensions; expected 2")
        try:
            values, *places = (np.asarray(part) for part in self.parts(record))
            places = [place if place.size else place.astype(np.int64) for place in places]
            if values.dtype.kind not in "biuf" or any(place.dtype.kind not in "iu" for place in places):
                raise AssetError("a sparse matrix without real numbers at whole ones")
            self.spend(values.size * (values.itemsize + 16) + 8 * shape[0])
            if record.kind in ("csc", "csr", "bsr"):
                if any(size % block for size, block in zip(shape, values.shape[1:], strict=False)):
                    raise AssetError(f"a sparse matrix of shape {shape} cannot have blocks of {values.shape}")
                made = getattr(scipy.sparse, f"{record.kind}_array")((values, *places), shape=shape)
                made.check_format(full_check=True)
            elif record.kind == "dia":
                if np.abs(places[0].astype(float)).max(initial=0) > MAX_SIZE:
                    raise AssetError(f"a sparse matrix of shape {shape} cannot have diagonals so far out")
                made = scipy.sparse.dia_array((values, *places), shape=shape).tocoo()
            else:
                made = scipy.sparse.coo_array((values, tuple(places)), shape=shape)
            return scipy.sparse.csr_array(made)
        except (ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
            if isinstance(error, AssetError):
                raise
            raise AssetError(f"a sparse matrix of shape {shape} is damaged ({error})") from error

    def parts(self, record: Record) -> tuple[Any, ...]:
        """Return the values of a sparse matrix, and the arrays or lists that say where they are."""
        match record.kind:
            case "csc" | "csr" | "bsr":
                return tuple(self.array(record, key) for key in ("data", "indices", "indptr"))
            case "dia":
                return tuple(self.array(record, key) for key in ("data", "offsets"))
            case "coo" if "coords" in self.fields(record):
                return self.array(record, "data"), *self.state(record, "coords")
            case "coo":
                return tuple(self.array(record, key) for key in ("data", "row", "col"))
            case "lil":  # a list of columns and one of values per row
                columns, values = self.state(record, "rows"), self.state(record, "data")
                if any(type(row) is not list for lists in (columns, values) for row in lists):
                    raise AssetError("rows and data of a sparse matrix: expected one list per row")
                row = [i for i, entries in enumerate(columns) for _ in entries]
                return list(chain(*values)), row, list(chain(*columns))
            case _:  # a dict of values by pairs of row and column
                former = record.args and "_dict" not in self.fields(record)
                places = self.plain(record.args[0]) if former else self.state(record, "_dict")
                return list(places.values()), *(zip(*places, strict=True) if places else ((), ()))

    def fields(self, record: Record) -> dict[Any, Any]:
        if not isinstance(record.state, dict):
            raise AssetError(f"the pickle holds a {record.kind} object without its content")
        return record.state

    def state(self, record: Record, key: str) -> Any:
        if key not in self.fields(record):
            raise AssetError(f"the pickle holds a {record.kind} object without its {key!r}")
        return self.plain(record.state[key])

    def array(self, record: Record, key: str) -> np.ndarray:
        value = self.state(record, key)
        if not isinstance(value, np.ndarray):
            kind = type(value).__name__
            raise AssetError(f"{key!r} of a {record.kind} object: expected an array, got {kind}")
        return value


def _sizes(value: Any) -> tuple[int, ...]:
    """Return a few sizes as a tuple."""
    if (
        not isinstance(value, (tuple, list))
        or len(value) > MAX_DEPTH
        or not all(isinstance(n, (int, np.integer)) and 0 <= n <= MAX_SIZE for n in value)
    ):
        raise AssetError(f"the pickle holds an array whose shape is no tuple of sizes up to {MAX_SIZE}")
    return tuple(int(n) for n in value)


def _shape(value: Any) -> tuple[int, ...]:
    """Return a shape as a tuple, after checking that NumPy can hold it."""
    sizes = _sizes(value)
    if math.prod(max(n, 1) for n in sizes) > MAX_SIZE:
        raise AssetError(f"the pickle holds an array whose sizes give more than {MAX_SIZE} numbers")
    return sizes


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
