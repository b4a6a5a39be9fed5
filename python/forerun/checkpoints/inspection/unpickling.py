"""The values in a pickle of torch.save: tensors by name, plain values, and nothing else.

pickle.Unpickler cannot be trusted with a file: beyond calling what `find_class` allows, a pickle
can change the state of the objects that it made (BUILD), hash nested tuples for minutes, and copy
one list again and again. The opcodes that torch.save writes are few, so they are run here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from forerun.errors import CheckpointError

# torch's storage classes: the type in the names of safetensors, and an element's bytes.
_STORAGES = {
    "BoolStorage": ("BOOL", 1),
    "ByteStorage": ("U8", 1),
    "CharStorage": ("I8", 1),
    "ShortStorage": ("I16", 2),
    "IntStorage": ("I32", 4),
    "LongStorage": ("I64", 8),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "FloatStorage": ("F32", 4),
    "DoubleStorage": ("F64", 8),
}
_MOST_DIMENSIONS = 32  # numpy's, before version 2
_MOST_ELEMENTS = 2**60  # bytes of at most 8 each fit 63 bits


class NotAStateDictError(CheckpointError):
    """A file of torch.save, by all signs a sound one, that holds something else than tensors."""


def misfit(file: str) -> CheckpointError:
    """The error for a tensor that fails is_within_storage."""
    return CheckpointError(file, "a tensor that does not fit it", "tensors within their storage")


class Storage(NamedTuple):
    """Elements of one type in a file of their own within the archive."""

    dtype: str
    element_bytes: int
    key: str
    num_elements: int


class PickledTensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def is_within_storage(self) -> bool:
        """Whether every number is one, and no element lies outside of the storage."""
        num_elements = self.storage.num_elements
        if not len(self.shape) == len(self.strides) <= _MOST_DIMENSIONS:
            return False
        numbers = (self.offset, num_elements, *self.shape, *self.strides)
        if not all(type(n) is int and 0 <= n <= _MOST_ELEMENTS for n in numbers):
            return False
        size, last = 1, self.offset
        for length, step in zip(self.shape, self.strides, strict=True):
            size *= length
            last += (length - 1) * step
        return size == 0 or (size <= num_elements and last < num_elements)


class _Global(NamedTuple):
    """What a pickle names by module and name; never looked up."""

    module: str
    name: str


class _Mark:
    pass


_MARK = _Mark()
_MOST_ARGUMENTS = 16
_IGNORED = {"PROTO", "FRAME"}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}


def unpickle(data: bytes, file: str) -> Any:
    """The value of a pickle whose globals are those of a state dict.

    Raises:
        NotAStateDictError: it names, builds or calls something else.
        CheckpointError: it is damaged, or a tensor does not fit its storage.
    """
    return _Machine(file).run(data)


class _Machine:
    """The pickle machine for the opcodes of torch.save. Nothing that it makes can be changed
    later but lists and dicts, which hold no tensor's numbers."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[[Any], None]] = {
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "TUPLE": lambda _: self._stack.append(tuple(self._pop_to_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._pop_to_mark()),
            "SETITEM": lambda _: self._update([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._update(self._pop_to_mark()),
            "GLOBAL": lambda text: self._stack.append(_Global(*text.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._stack_global(),
            "BINPERSID": lambda _: self._stack.append(self._storage(self._stack.pop())),
            "REDUCE": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
        }

    def run(self, data: bytes) -> Any:
        for opcode, decoded, _ in pickletools.genops(data):
            name, argument = opcode.name, cast(Any, decoded)
            if name == "STOP":
                break
            if name in _IGNORED:
                continue
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                if type(argument) is int and abs(argument) >= 2**64:
                    raise self._refusal("an integer beyond 64 bits")
                self._stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self._memo[argument] = self._stack[-1]
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self._stack.append(self._memo[argument])
            elif name in self._actions:
                self._actions[name](argument)
            else:
                raise self._refusal(f"the opcode {name}")
        [value] = self._stack
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _tuple(self, size: int) -> None:
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise self._refusal("items of something else than a list")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(items) % 2:
            raise self._refusal("items of something else than a dict")
        for key in items[::2]:
            # Keys whose hashes are cheap and cannot be made to collide.
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                raise self._refusal(f"a key of type {type(key).__name__}")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self._refusal("a name that is none")
        self._stack.append(_Global(module, name))

    def _storage(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _Global("torch", str(kind)), str(key), _, int(size), *_) if (
                kind in _STORAGES and 0 <= size <= _MOST_ELEMENTS
            ):
                return Storage(*_STORAGES[kind], key, size)
        raise self._refusal("an unknown storage")

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(called) is not _Global or type(arguments) is not tuple:
            raise self._refusal("a call of a value")
        if len(arguments) > _MOST_ARGUMENTS:
            raise self._refusal(f"a call with {len(arguments)} arguments")
        match (*called, *arguments):
            case ("collections", "OrderedDict"):
                self._stack.append({})
            case ("torch", "Size", tuple() as shape):
                self._stack.append(shape)
            case ("torch._utils", "_rebuild_parameter", PickledTensor() as tensor, *_):
                self._stack.append(tensor)
            case ("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, *_):
                self._stack.append(self._tensor(storage, offset, shape, strides))
            case _:
                raise self._refusal(f"{called.module}.{called.name}")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor:
        if (
            type(storage) is Storage
            and type(shape) is tuple
            and type(strides) is tuple
            and (tensor := PickledTensor(storage, offset, shape, strides)).is_within_storage()
        ):
            return tensor
        raise CheckpointError(
            self._file, "a tensor that does not fit it", "tensors within their storage"
        )

    def _build(self) -> None:
        # torch.save keeps attributes of a state dict this way, which say nothing of its tensors.
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise self._refusal("a state for something else than a dict")

    def _refusal(self, what: str) -> CheckpointError:
        return NotAStateDictError(self._file, what, "tensors and nothing else")
