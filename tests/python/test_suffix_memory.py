"""The suffix memory: what a model wrote before a restart or a crash is drafted from after it."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import memory_writer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun import LLM, InvalidArgumentError, RequestOutput, SamplingParams
from forerun.checkpoints.model_identity import ModelIdentity, identify
from forerun.engine.memory_file import MemoryFile
from forerun.tools.cli import main

MODEL = ModelIdentity("tiny", "1" * 32)
# The drafts depend on no measured time.
SUFFIX = {"method": "suffix", "adaptive": False}


def blob(*tokens: int) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def contents(file: MemoryFile) -> list[tuple[str, tuple[int, ...], int]]:
    """What a file holds, the newest first."""
    rows = file.newest(None, 10**9)
    return [
        (row.tenant, tuple(np.frombuffer(row.tokens, "<i4").tolist()), row.num_uses) for row in rows
    ]


def load(model: Path, memory: Path | None, **options: Any) -> LLM:
    options = {"speculative_config": SUFFIX, "num_threads": 1, **options}
    llm = LLM(model, suffix_memory=memory, **options)
    if memory is not None:
        assert llm._memory is not None
        assert llm._memory.wait_restored(60)
    return llm


def close(llm: LLM) -> None:
    assert llm._memory is not None
    llm._memory.close()


def ask(llm: LLM, task: int, salt: str = "", **params: Any) -> RequestOutput:
    """A task's output: random text, which nothing but memory can draft."""
    prompt: Any = {"prompt_token_ids": [5 + task, 9, 11]}
    if salt:
        prompt["cache_salt"] = salt
    settled = SamplingParams(
        **{"max_tokens": 48, "seed": task, "ignore_eos": True, "temperature": 1.0, **params}
    )
    return llm.generate(prompt, settled, use_tqdm=False)[0]


def acceptance(output: RequestOutput) -> float:
    """Accepted draft tokens per generated token."""
    assert output.metrics is not None
    metrics = output.metrics
    return metrics.spec_decode.num_accepted_tokens / metrics.num_generated_tokens


def test_the_first_request_after_a_restart_is_accepted_as_before(
    tiny_dir: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    llm = load(tiny_dir, memory)
    for task in (1, 2, 3, 2, 1):
        ask(llm, task)
    close(llm)
    shutil.copy(memory, tmp_path / "kept")
    before = [ask(llm, task) for task in (1, 2, 3)]
    for task, expected in zip((1, 2, 3), before, strict=True):
        shutil.copy(tmp_path / "kept", memory)
        after = ask(restarted := load(tiny_dir, memory), task)
        close(restarted)
        assert after.outputs[0].token_ids == expected.outputs[0].token_ids
        assert acceptance(expected) > 0.5
        assert acceptance(after) == pytest.approx(acceptance(expected), rel=0.02)
    assert acceptance(ask(load(tiny_dir, None), 1)) < 0.2, "without memory it is not"


def test_outputs_survive_a_killed_process(tiny_dir: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    script = (
        "import sys, time; from pathlib import Path; from forerun.engine.memory_file import "
        "MemoryFile\nfrom test_suffix_memory import ask, load\n"
        "llm = load(Path(sys.argv[1]), path := Path(sys.argv[2]))\n"
        "ask(llm, 1)\n"
        "while not MemoryFile(path).newest(None, 1): time.sleep(0.01)\n"
        "print('kept', flush=True); ask(llm, 2); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tiny_dir), str(memory)]
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"kept\n"
        process.kill()
    assert acceptance(ask(load(tiny_dir, memory), 1)) > 0.5


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


def test_tenants_learn_from_their_own_outputs_only(tiny_dir: Path, tmp_path: Path) -> None:
    llm = load(tiny_dir, tmp_path / "memory")
    ask(llm, 1, "a")
    assert acceptance(ask(llm, 1, "b")) < 0.2
    close(llm)
    for salt in ("", "c"):
        restarted = load(tiny_dir, tmp_path / "memory")
        assert acceptance(ask(restarted, 1, salt)) < 0.2
        close(restarted)
    assert acceptance(ask(load(tiny_dir, tmp_path / "memory"), 1, "a")) > 0.5


def test_only_whole_outputs_of_requests_that_draft_are_kept(tiny_dir: Path, tmp_path: Path) -> None:
    llm = load(tiny_dir, tmp_path / "memory")
    whole = ask(llm, 1, n=2)
    ask(llm, 2, speculative=False)
    ask(llm, 3, max_tokens=1)
    with llm.stream([5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True)) as stream:
        next(stream)
    close(llm)
    file = MemoryFile(tmp_path / "memory")
    kept = {tokens for _, tokens, _ in contents(file)}
    file.close()
    assert kept == {tuple(output.token_ids) for output in whole.outputs}


def test_requests_run_while_the_file_is_read_back(tiny_dir: Path, tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "memory", identify(tiny_dir, tiny_dir))
    generator = np.random.default_rng(1)
    outputs = generator.integers(0, 200, (3000, 200), dtype="<i4")
    file.add(("", row.tobytes()) for row in outputs)
    file.close()
    llm = LLM(tiny_dir, suffix_memory=tmp_path / "memory", speculative_config=SUFFIX)
    assert llm._memory is not None
    num_before = 0
    while not llm._memory.wait_restored(0):
        ask(llm, 1, max_tokens=4)
        num_before += 1
    assert num_before > 0
    close(llm)


def test_the_last_outputs_are_written_when_a_model_is_dropped_or_the_process_ends(
    tiny_dir: Path, tmp_path: Path
) -> None:
    llm = load(tiny_dir, tmp_path / "dropped")
    output = ask(llm, 1)
    del llm
    gc.collect()
    folder = str(Path(__file__).parent)
    script = (
        f"import sys; sys.path.append({folder!r}); from pathlib import Path\n"
        "from test_suffix_memory import ask, load\n"
        f"llm = load(Path({str(tiny_dir)!r}), Path({str(tmp_path / 'ended')!r}))\n"
        "ask(llm, 1)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    for name in ("dropped", "ended"):
        file = MemoryFile(tmp_path / name)
        assert contents(file) == [("", tuple(output.outputs[0].token_ids), 1)]
        file.close()


def test_a_memory_does_not_keep_its_engine_or_its_thread_alive(
    tiny_dir: Path, tmp_path: Path
) -> None:
    before = threading.active_count()
    llms = [load(tiny_dir, tmp_path / "memory") for _ in range(3)]
    assert threading.active_count() == before + 3
    del llms
    gc.collect()
    assert threading.active_count() == before


def test_a_file_that_cannot_be_written_costs_no_request(
    tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = load(tiny_dir, tmp_path / "memory")
    connection = sqlite3.connect(tmp_path / "memory")
    connection.execute("DROP TABLE outputs")
    connection.close()
    with caplog.at_level(logging.WARNING, "forerun"):
        outputs = [ask(llm, task) for task in (1, 1, 2)]
        close(llm)
    assert acceptance(outputs[1]) > 0.5, "it still learns in memory"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "outputs are not kept: suffix_memory" in warnings[0].message


def test_a_damaged_file_is_not_read_back(
    tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MemoryFile(tmp_path / "memory", identify(tiny_dir, tiny_dir))
    file.add([("", blob(1, 2, 10**6))])
    file.close()
    with caplog.at_level(logging.WARNING, "forerun"):
        ask(load(tiny_dir, tmp_path / "memory"), 1)
    assert "past outputs were not read back" in caplog.text


def test_another_models_file_is_refused_by_name(tiny_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    weights = next(other.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(b"\0" * 100)
    close(load(tiny_dir, tmp_path / "memory"))
    with pytest.raises(InvalidArgumentError, match=r"of the model other .* this one is of out "):
        LLM(other, suffix_memory=tmp_path / "memory", speculative_config=SUFFIX)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_dir, moved)
    close(load(moved, tmp_path / "memory"))


@pytest.mark.parametrize("method", [None, {"method": "ngram", "num_speculative_tokens": 3}])
def test_a_method_that_does_not_learn_has_no_memory(
    method: dict[str, Any] | None, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="suffix_memory"):
        LLM("missing", suffix_memory=tmp_path / "memory", speculative_config=method)
    assert not (tmp_path / "memory").exists()


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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=5)),
)
def test_the_file_holds_the_newest_outputs_by_last_use(
    most: int, batches: list[list[tuple[str, int]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = MemoryFile(Path(folder) / "memory", MODEL, most)
        expected: dict[tuple[str, int], int] = {}
        for batch in batches:
            file.add((tenant, blob(value, value)) for tenant, value in batch)
            for key in batch:
                expected[key] = expected.pop(key, 0) + 1
            if len(expected) > most:
                for key in list(expected)[: len(expected) - (most - most // 16)]:
                    del expected[key]
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


def test_the_command_adds_texts_shows_and_clears(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = load(tiny_dir, None)
    text = llm.get_tokenizer().decode(ask(llm, 1, max_tokens=24).outputs[0].token_ids)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join([json.dumps({"text": text}), json.dumps("another text"), ""]))
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
    ids = llm.get_tokenizer().encode("another text", add_special_tokens=False)
    assert contents(file)[0] == ("a", tuple(ids), 1)
    file.close()
    assert main(["memory", "clear", memory, "--tenant", "a"]) == 0
    assert capsys.readouterr().out == "2 outputs forgotten\n"
    assert main(["memory", "clear", memory]) == 0
    assert (
        b"".join(map(lambda token: token.to_bytes(4, "little"), ids))
        not in Path(memory).read_bytes()
    )


def test_texts_added_ahead_are_drafted_from(tiny_dir: Path, tmp_path: Path) -> None:
    llm = load(tiny_dir, None)
    output = ask(llm, 1)
    memory = tmp_path / "memory"
    file = MemoryFile(memory, identify(tiny_dir, tiny_dir))
    file.add([("", blob(*output.outputs[0].token_ids))])
    file.close()
    assert acceptance(output) < 0.2
    assert acceptance(ask(load(tiny_dir, memory), 1)) > 0.5


@pytest.mark.parametrize("line", ["[1]", '{"prompt": "a"}', "{", "3"])
def test_a_line_that_is_no_text_is_named(
    line: str, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(f'"a text"\n{line}\n')
    assert main(["memory", "add", str(tmp_path / "memory"), str(tiny_dir), str(texts)]) == 2
    assert "texts.jsonl:2" in capsys.readouterr().err
    assert main(["memory", "show", str(tmp_path / "other")]) == 2


def test_generate_keeps_its_output(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "memory"
    run = functools.partial(
        main,
        ["generate", str(tiny_dir), "abc", "--max-tokens", "9", "--suffix-memory", str(memory)],
    )
    assert run() == 0
    gc.collect()
    file = MemoryFile(memory)
    assert len(contents(file)) == 1
    file.close()
    capsys.readouterr()
