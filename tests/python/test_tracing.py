"""Traces of the engine's steps: those of FORERUN_TRACE and those of start_profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forerun import LLM, EngineBusyError, InvalidArgumentError, SamplingParams

PROMPTS = ["the low the low the", "a slow the low"]
PARTS = ["draft", "plan", "forward", "verify", "commit"]
NGRAM: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def steps_of(path: Path) -> list[dict[str, Any]]:
    """The steps of a trace, each with its parts by name; the file must be complete JSON."""
    steps: list[dict[str, Any]] = []
    for event in json.loads(path.read_text())["traceEvents"]:
        if event["ph"] != "X":
            continue
        if event["name"] == "step":
            steps.append({"span": event, "parts": {}, **event["args"]})
        else:
            steps[-1]["parts"][event["name"]] = event
    return steps


def make_llm(tiny_dir: Path, **options: Any) -> LLM:
    return LLM(tiny_dir, num_threads=1, speculative_config={**NGRAM, "adaptive": False}, **options)


def test_a_trace_has_every_step_and_counts_what_the_metrics_count(
    tiny_dir: Path, tmp_path: Path
) -> None:
    llm = make_llm(tiny_dir, profiler_config={"profiler": "torch", "torch_profiler_dir": tmp_path})
    llm.start_profile()
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    llm.stop_profile()
    (path,) = tmp_path.iterdir()
    steps = steps_of(path)
    metrics = llm.metrics()
    assert [step["step"] for step in steps] == list(range(1, metrics.num_steps + 1))
    assert all(list(step["parts"]) == PARTS for step in steps)
    for step in steps:
        end = step["span"]["ts"] + step["span"]["dur"]
        for part in step["parts"].values():
            assert step["span"]["ts"] <= part["ts"] <= part["ts"] + part["dur"] <= end + 1e-6
        rows = sum(request["rows"] for request in step["requests"])
        assert step["parts"]["forward"]["args"] == {"rows": rows}
    requests = [request for step in steps for request in step["requests"]]
    assert sum(request["emitted_tokens"] for request in requests) == 24
    assert sum(r["accepted_tokens"] for r in requests) == metrics.spec_decode.num_accepted_tokens
    assert sum(r["draft_tokens"] for r in requests) == metrics.spec_decode.num_draft_tokens > 0
    assert {str(request["id"]) for request in requests} == {o.request_id for o in outputs}


def test_tracing_changes_no_token(tiny_dir: Path, tmp_path: Path) -> None:
    config = {"profiler": "torch", "torch_profiler_dir": str(tmp_path)}
    llm = make_llm(tiny_dir, profiler_config=config)
    expected = [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    llm.start_profile()
    assert [o.outputs for o in llm.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_file_is_complete_after_an_interrupt(
    error: type[BaseException], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setenv("FORERUN_TRACE", str(path))
    llm = make_llm(tiny_dir)

    def interrupt(token_ids: list[int], logits: Any) -> None:
        if len(token_ids) == 2:
            raise error

    params = SamplingParams(max_tokens=4, speculative=False, logits_processors=[interrupt])
    with pytest.raises(error):
        llm.generate(PROMPTS[0], params, use_tqdm=False)
    *whole, failed = steps_of(path)
    assert failed["failed"] is True
    assert list(failed["parts"]) == PARTS[:-1]
    assert all(list(step["parts"]) == PARTS and "failed" not in step for step in whole)
    llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    assert list(steps_of(path)[-1]["parts"]) == PARTS


def test_a_request_that_fails_alone_fails_no_step(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setenv("FORERUN_TRACE", str(path))

    def fail(token_ids: list[int], logits: Any) -> None:
        raise ValueError("mine")

    params = [SamplingParams(max_tokens=4, logits_processors=[fail]), GREEDY]
    outputs = make_llm(tiny_dir).generate(PROMPTS, params, use_tqdm=False)
    assert outputs[0].outputs[0].finish_reason == "error"
    steps = steps_of(path)
    assert not any("failed" in step for step in steps)
    assert [len(step["requests"]) for step in steps[:2]] == [2, 1]


def test_each_engine_of_a_process_has_a_file_of_its_own(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORERUN_TRACE", str(tmp_path / "t.json"))
    llms = [make_llm(tiny_dir) for _ in range(2)]
    for llm in llms:
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    monkeypatch.delenv("FORERUN_TRACE")
    make_llm(tiny_dir)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert len({len(steps_of(path)) for path in files}) == 1


def test_a_trace_that_could_not_be_written_does_not_count(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "later" / "t.json"
    monkeypatch.setenv("FORERUN_TRACE", str(path))
    with pytest.raises(InvalidArgumentError, match="FORERUN_TRACE"):
        make_llm(tiny_dir)
    path.parent.mkdir()
    make_llm(tiny_dir)
    assert list(path.parent.iterdir()) == [path]


def test_start_profile_names_the_file_and_begins_anew(tiny_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    config = {"profiler": "torch", "torch_profiler_dir": str(directory)}
    llm = make_llm(tiny_dir, profiler_config=config)
    assert not directory.exists()
    for prefix in ("warm-up", "run_2"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        llm.start_profile(prefix)
        llm.generate(PROMPTS[0], SamplingParams(max_tokens=1), use_tqdm=False)
        llm.stop_profile()
    llm.stop_profile()  # none is written: nothing happens
    names = sorted(path.name.split(".")[0] for path in directory.iterdir())
    assert names == ["run_2", "warm-up"]
    assert all(len(steps_of(path)) == 1 for path in directory.iterdir())


def test_a_second_start_profile_is_ignored(
    tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"profiler": "torch", "torch_profiler_dir": str(tmp_path)}
    llm = make_llm(tiny_dir, profiler_config=config)
    llm.start_profile()
    llm.start_profile("other")
    assert "start_profile is ignored: a trace is being written already" in caplog.text
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    (path,) = tmp_path.iterdir()
    assert steps_of(path)


def test_a_hook_may_not_start_or_stop_a_trace(tiny_dir: Path, tmp_path: Path) -> None:
    config = {"profiler": "torch", "torch_profiler_dir": str(tmp_path)}
    llm = make_llm(tiny_dir, profiler_config=config)
    refused = []

    def trace(token_ids: list[int], logits: Any) -> None:
        for call in (llm.start_profile, llm.stop_profile):
            with pytest.raises(EngineBusyError):
                call()
            refused.append(call)

    params = SamplingParams(max_tokens=1, logits_processors=[trace])
    llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert refused


def test_a_trace_that_cannot_be_written_is_one_error(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("FORERUN_TRACE", str(blocked / "trace.json"))
    with pytest.raises(InvalidArgumentError, match="a file that can be written") as error:
        make_llm(tiny_dir)
    assert error.value.field == "FORERUN_TRACE"
    monkeypatch.delenv("FORERUN_TRACE")
    config = {"profiler": "torch", "torch_profiler_dir": str(blocked / "traces")}
    llm = make_llm(tiny_dir, profiler_config=config)
    with pytest.raises(InvalidArgumentError, match=r"torch_profiler_dir: got .*can be written"):
        llm.start_profile()


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ("torch", ["profiler_config"]),
        ({"profiler": "cuda"}, ["profiler"]),
        ({"profiler": "torch"}, ["torch_profiler_dir"]),
        ({"profiler": "torch", "torch_profiler_dir": "s3://bucket"}, ["torch_profiler_dir"]),
        ({"torch_profiler_dir": "traces"}, ["torch_profiler_dir"]),
        ({"profiler": "x", "max_iterations": 3, "dir": 1}, ["max_iterations", "dir", "profiler"]),
    ],
)
def test_profiler_configs_that_mean_nothing_here_are_refused(
    config: Any, fields: list[str]
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM("no model", profiler_config=config)
    assert [problem.field for problem in error.value.problems] == fields


def test_start_profile_needs_a_config_and_a_plain_prefix(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="profiler_config: got None"):
        make_llm(tiny_dir, profiler_config=None).start_profile()
    config = {"profiler": "torch", "torch_profiler_dir": str(tmp_path)}
    llm = make_llm(tiny_dir, profiler_config=config)
    for prefix in ("../x", "", "a b", 3):
        with pytest.raises(InvalidArgumentError, match="profile_prefix"):
            llm.start_profile(prefix)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="max_iterations"):
        llm.start_profile(max_iterations=4)  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())
