"""The offline interface, on a tiny random model."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun import (
    LLM,
    CheckpointError,
    InvalidArgumentError,
    SamplingParams,
    SpeculativeConfig,
    TokensPrompt,
)

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = ["hello", "the low the low the", "12345 12345", "é🤗"]
MESSAGES = [{"role": "user", "content": "low"}]


@pytest.fixture(scope="module")
def shared(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, speculative_config={"method": "suffix"}, check_invariants=True)


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """The engine, which must be clean and serving after every test."""
    yield shared
    shared.reset_caches()
    assert shared.metrics().num_held_blocks == 0
    output = shared.generate("hello", GREEDY, use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 24


def ids(outputs: list[forerun.RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_every_form_of_a_prompt_gives_the_same_tokens(llm: LLM) -> None:
    tokens = llm.get_tokenizer().encode("hello")
    forms: list[Any] = [
        "hello",
        ["hello"],
        {"prompt": "hello"},
        tokens,
        [tokens],
        np.array(tokens, np.int64),
        [np.array(tokens)],
        torch.tensor(tokens),
        TokensPrompt(prompt_token_ids=tokens),
        ({"prompt_token_ids": np.array(tokens)},),
    ]
    expected = ids(llm.generate("hello", GREEDY, use_tqdm=False))
    for form in forms:
        assert ids(llm.generate(form, GREEDY, use_tqdm=False)) == expected


def test_outputs_are_in_the_order_of_the_prompts_with_parameters_one_each(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (9, 3, 12, 5)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [len(tokens) for tokens in ids(outputs)] == [9, 3, 12, 5]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    alone = [llm.generate(p, q, use_tqdm=False)[0] for p, q in zip(PROMPTS, params, strict=True)]
    assert ids(outputs) == ids(alone)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "adaptive": False},
        SpeculativeConfig(method="suffix", adaptive=False),
    ],
)
def test_speculation_changes_no_token(llm: LLM, tiny_dir: Path, config: Any) -> None:
    drafting = LLM(tiny_dir, speculative_config=config, num_threads=1, check_invariants=True)
    plain = LLM(tiny_dir)
    for params in (GREEDY, SamplingParams(seed=7, max_tokens=60, temperature=0.8, top_p=0.9)):
        expected = plain.generate(PROMPTS, params, use_tqdm=False)
        outputs = drafting.generate(PROMPTS, params, use_tqdm=False)
        assert ids(outputs) == ids(expected)
        assert [o.outputs[0].text for o in outputs] == [o.outputs[0].text for o in expected]
    assert drafting.metrics().spec_decode.num_drafts > 0


@pytest.mark.parametrize("method", ["rejection", "block"])
def test_other_acceptance_methods_change_no_greedy_token_and_sample_others(
    tiny_dir: Path, method: str
) -> None:
    config = {"method": "suffix", "acceptance_method": method, "adaptive": False}
    drafting = LLM(tiny_dir, speculative_config=config, num_threads=1, check_invariants=True)
    plain = LLM(tiny_dir)
    expected = plain.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert ids(drafting.generate(PROMPTS, GREEDY, use_tqdm=False)) == ids(expected)
    params = SamplingParams(seed=7, max_tokens=60, temperature=0.5, ignore_eos=True)
    runs = []
    for _ in range(2):
        drafting.reset_caches()
        runs.append(ids(drafting.generate(PROMPTS, params, use_tqdm=False)))
    assert runs[0] == runs[1]
    assert runs[0] != ids(plain.generate(PROMPTS, params, use_tqdm=False))
    assert drafting.metrics().spec_decode.num_accepted_tokens > 0


def test_a_request_may_opt_out_of_speculation(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, speculative=False)
    output = llm.generate("the low the low the", params, use_tqdm=False)[0]
    assert output.metrics is not None
    assert output.metrics.spec_decode.num_drafts == 0
    assert output.metrics.tokens_per_target_pass == 1.0


def test_streamed_text_adds_up_to_the_output(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    texts, tokens = [""] * 4, [[] for _ in PROMPTS]  # type: ignore[var-annotated]
    finished = {}
    for delta in llm.stream(PROMPTS, GREEDY):
        texts[delta.index] += delta.text
        tokens[delta.index] += delta.token_ids
        if delta.finished:
            finished[delta.index] = delta.output
    assert tokens == ids(expected)
    assert texts == [output.outputs[0].text for output in expected]
    assert [finished[i].outputs == expected[i].outputs for i in range(4)] == [True] * 4


def test_a_stop_string_cuts_text_alike_whole_and_streamed(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0]
    printable = [i for i, c in enumerate(whole.text) if c.isascii() and whole.text.find(c) == i]
    stop = whole.text[printable[len(printable) // 2]]
    for include in (False, True):
        params = SamplingParams(
            temperature=0,
            max_tokens=24,
            ignore_eos=True,
            stop=["never this", stop],
            include_stop_str_in_output=include,
        )
        output = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.text == whole.text[: whole.text.index(stop) + include * len(stop)]
        streamed = "".join(delta.text for delta in llm.stream("hello", params))
        assert streamed == output.text


def test_a_stop_token_is_named_and_its_text_left_out(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stop = whole[5]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[stop])
    output = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
    assert output.token_ids == whole[: whole.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.text == llm.get_tokenizer().decode(output.token_ids[:-1])


def test_closing_a_stream_cancels_its_requests(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    with llm.stream(PROMPTS, long) as stream:
        next(stream)
    assert list(stream) == []
    never_started = llm.stream("hello", long)
    never_started.close()
    abandoned = llm.stream("hello", long)
    next(abandoned)
    del abandoned
    llm.reset_caches()
    assert llm.metrics().num_running_requests == 0


def test_generate_and_another_stream_run_beside_an_open_stream(llm: LLM) -> None:
    expected = ids(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    first, second = llm.stream(PROMPTS[0], GREEDY), llm.stream(PROMPTS[1], GREEDY)
    tokens: list[list[int]] = [[], []]
    for a, b in itertools.zip_longest(first, second):
        for collected, delta in zip(tokens, (a, b), strict=True):
            collected += delta.token_ids if delta else []
        assert ids(llm.generate(PROMPTS[2], GREEDY, use_tqdm=False)) == [expected[2]]
    assert tokens == expected[:2]


def test_an_interrupt_cancels_what_is_outstanding(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = llm._board.step, itertools.count()

    def interrupted() -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step()

    long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    monkeypatch.setattr(llm._board, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, long, use_tqdm=False)
    monkeypatch.undo()
    llm.reset_caches()
    assert llm.metrics().num_running_requests == 0


def test_parameters_changed_to_nonsense_are_refused(llm: LLM) -> None:
    params = SamplingParams()
    params.temperature = -1
    with pytest.raises(InvalidArgumentError, match="temperature"):
        llm.generate("hello", params)


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], GREEDY, use_tqdm=False) == []
    assert list(llm.stream([], GREEDY)) == []


def test_chats_use_the_template_and_add_no_second_bos(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    output = llm.chat(MESSAGES, GREEDY, use_tqdm=False)[0]
    expected = tokenizer.encode("[user]low\n[assistant]", add_special_tokens=False)
    assert output.prompt_token_ids == expected
    assert len(llm.chat([MESSAGES, MESSAGES], GREEDY, use_tqdm=False)) == 2
    going_on = [*MESSAGES, {"role": "assistant", "content": "123"}]
    continued = llm.chat(
        going_on,
        GREEDY,
        use_tqdm=False,
        add_generation_prompt=False,
        continue_final_message=True,
    )[0]
    text = "[user]low\n[assistant]123"
    assert continued.prompt_token_ids == tokenizer.encode(text, add_special_tokens=False)
    with pytest.raises(InvalidArgumentError, match="add_generation_prompt"):
        llm.chat(going_on, GREEDY, continue_final_message=True)
    with pytest.raises(InvalidArgumentError, match="messages"):
        llm.chat("hello", GREEDY)  # type: ignore[arg-type]


def test_the_prefix_cache_shows_in_the_output(llm: LLM) -> None:
    prompt = "the low 123 " * 12
    first, second = (llm.generate(prompt, GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert first.num_cached_tokens == 0
    assert 0 < second.num_cached_tokens < len(second.prompt_token_ids)
    assert ids([first]) == ids([second])


def test_metrics_add_up(llm: LLM) -> None:
    before = llm.metrics()
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    after = llm.metrics()
    each = [output.metrics for output in outputs]
    assert all(metrics is not None for metrics in each)
    for name in ("num_target_passes", "num_generated_tokens"):
        grown = getattr(after, name) - getattr(before, name)
        assert grown == sum(getattr(metrics, name) for metrics in each)
    drafts = [metrics.spec_decode for metrics in each if metrics]
    grown = after.spec_decode.num_accepted_tokens - before.spec_decode.num_accepted_tokens
    assert grown == sum(d.num_accepted_tokens for d in drafts)
    for metrics in filter(None, each):
        spec = metrics.spec_decode
        assert sum(spec.num_accepted_tokens_per_pos) == spec.num_accepted_tokens
        assert metrics.num_generated_tokens == metrics.num_target_passes + spec.num_accepted_tokens
        assert metrics.total_seconds >= metrics.first_token_seconds >= metrics.queue_seconds >= 0
    spec = after.spec_decode
    if spec.num_drafts:
        assert spec.mean_acceptance_length == 1 + spec.num_accepted_tokens / spec.num_drafts
        assert (
            spec.acceptance_rate_per_pos[0] == spec.num_accepted_tokens_per_pos[0] / spec.num_drafts
        )


def test_metrics_have_the_names_of_this_engine_and_of_vllm(llm: LLM) -> None:
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    values = llm.metrics()
    for prefix in ("", "vllm:"):
        drafts = metrics[f"{prefix}spec_decode_num_drafts"]
        assert isinstance(drafts, forerun.Counter)
        assert drafts.value == values.spec_decode.num_drafts
        per_pos = metrics[f"{prefix}spec_decode_num_accepted_tokens_per_pos"]
        assert isinstance(per_pos, forerun.Vector)
        assert per_pos.values == values.spec_decode.num_accepted_tokens_per_pos
        assert f"{prefix}spec_decode_num_draft_tokens" in metrics
        assert f"{prefix}spec_decode_num_accepted_tokens" in metrics


VLLM_SCRIPT = """
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.v1.metrics.reader import Counter, Vector

llm = LLM(
    model=MODEL,
    trust_remote_code=True,
    tensor_parallel_size=1,
    enable_chunked_prefill=True,
    enforce_eager=False,
    speculative_config={"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2},
    disable_log_stats=False,
    max_model_len=512,
    max_num_seqs=8,
    max_num_batched_tokens=None,
    enable_prefix_caching=False,
)
tokenizer = llm.get_tokenizer()
prompts = [TokensPrompt(prompt_token_ids=tokenizer.encode("the low the low"))] * 3
outputs = llm.generate(prompts, sampling_params=SamplingParams(temperature=0, max_tokens=64, n=1))
num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
num_drafts = num_accepted = 0
per_position = [0] * 4
for metric in llm.get_metrics():
    if metric.name == "vllm:spec_decode_num_drafts":
        assert isinstance(metric, Counter)
        num_drafts += metric.value
    elif metric.name == "vllm:spec_decode_num_accepted_tokens":
        num_accepted += metric.value
    elif metric.name == "vllm:spec_decode_num_accepted_tokens_per_pos":
        assert isinstance(metric, Vector)
        for position, count in enumerate(metric.values):
            per_position[position] += count
print(num_tokens, 1 + num_accepted / num_drafts if num_drafts else 1)
"""


def test_a_script_for_vllm_runs_with_other_imports(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = VLLM_SCRIPT.replace("from vllm.v1.metrics.reader", "from forerun.metrics")
    script = script.replace("from vllm import", "from forerun import")
    variables: dict[str, Any] = {"MODEL": str(tiny_dir)}
    exec(script, variables)
    assert variables["num_tokens"] > 0
    # Not how much is drafted, which depends on measured times.
    assert sum(variables["per_position"]) == variables["num_accepted"]


def test_default_parameters_come_from_the_model(tiny_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_dir, directory)
    recommended = {"temperature": 0.25, "top_k": 5, "max_new_tokens": 7, "repetition_penalty": 1.3}
    (directory / "generation_config.json").write_text(json.dumps(recommended))
    model = LLM(directory)
    expected = SamplingParams(temperature=0.25, top_k=5, max_tokens=7, repetition_penalty=1.3)
    assert model.get_default_sampling_params() == expected
    assert len(ids(model.generate("hello", use_tqdm=False))[0]) <= 7


def test_without_a_tokenizer_prompts_are_ids_and_texts_are_empty(tiny_dir: Path) -> None:
    model = LLM(tiny_dir, skip_tokenizer_init=True)
    output = model.generate([1, 2, 3], GREEDY, use_tqdm=False)[0]
    assert (output.outputs[0].text, len(output.outputs[0].token_ids)) == ("", 24)
    with pytest.raises(InvalidArgumentError, match="skip_tokenizer_init"):
        model.generate("hello", GREEDY)
    with pytest.raises(InvalidArgumentError, match="stop"):
        model.generate([1], SamplingParams(stop="x"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json"),
        ("config.json", b"{", "config"),
        ("config.json", b'{"model_type": "mamba"}', "mamba"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        ("model.safetensors", None, "safetensors"),
        ("tokenizer.json", None, r"tokenizer\.json"),
        ("tokenizer.json", b"[]", r"tokenizer\.json"),
        ("tokenizer_config.json", b"[1", r"tokenizer_config\.json"),
    ],
)
def test_a_damaged_directory_is_a_checkpoint_error(
    tiny_dir: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_dir, directory)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        LLM(directory)


def test_nothing_heavy_is_imported_before_it_is_needed(tiny_dir: Path) -> None:
    script = f"""
import sys
import forerun
heavy = "numpy torch transformers gguf tokenizers jinja2 huggingface_hub tqdm matplotlib".split()
assert not [name for name in heavy if name in sys.modules]
llm = forerun.LLM({str(tiny_dir)!r})
assert "numpy" not in sys.modules
llm.chat([{{"role": "user", "content": "low"}}], forerun.SamplingParams(max_tokens=3))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
