"""JSON that others wrote: a limit of depth in every file, and typed errors for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from forerun import LLM, CheckpointError, _core
from forerun.checkpoints.inspection import inspect
from forerun.errors import InvalidArgumentError
from forerun.util.json_files import parse_json, read_json_object

DEEP = "[" * 200_000 + "]" * 200_000
DEEP_OBJECTS = '{"a":' * 200_000 + "1" + "}" * 200_000


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_depth_is_counted_outside_of_strings() -> None:
    texts = {"": 0, "1": 0, "[]": 1, '{"[[": ["\\"[["]}': 2, "[[],[[]]]": 3, "]]][": 1, '"[[': 0}
    assert {text: _core.json_depth(text.encode()) for text in texts} == texts


@pytest.mark.parametrize("depth", [1, 5, _core.MAX_JSON_DEPTH])
def test_real_nesting_is_parsed(depth: int) -> None:
    assert json.dumps(parse_json(nested(depth), "x")).replace(" ", "") == nested(depth)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(_core.MAX_JSON_DEPTH + 1), "129 levels deep"),
        (DEEP, "200000 levels deep"),
        (DEEP_OBJECTS, "200000 levels deep"),
        (DEEP[:200_000], "200000 levels deep"),
        (b"", "cannot be parsed"),
        (b"\xff\xfe", "cannot be parsed"),
        ("9" * 5000, "cannot be parsed"),
        (r'{"a": "\ud83d"}', "cannot be parsed"),
        ('{"a": "\ud83d"}', "cannot be parsed"),
        ("{}{}", "cannot be parsed"),
    ],
)
def test_text_that_is_not_json_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        parse_json(text, "some.json")
    assert error.value.field == "some.json"
    with pytest.raises(InvalidArgumentError, match=message) as other:
        parse_json(text, "json", "a schema", InvalidArgumentError)
    assert type(other.value) is InvalidArgumentError


def test_a_byte_order_mark_and_a_pair_of_surrogates_are_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x") == {"a": "\N{GRINNING FACE}"}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "list").write_text("[]")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("directory", "missing", "list", "loop", "nul\0", "pipe", "device", "a" * 300):
        with pytest.raises(CheckpointError) as error:
            read_json_object(tmp_path / name)
        assert error.value.field == str(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [DEEP, DEEP_OBJECTS, nested(129)])
def test_deep_values_of_ignored_keys_are_refused(
    name: str, value: str, tiny_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    text = json.dumps({**json.loads((model / name).read_text()), "ignored": None})
    (model / name).write_text(text.replace('"ignored": null', f'"ignored": {value}'))
    with pytest.raises(CheckpointError, match="levels deep") as error:
        LLM(model)
    assert name in error.value.field
    if name == "config.json":
        with pytest.raises(CheckpointError, match="levels deep"):
            inspect(model)


@pytest.mark.parametrize("value", [DEEP, DEEP_OBJECTS])
def test_deep_headers_and_indices_are_refused(value: str, tiny_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    whole = (model / "model.safetensors").read_bytes()
    header = f'{{"__metadata__": {value}}}'.encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (LLM, inspect):
        with pytest.raises(CheckpointError):
            read(model)
    (model / "model.safetensors").unlink()
    (model / "shard.safetensors").write_bytes(whole)
    (model / "model.safetensors.index.json").write_text(f'{{"weight_map": {{}}, "a": {value}}}')
    for read in (LLM, inspect):
        with pytest.raises(CheckpointError, match="levels deep"):
            read(model)
