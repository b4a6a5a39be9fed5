"""The file of a suffix memory: what it keeps, refuses and survives, and the command for it."""

from __future__ import annotations

import json
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import memory_writer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_writer import blob, contents

from forerun import InvalidArgumentError
from forerun.checkpoints.model_identity import ModelIdentity
from forerun.engine.memory_file import MemoryFile
from forerun.server.tenants import tenant_of_key
from forerun.text.tokenizer import Tokenizer
from forerun.tools.cli import main

MODEL = ModelIdentity("tiny", "1" * 32)


def kill_writers(memory: Path, times: int) -> None:
    """Kills a process that writes at random moments: nothing but its last outputs may be lost."""
    moments = random.Random(1)
    number = 0
    for _ in range(times):
        command = [sys.executable, memory_writer.__file__, str(memory), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            certain = int(writer.stdout.readline())
            time.sleep(moments.random() * 0.2)
            writer.kill()
            certain = max([certain, *map(int, writer.stdout.read().splitlines())])
        with sqlite3.connect(memory) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        file = MemoryFile(memory, memory_writer.IDENTITY)
        rows = file.newest(None, 10**9)
        file.close()
        numbers = [int(np.frombuffer(row.tokens[:4], "<i4")[0]) for row in rows]
        assert all(
            row.tokens == memory_writer.tokens_of(n) for row, n in zip(rows, numbers, strict=True)
        )
        assert numbers == list(range(numbers[0], numbers[-1] - 1, -1)), "none between is missing"
        assert numbers[0] + 1 >= certain
        assert len(numbers) >= min(numbers[0] + 1, memory_writer.MOST * 15 // 16)
        number = numbers[0] + 1
    assert number > 100 * times


def test_a_writer_that_is_killed_loses_only_its_last_outputs(tmp_path: Path) -> None:
    kill_writers(tmp_path / "memory", 10)


@pytest.mark.long
def test_a_writer_that_is_killed_200_times_loses_only_its_last_outputs(tmp_path: Path) -> None:
    kill_writers(tmp_path / "memory", 200)


def other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def newer_format(path: Path) -> None:
    MemoryFile(path, MODEL).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"not a database, but long enough to have a header" * 9),
        other_database,
        newer_format,
    ],
)
def test_what_is_no_suffix_memory_is_refused_and_left_alone(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    for identity in (MODEL, None):
        with pytest.raises(InvalidArgumentError, match="suffix_memory"):
            MemoryFile(path, identity)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="No such file"):
        MemoryFile(tmp_path / "missing" / "memory", MODEL)
    with pytest.raises(InvalidArgumentError, match="No such file"):
        MemoryFile(tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    MemoryFile(tmp_path / "memory", MODEL).close()
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o600


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "b:1", "b:2"]), st.integers(0, 30))),
    ),
)
def test_the_file_holds_the_newest_outputs_of_each_owner_by_last_use(
    most: int, batches: list[list[tuple[str, int]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = MemoryFile(Path(folder) / "memory", MODEL, most)
        expected: dict[tuple[str, int], int] = {}
        for batch in batches:
            file.add((tenant, blob(value, value)) for tenant, value in batch)
            for key in batch:
                expected[key] = expected.pop(key, 0) + 1
            goal = most - most // 16 if len(expected) > most else most
            while len(expected) > goal:
                owners = [tenant[0] for tenant, _ in expected]
                largest = max("ab", key=owners.count)
                del expected[next(key for key in expected if key[0][0] == largest)]
        newest = [
            (tenant, (value, value), num_uses)
            for (tenant, value), num_uses in reversed(expected.items())
        ]
        assert contents(file) == newest
        pages = []
        before = None
        while page := file.newest(before, 3):
            pages += page
            before = page[-1].last_use
        assert pages == file.newest(None, 10**9)
        file.close()


def test_the_file_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forerun.engine.memory_file._MAX_TOKENS", 100_000)
    file = MemoryFile(tmp_path / "memory", MODEL)
    for i in range(300):
        file.add([("", blob(*[i] * 2000))])
    assert next(tokens[0] for _, tokens, _ in contents(file)) == 299
    assert 90_000 <= sum(len(tokens) for _, tokens, _ in contents(file)) <= 100_000
    file.close()
    assert (tmp_path / "memory").stat().st_size < 700_000


def test_an_owner_displaces_its_own_outputs_however_much_it_writes(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "memory", MODEL, 160)
    file.add([("quiet", blob(i, i)) for i in range(20)])
    for i in range(300):
        file.add([("loud", blob(i, i)), (f"loud:{i}", blob(i, i))])
    kept = [tenant.partition(":")[0] for tenant, _, _ in contents(file)]
    assert kept.count("quiet") == 20
    assert 130 <= kept.count("loud") <= 140
    file.close()


def test_several_processes_may_open_a_new_file_at_once_and_share_it(tmp_path: Path) -> None:
    path = tmp_path / "memory"

    def write(writer: int) -> None:
        file = MemoryFile(path, MODEL)
        for i in range(20):
            file.add([(str(writer), blob(writer, i))])
        file.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    file = MemoryFile(path)
    assert sorted(tokens for _, tokens, _ in contents(file)) == [
        (writer, i) for writer in range(8) for i in range(20)
    ]
    file.close()


def test_a_file_may_be_cleared_while_another_process_uses_it(tmp_path: Path) -> None:
    writer = MemoryFile(tmp_path / "memory", MODEL)
    writer.add([("a", blob(1, 2)), ("b", blob(3, 4))])
    other = MemoryFile(tmp_path / "memory")
    assert other.clear("a") == 1
    assert contents(writer) == [("b", (3, 4), 1)]
    assert other.clear() == 1
    writer.add([("a", blob(5, 6))])
    assert contents(other) == [("a", (5, 6), 1)]
    assert other.clear("missing") == 0
    writer.close()
    other.close()


def test_the_command_adds_texts_shows_and_clears(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer(tiny_dir)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join([json.dumps({"text": "a text"}), json.dumps("another text"), ""]))
    memory = str(tmp_path / "memory")
    assert main(["memory", "add", memory, str(tiny_dir), str(texts)]) == 0
    assert main(["memory", "add", memory, str(tiny_dir), str(texts), "--tenant", "a"]) == 0
    assert "2 texts added" in capsys.readouterr().out
    assert main(["memory", "show", memory]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("model: out ")
    assert "4 outputs" in shown
    assert "tenant 'a': 2 outputs" in shown
    file = MemoryFile(Path(memory))
    ids = tokenizer.encode("another text", add_special_tokens=False)
    assert contents(file)[0] == ("a", tuple(ids), 1)
    file.close()
    assert main(["memory", "clear", memory, "--tenant", "a"]) == 0
    assert capsys.readouterr().out == "2 outputs forgotten\n"
    keyed = ["--api-key", "one", "two"]
    assert main(["memory", "add", memory, str(tiny_dir), str(texts), *keyed]) == 0
    assert main(["memory", "add", memory, str(tiny_dir), str(texts), *keyed, "--tenant", "a"]) == 0
    assert main(["memory", "clear", memory, "--api-key", "one", "--tenant", "a"]) == 0
    assert main(["memory", "clear", memory, "--api-key", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["2 outputs forgotten", "4 outputs forgotten"]
    file = MemoryFile(Path(memory))
    assert {tenant for tenant, _, _ in contents(file)} == {"", tenant_of_key("one")}
    file.close()
    assert main(["memory", "clear", memory]) == 0
    assert (
        b"".join(map(lambda token: token.to_bytes(4, "little"), ids))
        not in Path(memory).read_bytes()
    )


@pytest.mark.parametrize("line", ["[1]", '{"prompt": "a"}', "{", "3"])
def test_a_line_that_is_no_text_is_named(
    line: str, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(f'"a text"\n{line}\n')
    assert main(["memory", "add", str(tmp_path / "memory"), str(tiny_dir), str(texts)]) == 2
    assert "texts.jsonl:2" in capsys.readouterr().err
    assert main(["memory", "show", str(tmp_path / "other")]) == 2
