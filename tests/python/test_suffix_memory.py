"""The suffix memory: what a model wrote before a restart or a crash is drafted from after it."""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_checkpoints import make_target
from gguf_files import llama_metadata, llama_tensors, write_gguf
from memory_writer import blob, contents

from forerun import LLM, AsyncLLM, EngineArgs, InvalidArgumentError, RequestOutput, SamplingParams
from forerun.checkpoints.convert import write_converted
from forerun.checkpoints.loading import resolve_model
from forerun.checkpoints.model_identity import ModelIdentity, identify
from forerun.engine.memory_file import MemoryFile
from forerun.engine.suffix_memory import SuffixMemory
from forerun.tools.cli import main

MODEL = ModelIdentity("tiny", "1" * 32)
# The drafts depend on no measured time.
SUFFIX = {"method": "suffix", "adaptive": False}


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


def task(number: int, salt: str = "", **params: Any) -> tuple[Any, SamplingParams]:
    """A prompt whose output is random text, which nothing but memory can draft."""
    prompt: Any = {"prompt_token_ids": [5 + number, 9, 11]}
    if salt:
        prompt["cache_salt"] = salt
    settled = {"max_tokens": 48, "seed": number, "ignore_eos": True, "temperature": 1.0, **params}
    return prompt, SamplingParams(**settled)


def ask(llm: LLM, number: int, salt: str = "", **params: Any) -> RequestOutput:
    """A task's output."""
    return llm.generate(*task(number, salt, **params), use_tqdm=False)[0]


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
    for number in (1, 2, 3, 2, 1):
        ask(llm, number)
    close(llm)
    shutil.copy(memory, tmp_path / "kept")
    before = [ask(llm, number) for number in (1, 2, 3)]
    for number, expected in zip((1, 2, 3), before, strict=True):
        shutil.copy(tmp_path / "kept", memory)
        after = ask(restarted := load(tiny_dir, memory), number)
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


def fail_at_the_third_token(output: list[int], logits: Any) -> Any:
    if len(output) > 2:
        raise RuntimeError("on purpose")
    return logits


def test_only_whole_outputs_of_requests_that_draft_are_kept(tiny_dir: Path, tmp_path: Path) -> None:
    llm = load(tiny_dir, tmp_path / "memory")
    whole = ask(llm, 1, n=2)
    ask(llm, 2, speculative=False)
    ask(llm, 3, max_tokens=1)
    failed = ask(llm, 4, logits_processors=[fail_at_the_third_token])
    assert failed.outputs[0].finish_reason == "error"
    with llm.stream([5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True)) as stream:
        next(stream)
    close(llm)
    file = MemoryFile(tmp_path / "memory")
    kept = {tokens for _, tokens, _ in contents(file)}
    file.close()
    assert kept == {tuple(output.token_ids) for output in whole.outputs}


class Engine:
    """Takes what is read back."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.outputs: list[tuple[str, bytes]] = []
        self.has_last = False

    def restore_outputs(self, outputs: list[tuple[str, bytes]], is_last: bool) -> bool:
        assert not self.has_last
        self.outputs += outputs
        self.has_last = is_last
        return len(self.outputs) < self.most


def test_the_newest_outputs_come_first_and_frequent_ones_several_times(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "memory", MODEL)
    file.add([("a\0b", blob(1, 2))] * 3 + [("", blob(3, 4))] * 100)
    file.add(("", blob(i, i)) for i in range(1000))
    file.close()
    for most in (10**6, 300):
        engine = Engine(most)
        memory = SuffixMemory(tmp_path / "memory", MODEL, 2000)
        memory.start(engine)  # type: ignore[arg-type]
        assert memory.wait_restored(60)
        memory.close()
        expected = [("", blob(i, i)) for i in reversed(range(1000))]
        expected += [("", blob(3, 4))] * 8 + [("a\0b", blob(1, 2))] * 3
        if most == 300:
            assert engine.outputs == expected[: len(engine.outputs)]
            assert 300 <= len(engine.outputs) < 1000, "no more was wanted"
        else:
            assert engine.outputs == expected
            assert engine.has_last


def test_the_option_reaches_the_model_from_a_command_line(tiny_dir: Path, tmp_path: Path) -> None:
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    words = ["--model", str(tiny_dir), "--spec-method", "suffix", "--suffix-memory", "memory"]
    arguments = EngineArgs.from_cli_args(parser.parse_args(words))
    assert arguments.suffix_memory == "memory"
    arguments.suffix_memory = tmp_path / "memory"
    close(LLM.from_engine_args(arguments))
    assert (tmp_path / "memory").exists()


def test_asynchronous_requests_are_kept_and_drafted_from(tiny_dir: Path, tmp_path: Path) -> None:
    async def run(streamed: bool) -> RequestOutput:
        options = {"suffix_memory": tmp_path / "memory", "speculative_config": SUFFIX}
        async with AsyncLLM(tiny_dir, num_threads=1, **options) as llm:
            assert llm._memory is not None
            assert llm._memory.wait_restored(60)
            if not streamed:
                return await llm.generate(*task(1))
            async for delta in llm.stream(*task(1)):
                last = delta.output
            assert last is not None
            return last

    outputs = [asyncio.run(run(streamed)) for streamed in (True, False, True)]
    assert [acceptance(output) > 0.5 for output in outputs] == [False, True, True]
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    file = MemoryFile(tmp_path / "memory")
    assert contents(file) == [("", tuple(outputs[0].outputs[0].token_ids), 3)]
    file.close()


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


def test_a_forked_process_ends_and_leaves_the_file_to_its_parent(
    tiny_dir: Path, tmp_path: Path
) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from test_suffix_memory import ask, close, load\n"
        f"llm = load(Path({str(tiny_dir)!r}), Path({str(tmp_path / 'memory')!r}))\n"
        "ask(llm, 1)\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        "ask(llm, 2); close(llm)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    file = MemoryFile(tmp_path / "memory")
    assert len(contents(file)) == 2
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
        outputs = [ask(llm, number) for number in (1, 1, 2)]
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


def test_a_gguf_file_is_the_same_model_however_it_is_converted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors())
    kept, floats = (
        write_converted(path, tmp_path / str(keep), progress=False, keep_types=keep)
        for keep in (True, False)
    )
    assert identify(path, kept) == identify(path, floats)
    moved = tmp_path / "moved.gguf"
    shutil.copy(path, moved)
    assert identify(moved, kept).fingerprint == identify(path, kept).fingerprint
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    moved.write_bytes(data)
    assert identify(moved, kept).fingerprint != identify(path, kept).fingerprint


def test_a_pickled_model_is_its_own_files(tmp_path: Path) -> None:
    pickled = make_target().checkpoint.stored_as(file="pytorch_model.bin").write(tmp_path / "model")
    converted = resolve_model(pickled)
    assert converted != pickled
    assert identify(pickled, converted) == identify(pickled, pickled)


@pytest.mark.parametrize("method", [None, {"method": "ngram", "num_speculative_tokens": 3}])
def test_a_method_that_does_not_learn_has_no_memory(
    method: dict[str, Any] | None, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="suffix_memory"):
        LLM("missing", suffix_memory=tmp_path / "memory", speculative_config=method)
    assert not (tmp_path / "memory").exists()


def test_texts_added_ahead_are_drafted_from(tiny_dir: Path, tmp_path: Path) -> None:
    llm = load(tiny_dir, None)
    output = ask(llm, 1)
    memory = tmp_path / "memory"
    file = MemoryFile(memory, identify(tiny_dir, tiny_dir))
    file.add([("", blob(*output.outputs[0].token_ids))])
    file.close()
    assert acceptance(output) < 0.2
    assert acceptance(ask(load(tiny_dir, memory), 1)) > 0.5


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
