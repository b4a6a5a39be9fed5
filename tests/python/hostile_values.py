"""Values that no caller should pass, and values that look like them but are fine."""

from __future__ import annotations

import decimal
import enum
import fractions
import math
import pathlib
import random
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    ABC = "abc"


class Text(str):
    __slots__ = ()


class Torchlike:
    """As a tensor of one element: indexable, with an item, a shape and a truth."""

    shape = (1,)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __index__(self) -> int:
        return int(self._value)

    def __float__(self) -> float:
        return float(self._value)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index in (0, -1):
            return Torchlike(self._value)
        raise IndexError(index)

    def tolist(self) -> list[Any]:
        return [self._value]


_DUNDERS = (
    *("__index__", "__int__", "__float__", "__bool__", "__len__", "__iter__", "__getitem__"),
    *("__contains__", "__eq__", "__hash__", "__repr__", "__str__", "__fspath__", "__call__"),
    *("__lt__", "__deepcopy__", "__reduce_ex__", "__array__", "__format__", "keys", "items"),
)


def _raising(rng: random.Random) -> Any:
    """An object some of whose methods raise."""
    error = rng.choice((ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError))
    names = rng.sample(_DUNDERS, rng.randint(1, len(_DUNDERS)))

    def raise_it(*_: Any, **__: Any) -> Any:
        raise error("half \ud83d of a pair")

    base = rng.choice((object, object, dict, list, str, int, float))
    members = dict.fromkeys(names, raise_it)
    if base in (str, int, float):  # what hashes them belongs to the interpreter
        members.pop("__hash__", None)
    if "__eq__" in members and "__hash__" not in members:
        members["__hash__"] = base.__hash__ if base in (str, int, float) else object.__hash__
    try:
        return type("Raising", (base,), members)()
    except Exception:
        return object()


class _Mapping(Mapping[Any, Any]):
    """A mapping that is no dict and whose items are not what its keys say."""

    def __init__(self, keys: list[Any]) -> None:
        self._keys = keys

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)

    def __len__(self) -> int:
        return 10**6


def _generator(rng: random.Random) -> Iterator[Any]:
    yield from (1, 2)
    if rng.random() < 0.5:
        raise RuntimeError("in the middle of a generator")


def _looped(rng: random.Random) -> Any:
    items: list[Any] = [1]
    table: dict[str, Any] = {"a": items}
    items.append(table if rng.random() < 0.5 else items)
    return rng.choice((items, table))


def _nested(rng: random.Random) -> Any:
    value: Any = rng.choice((1, "a", None))
    kind = rng.randrange(3)
    for _ in range(rng.choice((3, 30, 5_000))):
        value = [value] if kind == 0 else {"a": value} if kind == 1 else (value,)
    return value


_PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 100, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63)),
    *(10**400, -(10**30), 0.0, -0.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 1j),
    *("", " ", "a", "abc", "1", "\ud83d", "a\udcff", "\0", "x" * 3000, "é漢😀", "../x", "{", "{%"),
    *(b"", b"a", bytearray(b"ab"), memoryview(b"ab"), [], {}, (), set(), frozenset(), [[]]),
    *([None], ["a"], ["\ud83d"], [1, 2], [-1], [2**40], [1.5], [True], [""], ["a", 1], [b"a"]),
    *([[1], [2]], {1: 1}, {"a": 1}, {"": None}, {None: None}, {(1,): 2}, {"\ud83d": 1}),
    *({"prompt": 3}, {"json": 1}, {"role": "user"}, [{"role": 1}]),
    *({"prompt_token_ids": None}, {"prompt_token_ids": [10**9]}),
    *([{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image_url"}]}]),
    *(np.int64(3), np.array([1]), np.array([[1, 2]]), np.float32(0.5), np.float64("nan")),
    *(np.array([]), np.array("a"), np.bool_(True), np.array(5), np.uint8(255), np.str_("a")),
    *(np.datetime64("2020"), np.array([1, 2], dtype=object), np.zeros((2, 3, 4))),
    *(Number.ONE, Word.ABC, Text("abc"), object(), object, type, len, math, ..., NotImplemented),
    *(range(3), range(-1, 2), slice(1), decimal.Decimal("1.5"), decimal.Decimal("NaN")),
    *(fractions.Fraction(1, 3), pathlib.Path("x"), pathlib.Path("\0"), Torchlike(1)),
    *(Torchlike("a"), types.SimpleNamespace(a=1), Exception("x")),
)
_MADE: tuple[Callable[[random.Random], Any], ...] = (
    *(_raising, _raising, _raising, _generator, _looped, _nested),
    lambda rng: _Mapping(rng.choice(([], ["prompt"], ["role", "content"], [1]))),
    lambda rng: iter([rng.choice(_PLAIN)]),
    lambda rng: [hostile(rng)],
    lambda rng: {"a": hostile(rng)},
    lambda rng: {rng.choice(("prompt", "prompt_token_ids", "regex", "method")): hostile(rng)},
    lambda rng: rng.randint(-(2**33), 2**33),
    lambda rng: lambda *_: rng.choice(_PLAIN),
)


def hostile(rng: random.Random) -> Any:
    """One of the values, the same for the same state of `rng`."""
    return rng.choice(_PLAIN) if rng.random() < 0.7 else rng.choice(_MADE)(rng)
