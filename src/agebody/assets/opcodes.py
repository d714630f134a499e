"""The stack machine of pickles, which records the calls that a file asks for and makes none."""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from agebody.assets.asset import AssetError

Stream: TypeAlias = io.BytesIO | mmap.mmap
"""Reads no further than its end, however much is asked for; a file would first make room for it."""

MAX_OPCODES = 1_000_000  # an official file has hundreds; each can cost a hundred bytes of memory


class Global(NamedTuple):
    """A class or function that a pickle may name."""

    kind: str


_GLOBALS = {
    "chumpy.ch Ch": Global("chumpy"),
    "chumpy.reordering Select": Global("select"),
    "numpy ndarray": Global("ndarray"),
    "numpy matrix": Global("ndarray"),
    "numpy.matrixlib.defmatrix matrix": Global("ndarray"),
    "numpy memmap": Global("ndarray"),
    "numpy dtype": Global("dtype"),
    "_codecs encode": Global("encode"),
    "collections OrderedDict": Global("mapping"),
    "types SimpleNamespace": Global("attributes"),
    "argparse Namespace": Global("attributes"),
    "torch Size": Global("size"),
    "torch._utils _rebuild_tensor": Global("tensor"),
    "torch._utils _rebuild_tensor_v2": Global("tensor"),
    "torch._utils _rebuild_tensor_v3": Global("tensor"),
    "torch._utils _rebuild_parameter": Global("parameter"),
}
for _name in ("set", "object", "dict", "bytes"):
    _GLOBALS |= {f"{module} {_name}": Global(_name) for module in ("builtins", "__builtin__")}
_GLOBALS |= {f"{module} _reconstructor": Global("reconstructor") for module in ("copyreg", "copy_reg")}
for _package in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_package}.multiarray _reconstruct"] = Global("reconstruct")
    _GLOBALS[f"{_package}.multiarray scalar"] = Global("scalar")
    _GLOBALS[f"{_package}.memmap memmap"] = Global("ndarray")
    _GLOBALS[f"{_package}.numeric _frombuffer"] = Global("buffer")
SPARSE = ("csc", "csr", "coo", "bsr", "dia", "lil", "dok")
for _format in SPARSE:
    for _module in (f"scipy.sparse.{_format}", f"scipy.sparse._{_format}"):
        _GLOBALS |= {f"{_module} {_format}_{kind}": Global(_format) for kind in ("matrix", "array")}
_STORAGES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf16", "Bool": "b1", "Byte": "u1",
    "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Untyped": "u1",
}  # fmt: skip
for _name, _code in _STORAGES.items():
    for _module in ("torch", "torch.cuda", "torch.storage"):
        _GLOBALS[f"{_module} {_name}Storage"] = Global(f"storage {_code}")

_GLOBALS |= {f"torch uint{bits}": Global(f"number <u{bits // 8}") for bits in (16, 32, 64)}

_ANYWHERE = (" Mahalanobis", " Struct")
"""Classes of attributes, in any module: SMIL's pose prior, whose module is the script that wrote the file,
and smplx's container of a model's arrays."""
_ELSEWHERE = {
    "joblib.": "this is a joblib file; read it with joblib.load and save its arrays as .npz",
    "torch.storage _load_from_bytes": "this holds torch tensors in Python's own pickle; save them with "
    "torch.save, or as arrays in an .npz file",
    "torch._utils _rebuild_sparse": "this holds sparse torch tensors; save them dense, with .to_dense()",
    "numpy.ma.": "this holds masked arrays; save them filled, with .filled()",
    "agebody.": "this is an object of agebody in a pickle; load it as it was saved, and write its asset with "
    "agebody.save_asset",
}
_OBJECTS = ("chumpy", "select", "attributes", *SPARSE)

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
_LITERAL_OPCODES = """
INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES
SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
"""
_LITERALS = frozenset(_LITERAL_OPCODES.split())
_OUTSIDE = "keeps its arrays outside the file (out-of-band buffers); write it without buffer_callback"
_REFUSED = {"NEXT_BUFFER": _OUTSIDE, "READONLY_BUFFER": _OUTSIDE}


class Record:
    """The description of one object in a file: its kind, the arguments of its constructor, and its state."""

    __slots__ = ("args", "kind", "state")

    def __init__(self, kind: str, args: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None


class Machine:
    """The stack machine of the pickle format, which records calls instead of making them.

    Args:
        lenient: read objects of unknown classes as records of kind "foreign", without their content: a
            training checkpoint keeps settings of any class beside its tensors.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, tuple[str, int]] = {}

    def run(self, stream: Stream) -> Any:
        """Return what a pickle describes, and leave the stream at its end."""
        opcodes = pickletools.genops(stream)  # pyright: ignore[reportArgumentType]  # mmap is read as a file
        for _ in range(MAX_OPCODES):
            try:
                opcode, arg, _position = next(opcodes)
            except (ValueError, OverflowError, DeprecationWarning) as error:  # the last for "\\K" in old text
                raise AssetError(f"damaged or truncated pickle ({error}); download the file again") from error
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, arg)
        raise AssetError(f"a pickle of more than {MAX_OPCODES} steps; a body file has some hundreds")

    def _pop(self) -> Any:
        if not self.stack:
            raise AssetError("damaged pickle (a value is missing); download the file again")
        return self.stack.pop()

    def _container(self, kind: type) -> Any:
        """Return the container on top of the stack, or one that is dropped for a foreign object."""
        foreign = self.lenient and self.stack and isinstance(self.stack[-1], Record)
        return kind() if foreign else self._top(kind)

    def _top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise AssetError(f"damaged pickle (a {kind.__name__} is missing); download the file again")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self.outer:
            raise AssetError("damaged pickle (a mark is missing); download the file again")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _step(self, name: str, arg: Any) -> None:
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
                self._since_mark()
            case "DUP":
                stack.append(self._pop())
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                value = self._pop()
                stack.append(value)
                place = len(self.memo) if arg is None else arg
                if not 0 <= place < 2**32:  # larger ones can be made to collide as keys of the memo
                    raise AssetError("damaged pickle (a place in its memo); download the file again")
                self.memo[place] = value
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise AssetError("damaged pickle (a reference to nothing); download the file again")
                stack.append(self.memo[arg])
            case _ if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "LIST" | "TUPLE" | "FROZENSET":
                items = self._since_mark()
                self.stack.append({"LIST": list, "TUPLE": tuple, "FROZENSET": checked_keys}[name](items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = self._since_mark()
                self.stack.append({})
                self._set_items(items)
            case "APPEND":
                value = self._pop()
                self._container(list).append(value)
            case "APPENDS":
                items = self._since_mark()
                self._container(list).extend(items)
            case "ADDITEMS":
                items = self._since_mark()
                self._container(set).update(checked_keys(items))
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "SETITEMS":
                items = self._since_mark()
                self._set_items(items)
            case "GLOBAL":
                stack.append(self._or_foreign(Global, _admitted, arg))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                if not (isinstance(attribute, str) and isinstance(module, str)):
                    raise AssetError("damaged pickle (a name is missing); download the file again")
                stack.append(self._or_foreign(Global, _admitted, f"{module} {attribute}"))
            case "BINPERSID":
                stack.append(self._storage(self._pop()))
            case "REDUCE":
                args, function = self._pop(), self._pop()
                stack.append(self._or_foreign(Record, _reduce, function, args))
            case "NEWOBJ":
                args, cls = self._pop(), self._pop()
                stack.append(self._or_foreign(Record, _new, cls, args == ()))
            case "NEWOBJ_EX" if self.lenient:
                for _ in range(3):
                    self._pop()
                stack.append(Record("foreign"))
            case "BUILD":
                state = self._pop()
                mapping = stack and isinstance(stack[-1], dict)
                if mapping or (self.lenient and stack and not isinstance(stack[-1], Record)):
                    return  # attributes of an OrderedDict, such as the versions of a network's modules
                record = self._top(Record)
                if record.state is not None:
                    raise AssetError(f"damaged pickle (a second state for a {record.kind})")
                record.state = state
            case _:
                why = _REFUSED.get(name, f"uses {name}, which no body file needs; it was not opened")
                raise AssetError(f"the pickle {why}")

    def _or_foreign(self, kind: type[Global | Record], make: Callable[..., Any], *args: Any) -> Any:
        """Return what ``make`` returns; what it refuses is foreign, if the machine is lenient."""
        try:
            return make(*args)
        except AssetError:
            if not self.lenient:
                raise
            return kind("foreign")

    def _storage(self, name: Any) -> Record:
        """Return the storage that a tensor of a torch file names."""
        match name:
            case ("storage", Global(kind), str() as key, str(), int() as count, *_) if count >= 0:
                code = kind.removeprefix("storage ")
                if code != kind and self.storages.setdefault(key, (code, count)) == (code, count):
                    return Record("storage", (key, code, count))
        raise AssetError("the pickle names a storage as no torch file does; it was not opened")

    def _set_items(self, items: list[Any]) -> None:
        target = self._container(dict)
        if len(items) % 2:
            raise AssetError("damaged pickle (a key without a value); download the file again")
        keys = [_as_text(key) for key in items[::2]]
        checked_keys(keys)
        target.update(zip(keys, items[1::2], strict=True))


def _as_text(key: Any) -> Any:
    """Return bytes that Python 3 wrote in a protocol of Python 2 as the text in their place."""
    return key.args[0] if isinstance(key, Record) and key.kind == "bytes" else key


def checked_keys(items: list[Any]) -> set[Any]:
    """Return the items as a set: hashing anything but text and small numbers could take forever.

    Integers from 2^61 on, and floats, can be chosen to collide. A pair is a place in a SciPy dok matrix.
    """
    for item in items:
        for part in item if isinstance(item, tuple) and len(item) == 2 else (item,):
            small = isinstance(part, int) and abs(part) < 2**60
            place = item is not part and isinstance(part, Record)
            if not (small or place or isinstance(part, (str, bytes, Global))):
                what = "number" if isinstance(part, (int, float)) else kind_of(part)
                raise AssetError(f"the pickle has a {what} as a key; expected text or a whole number")
    return set(items)


def kind_of(value: Any) -> str:
    """Return the kind of a value, for error messages."""
    return value.kind if isinstance(value, (Global, Record)) else type(value).__name__


def _admitted(name: str) -> Global:
    if name.endswith(_ANYWHERE):
        return Global("attributes")
    if name not in _GLOBALS:
        for start, advice in _ELSEWHERE.items():
            if name.startswith(start):
                raise AssetError(advice)
        shown = name if len(name) <= 100 else name[:100] + "..."
        raise AssetError(
            f"the pickle names {shown.replace(' ', '.', 1)!r}, which no body file needs; nothing was run. "
            "If you trust the file, save its arrays as .npz with the tool that wrote it"
        )
    return _GLOBALS[name]


def _reduce(function: Any, args: Any) -> Any:
    match function, args:
        case Global("set"), ([*_],):
            return Record("set", tuple(args))
        case Global("mapping" | "attributes" as kind), ():
            return {} if kind == "mapping" else Record(kind)
        case Global("mapping"), ([*pairs],) if all(
            isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs
        ):
            checked_keys([pair[0] for pair in pairs])
            return dict(pairs)
        case Global("buffer"), (_, Record(kind="dtype"), _, str(), *_):
            return Record("buffer", tuple(args))
        case Global("tensor"), (Record(kind="storage"), int(), _, _, *_):
            return Record("tensor", tuple(args))
        case Global("parameter"), (Record(kind="tensor") as tensor, *_):
            return tensor
        case Global("size"), (tuple() as size,):
            return size
        case Global("bytes"), ():  # those of an empty array, in protocols of Python 2
            return b""
        case Global("encode"), (str(), "latin1" | "latin-1"):
            return Record("bytes", tuple(args))
        case Global("reconstruct"), (Global("ndarray"), _, _):
            return Record("ndarray")
        case Global("ndarray"), (tuple(), str(), bytes() | bytearray()):
            return Record("array_of_bytes", tuple(args))
        case Global("dtype"), (str() | bytes(), *_):
            return Record("dtype", tuple(args))
        case Global("scalar"), (Record(kind="dtype"), _):
            return Record("scalar", tuple(args))
        case Global("reconstructor"), (cls, Global("object"), None):
            return _new(cls, True)
        case Global("reconstructor"), (Global("dok"), Global("dict"), dict() as places):
            return Record("dok", (places,))
    raise AssetError(f"the pickle calls {kind_of(function)} as no body file does; it was not opened")


def _new(cls: Any, plain: bool) -> Record:
    if not (plain and isinstance(cls, Global) and cls.kind in _OBJECTS):
        raise AssetError(f"the pickle makes a {kind_of(cls)} as no body file does; it was not opened")
    return Record(cls.kind)
