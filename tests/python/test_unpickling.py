"""Pickles that were made to harm: nothing is called, changed or read beyond a file's tensors."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forerun import CheckpointError
from forerun.checkpoints.inspection.pickles import read_data, read_pickled
from forerun.checkpoints.inspection.unpickling import PickledTensor, Storage, unpickle

PROTOCOL = b"\x80\x02"
DATA = np.arange(8, dtype=np.float32)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return pickle.dumps(value, 2)[2:-1]


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(size: int = 8, key: str = "0", kind: str = "FloatStorage") -> bytes:
    parts = text("storage") + named("torch", kind) + text(key) + text("cpu") + number(size)
    return b"(" + parts + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 4),
    strides: tuple[int, ...] = (4, 1),
    offset: int = 0,
    stored: bytes | None = None,
) -> bytes:
    arguments = (storage() if stored is None else stored) + number(offset)
    arguments += numbers(*shape) + numbers(*strides) + b"\x89" + named("collections", "OrderedDict")
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b")Rt" + b"R"


def state(value: bytes, key: bytes = text("fc.weight")) -> bytes:
    return PROTOCOL + b"}" + key + value + b"s."


def write(path: Path, pickled: bytes, data: bytes = DATA.tobytes()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return path


def attributes(**fields: bytes) -> bytes:
    return b"}" + b"".join(text(name) + value + b"s" for name, value in fields.items())


def test_a_plain_tensor_is_read(tmp_path: Path) -> None:
    tensors = read_pickled(write(tmp_path / "a.bin", state(tensor())))
    [data] = read_data(tmp_path / "a.bin", tensors.values())
    np.testing.assert_array_equal(data.view(np.float32), DATA.reshape(2, 4))


def nested_tuples(depth: int) -> bytes:
    """((((), ()), ((), ())), ...): 2**depth leaves in a few bytes each."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


BOMB = nested_tuples(60)
CHANGED_STATE = {
    "offset": attributes(offset=number(1 << 40)),
    "strides": attributes(strides=numbers(1 << 40, 1)),
    "slots": b"N" + attributes(strides=numbers(1 << 40, 1)) + b"\x86",
    "storage": attributes(storage=storage(1 << 40)),
    "list": b"(" + storage() + number(-9) + numbers(2, 4) + numbers(4, 1) + b"l",
}
HOSTILE: dict[str, bytes] = {
    **{
        f"a state of {name}": state(tensor() + value + b"b")
        for name, value in CHANGED_STATE.items()
    },
    "a state of a storage": state(
        tensor(stored=storage() + attributes(num_elements=number(1 << 40)) + b"b")
    ),
    "a state of a function": state(
        named("torch._utils", "_rebuild_tensor_v2") + attributes(a=b"N") + b"b"
    ),
    "items of a tensor": PROTOCOL + tensor() + text("offset") + number(9) + b"s.",
    "items of a function": PROTOCOL + named("collections", "OrderedDict") + b"NNs.",
    "an appended tensor": PROTOCOL + tensor() + b"Na.",
    "a called tensor": state(tensor() + b")R"),
    "a called list": state(b"])R"),
    "a new object": state(named("collections", "OrderedDict") + b")\x81"),
    "a new tensor": state(named("torch", "FloatStorage") + b")\x81"),
    "another function": state(named("builtins", "eval") + b"(" + text("1") + b"tR"),
    "a function by the stack": b"\x80\x04}" + text("a") + text("os") + text("system") + b"\x93)Rs.",
    "an inner name": state(named("torch._utils", "_rebuild_tensor_v2.__globals__") + b")R"),
    "an extension": state(b"\x82\x01"),
    "a parameter of nothing": state(named("torch._utils", "_rebuild_parameter") + b"(Nt" + b"R"),
    "a parameter of a storage": state(
        named("torch._utils", "_rebuild_parameter") + b"(" + storage() + b"tR"
    ),
    "another storage": state(tensor(stored=storage(kind="CudaStorage"))),
    "a storage that is text": state(tensor(stored=text("storage"))),
    "a size below zero": state(tensor((-2, 4))),
    "two sizes below zero": state(tensor((-2, -4))),
    "strides below zero": state(tensor(strides=(-4, 1))),
    "an offset below zero": state(tensor(offset=-1)),
    "an offset beyond": state(tensor(offset=1)),
    "a stride beyond": state(tensor(strides=(5, 1))),
    "a huge size": state(tensor((1 << 62, 4), (0, 0))),
    "sizes that overflow": state(tensor((1 << 32, 1 << 32), (0, 0))),
    "a huge size beside none": state(tensor((1 << 70, 0))),
    "a huge stride": state(tensor((1, 8), (1 << 70, 1))),
    "strides that cancel": state(tensor((2, 4), ((1 << 64) - 8, 1))),
    "a size that is true": state(tensor().replace(numbers(2, 4), b"(\x88" + number(4) + b"t", 1)),
    "a size that is a fraction": state(
        tensor().replace(numbers(2, 4), b"(G" + struct.pack(">d", 2.0) + number(4) + b"t", 1)
    ),
    "shape as a list": state(tensor().replace(numbers(2, 4), b"(" + number(2) + number(4) + b"l")),
    "more dimensions than numpy has": state(tensor((1,) * 100, (1,) * 100)),
    "a thousand dimensions": state(tensor((1 << 31,) * 10000, (1,) * 10000)),
    "fewer strides than sizes": state(tensor((2, 4), (1,))),
    "a tuple of tuples as a key": PROTOCOL + b"}" + BOMB + b"Ns.",
    "a tuple of tuples as a shape": state(tensor().replace(numbers(2, 4), BOMB)),
    "a tuple of tuples as a storage": state(BOMB + b"Q"),
    "a tuple of tuples as arguments": state(named("collections", "OrderedDict") + BOMB + b"R"),
    "a tuple of tuples": PROTOCOL + BOMB + b".",
    "a huge number as a key": PROTOCOL + b"}" + number(1 << 4000) + b"Ns.",
    "a list in itself": PROTOCOL + b"]q\x00h\x00a.",
    "deeply nested": PROTOCOL + b"N" + b"\x85" * 300_000 + b".",
    "nothing": b"",
    "no end": PROTOCOL + b"}",
    "an empty stack": PROTOCOL + b"s.",
    "an unknown memo": PROTOCOL + b"h\x07.",
    "half of a pair": state(tensor(), text("a").replace(b"a", b"\xed")),
    "a long name": PROTOCOL + b"X\xff\xff\xff\x7fabc.",
    "two values": PROTOCOL + b"}}.",
    "no tensors": state(b"N"),
    "a key that is no text": state(tensor(), number(0)),
    "a list of tensors": PROTOCOL + b"](" + tensor() + b"e.",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused(case: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", HOSTILE[case])
    with pytest.raises(CheckpointError) as error:
        read_pickled(path)
    assert error.value.field.startswith(str(path))
    assert len(str(error.value)) < 1000


def test_a_tensor_is_checked_again_where_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", state(tensor()))
    stored = Storage("F32", 4, "0", 8)
    for offset, shape, strides in (
        (1 << 40, (2, 4), (4, 1)),
        (-1, (2, 4), (4, 1)),
        (0, (2, 4), (1 << 40, 1)),
        (0, (2, 4), (-4, 1)),
        (0, (-2, -4), (4, 1)),
        (0, (1 << 40,), (0,)),
        (0, (2, 4), (1,)),
    ):
        with pytest.raises(CheckpointError):
            read_data(path, [PickledTensor(stored, offset, shape, strides)])
    with pytest.raises(CheckpointError):
        read_data(path, [PickledTensor(Storage("F32", 4, "0", 9), 0, (9,), (1,))])
    with pytest.raises(CheckpointError):
        read_data(path, [PickledTensor(Storage("F32", 4, "../data.pkl", 8), 0, (8,), (1,))])


def test_values_that_were_read_cannot_be_changed() -> None:
    read = unpickle(state(tensor()), "file")["fc.weight"]
    for value in (read, read.storage):
        assert not hasattr(value, "__dict__")
        for name in value._fields:
            with pytest.raises(AttributeError):
                setattr(value, name, 0)


class Everything:
    """Any value that Python pickles, by its own opcodes."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return dict, (), {"state": self.value}, iter([self.value]), iter([(1, self.value)])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.builds(Everything, inner)
    ),
    max_leaves=8,
)
PIECES = st.sampled_from(
    [
        *(
            storage(),
            tensor(),
            tensor(offset=1),
            storage(1 << 40),
            BOMB,
            attributes(offset=b"K\x09"),
        ),
        *(named("torch._utils", "_rebuild_tensor_v2"), named("collections", "OrderedDict")),
        *(numbers(2, 4), numbers(1 << 40), number(-1), text("a"), text("storage"), text("\x00")),
        *(bytes([code]) for code in b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu]}"),
        *(bytes([code]) for code in range(0x80, 0x99)),
        *(b"q\x00", b"h\x00", b"\x94", b"K\x01", b"\x8c\x01a"),
    ]
)
mutations = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)


def mutated(changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(state(tensor() + b"q\x01" + text("b") + b"h\x01s" + text("c") + tensor()))
    for offset, byte in changes:
        data[offset % len(data)] = byte
    return bytes(data)


programs = st.one_of(
    st.lists(PIECES, max_size=30).map(lambda parts: PROTOCOL + b"".join(parts) + b"."),
    st.lists(PIECES, max_size=8).map(lambda parts: state(tensor() + b"".join(parts))),
    mutations.map(mutated),
    st.tuples(values, st.integers(0, 5)).map(lambda pair: pickle.dumps(pair[0], pair[1])),
    st.binary(max_size=60),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "a.bin"


def check_any(pickled: bytes, path: Path) -> None:
    file = write(path, pickled)
    try:
        tensors = read_pickled(file)
    except CheckpointError:
        return
    for read in tensors.values():
        try:
            [data] = read_data(file, [read])
        except CheckpointError:
            continue
        assert data.shape == read.shape
        assert data.nbytes <= DATA.nbytes
        assert np.isin(data, np.frombuffer(DATA.tobytes(), data.dtype)).all()


@settings(max_examples=300, deadline=None)
@given(programs)
@example(state(tensor()))
def test_any_pickle_gives_tensors_of_the_file_or_an_error(path: Path, pickled: bytes) -> None:
    check_any(pickled, path)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(programs)
def test_a_great_many_pickles(path: Path, pickled: bytes) -> None:
    check_any(pickled, path)
