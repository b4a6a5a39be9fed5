"""What vLLM's offline examples do, with every setting spelled as there: only the import differs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_rows import ROWS

from forerun import (
    LLM,
    AdapterLogitsProcessor,
    BatchUpdate,
    Counter,
    EngineArgs,
    Gauge,
    Histogram,
    InvalidArgumentError,
    LLMEngine,
    LogitsProcessor,
    RequestLogitsProcessor,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
    Vector,
)
from forerun.logits_processors import process_dict_updates

TEXTS = ["the low the low", "a slow the low", "low low low", "the the"]


# Speculative decoding, its counters and the settings that the script passes at their defaults.
def speculative_config(method: str, model: Path | None, max_model_len: int) -> dict[str, Any]:
    if method == "ngram":
        return {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 5,
            "prompt_lookup_min": 2,
        }
    if method == "mtp":
        return {"method": "mtp", "num_speculative_tokens": 3}
    config = {"method": method, "model": str(model), "num_speculative_tokens": 3}
    if method == "draft_model":
        return {
            **config,
            "enforce_eager": False,
            "max_model_len": max_model_len,
            "parallel_drafting": False,
        }
    return {**config, "disable_padded_drafter_batch": False, "parallel_drafting": False}


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("ngram", "draft_model"),
        ("eagle3", "eagle3 two layers"),
        ("draft_model", "draft_model"),
        ("mtp", "mtp qwen"),
    ],
)
def test_speculative_decoding(
    method: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    named = next(candidate for candidate in ROWS if candidate.name == row)
    target, drafter = named.write(tmp_path)
    max_model_len = 96
    settings: dict[str, Any] = {
        "model": str(target),
        "trust_remote_code": True,
        "tensor_parallel_size": 1,
        "enable_chunked_prefill": False,
        "enforce_eager": False,
        "gpu_memory_utilization": 0.9,
        "disable_log_stats": False,
        "max_model_len": max_model_len,
        "limit_mm_per_prompt": {"image": 5},
        "disable_chunked_mm_input": True,
        "max_num_seqs": None,
        "allowed_local_media_path": "",
        "skip_tokenizer_init": True,
    }
    prompts: list[Any] = [
        {"prompt_token_ids": [3, 9, 27, 3, 9, 27, 3 + i], "multi_modal_data": None}
        for i in range(4)
    ]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    plain = LLM(**settings, speculative_config=None).generate(prompts, sampling_params=params)
    config = speculative_config(method, drafter, max_model_len)
    # As the script has it, how much is drafted depends on measured times.
    for extra in ({}, {"adaptive": False}):
        llm = LLM(**settings, speculative_config={**config, **extra})
        outputs = llm.generate(prompts, sampling_params=params)
        assert [output.outputs[0].token_ids for output in outputs] == [
            output.outputs[0].token_ids for output in plain
        ]
    counts = {}
    per_position = [0] * 3
    for metric in llm.get_metrics():
        if metric.name == "vllm:spec_decode_num_accepted_tokens_per_pos":
            assert isinstance(metric, Vector)
            per_position = [a + b for a, b in zip(per_position, metric.values, strict=True)]
        elif metric.name.startswith("vllm:spec_decode_num_"):
            assert isinstance(metric, Counter)
            counts[metric.name.removeprefix("vllm:spec_decode_num_")] = metric.value
    assert set(counts) >= {"drafts", "draft_tokens", "accepted_tokens"}
    assert sum(per_position) == counts["accepted_tokens"] <= counts["draft_tokens"]
    assert 0 < counts["drafts"] <= counts["draft_tokens"]


def test_basic(tiny_dir: Path) -> None:
    llm = LLM(model=str(tiny_dir))
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0.8, top_p=0.95))
    assert [output.prompt for output in outputs] == TEXTS
    assert all(len(output.outputs[0].token_ids) in range(1, 17) for output in outputs)
    assert all(isinstance(output.outputs[0].text, str) for output in outputs)
    for name in ("num_cache_creation_tokens", "prompt_token_id_logprobs", "ec_transfer_params"):
        assert getattr(outputs[0], name) is None
    for name in ("routed_experts", "sampling_mask", "weight_versions"):
        assert getattr(outputs[0].outputs[0], name) is None


def test_chat_from_a_command_line(tiny_dir: Path) -> None:
    parser = argparse.ArgumentParser()
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(model=str(tiny_dir))
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--chat-template-path", type=str)
    args = vars(parser.parse_args(["--temperature", "0", "--max-model-len", "256"]))
    temperature = args.pop("temperature")
    args.pop("chat_template_path")
    llm = LLM(**args)
    assert llm.limits.max_model_len == 256
    params = llm.get_default_sampling_params()
    params.temperature = temperature
    params.max_tokens = 6
    conversation: Any = [
        {"role": "system", "content": "slow"},
        {"role": "user", "content": "low"},
        {"role": "assistant", "content": "the"},
        {"role": "user", "content": "low"},
    ]
    (alone,) = llm.chat(conversation, params, use_tqdm=False)
    many = llm.chat([conversation] * 5, params, use_tqdm=True)
    assert [output.outputs for output in many] == [alone.outputs] * 5
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (other,) = llm.chat(conversation, params, use_tqdm=False, chat_template=template)
    assert other.prompt_token_ids == llm.get_tokenizer().encode(
        "slowlowthelow", add_special_tokens=False
    )


def test_structured_outputs(tiny_dir: Path) -> None:
    llm = LLM(model=str(tiny_dir), max_model_len=100)
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["SUV", "sedan"], "type": "string"}},
        "additionalProperties": False,
        "required": ["kind"],
    }
    grammar = 'root ::= "SELECT " column " from " table\ncolumn ::= "a" | "b"\ntable ::= "t"\n'

    def write(max_tokens: int = 60, stop: list[str] | None = None, **structure: Any) -> str:
        params = SamplingParams(
            structured_outputs=StructuredOutputsParams(**structure),
            max_tokens=max_tokens,
            stop=stop,
        )
        return llm.generate("low", sampling_params=params)[0].outputs[0].text

    assert write(choice=["Positive", "Negative"]) in ("Positive", "Negative")
    assert write(regex=r"[ab]{2}@low\.com\n", stop=["\n"])[2:] == "@low.com"
    text = write(json=schema, disable_any_whitespace=True)
    assert json.loads(text)["kind"] in ("SUV", "sedan")
    assert write(grammar=grammar) in ("SELECT a from t", "SELECT b from t")


def test_prefix_caching(tiny_dir: Path) -> None:
    prompts = ["the low slow low " * 4 + text for text in TEXTS]
    params = SamplingParams(temperature=0.0)
    regular = LLM(model=str(tiny_dir), gpu_memory_utilization=0.4, enable_prefix_caching=False)
    expected = [output.outputs[0].text for output in regular.generate(prompts, params)]
    cached = LLM(model=str(tiny_dir), enable_prefix_caching=True, gpu_memory_utilization=0.4)
    cached.generate(prompts[0], params)
    outputs = cached.generate(prompts, params)
    assert [output.outputs[0].text for output in outputs] == expected
    assert all((output.num_cached_tokens or 0) > 0 for output in outputs)


def test_metrics(tiny_dir: Path) -> None:
    llm = LLM(model=str(tiny_dir), disable_log_stats=False)
    llm.generate(TEXTS, SamplingParams(temperature=0.8, top_p=0.95))
    names: dict[type, list[str]] = {Gauge: [], Counter: [], Vector: [], Histogram: []}
    for metric in llm.get_metrics():
        if not metric.name.startswith("vllm:"):
            continue
        names[type(metric)].append(metric.name)
        if isinstance(metric, Histogram):
            assert metric.count == max(metric.buckets.values(), default=0)
    assert "vllm:num_requests_running" in names[Gauge]
    assert "vllm:generation_tokens" in names[Counter]
    assert "vllm:time_to_first_token_seconds" in names[Histogram]


def test_engine_steps(tiny_dir: Path) -> None:
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    args = EngineArgs.from_cli_args(parser.parse_args(["--model", str(tiny_dir)]))
    engine = LLMEngine.from_engine_args(args)
    waiting = [
        (TEXTS[0], SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1)),
        (TEXTS[1], SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2)),
        (TEXTS[2], SamplingParams(n=2, temperature=0.8, top_p=0.95, frequency_penalty=0.1)),
    ]
    num_added = 0
    finished: dict[str, RequestOutput] = {}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            prompt, params = waiting.pop(0)
            engine.add_request(str(num_added), prompt, params)
            num_added += 1
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
    assert sorted(finished) == ["0", "1", "2"]
    assert [len(finished[name].outputs) for name in sorted(finished)] == [1, 1, 2]
    assert "token" in repr(finished["0"])


# Logits processors: the same three classes with numpy and with torch.
def target_of(params: SamplingParams) -> int | None:
    return (params.extra_args or {}).get("target_token")


class OnlyTarget(LogitsProcessor):
    """A class for the whole batch."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        if not isinstance(target_of(params), int | None):
            raise ValueError("target_token is no int")

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        assert device.type == "cpu"
        self.targets: dict[int, int] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.targets, batch_update, lambda params, _, __: target_of(params))

    def apply(self, logits: Any) -> Any:
        if not self.targets:
            return logits
        assert isinstance(logits, np.ndarray)
        rows, columns = list(self.targets), list(self.targets.values())
        kept = logits[rows, columns].copy()
        logits[rows] = -np.inf
        logits[rows, columns] = kept
        return logits


class TargetPerRequest(AdapterLogitsProcessor):
    """A function for each request."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        target = target_of(params)
        if target is None:
            return None

        def only(output_ids: list[int], logits: Any) -> Any:
            kept = logits[target].item()
            logits[:] = -np.inf
            logits[target] = kept
            return logits

        return only


class NoRepeat(AdapterLogitsProcessor):
    """A function that reads the prompt and the output; adds no number of its own."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        def without_seen(prompt_ids: list[int], output_ids: list[int], logits: Any) -> Any:
            changed = logits.copy()
            changed[[*prompt_ids, *output_ids]] = -np.inf
            return changed

        return without_seen


@pytest.mark.parametrize("speculative", [None, {"method": "ngram", "num_speculative_tokens": 3}])
@pytest.mark.parametrize("given", [OnlyTarget, TargetPerRequest, "test_vllm_flows:OnlyTarget"])
def test_logits_processors(tiny_dir: Path, given: Any, speculative: Any) -> None:
    llm = LLM(model=str(tiny_dir), logits_processors=[given], speculative_config=speculative)
    params = [
        SamplingParams(temperature=0.0, extra_args={"target_token": 128}),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, extra_args={"target_token": 67}),
        SamplingParams(temperature=0.0),
    ]
    outputs = llm.generate(TEXTS, params)
    plain = LLM(model=str(tiny_dir)).generate(TEXTS, SamplingParams(temperature=0.0))
    assert outputs[0].outputs[0].token_ids == [128] * 16
    assert outputs[2].outputs[0].token_ids == [67] * 16
    for index in (1, 3):
        assert outputs[index].outputs == plain[index].outputs


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_speculation_changes_nothing_of_what_processors_make(
    tiny_dir: Path, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=4, max_tokens=30, ignore_eos=True)
    results = []
    for config in (None, {"method": "ngram", "num_speculative_tokens": 4}):
        llm = LLM(str(tiny_dir), logits_processors=[NoRepeat], speculative_config=config)
        results.append([output.outputs for output in llm.generate(TEXTS, params)])
        for output in results[-1]:
            assert len(set(output[0].token_ids)) == len(output[0].token_ids)
    assert results[0] == results[1]


def test_the_type_of_a_function_may_be_written_in_an_annotation() -> None:
    assert (RequestLogitsProcessor | None) is not None


@pytest.mark.parametrize("given", [[object], ["no.module:X"], "x", [3], ["json:loads"]])
def test_what_is_no_processor_is_refused(tiny_dir: Path, given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="logits_processors"):
        LLM(tiny_dir, logits_processors=given)


def test_parameters_that_a_processor_refuses_are_refused(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, logits_processors=[OnlyTarget])
    with pytest.raises(InvalidArgumentError, match="target_token is no int"):
        llm.generate("low", SamplingParams(extra_args={"target_token": "x"}))


def test_a_class_whose_module_uses_torch_gets_tensors(tiny_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "torch_processor.py").write_text(
        "import torch\n"
        "from forerun import LogitsProcessor\n\n\n"
        "class Coldest(LogitsProcessor):\n"
        "    def __init__(self, vllm_config, device, is_pin_memory):\n"
        "        assert device == torch.device('cpu')\n"
        "        assert vllm_config.model_config.max_model_len > 0\n\n"
        "    def is_argmax_invariant(self):\n"
        "        return True\n\n"
        "    def update_state(self, batch_update):\n"
        "        assert batch_update.batch_size == 1\n\n"
        "    def apply(self, logits):\n"
        "        assert isinstance(logits, torch.Tensor) and logits.ndim == 2\n"
        "        return logits.masked_fill(logits < logits.amax(), float('-inf'))\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        llm = LLM(tiny_dir, logits_processors=["torch_processor:Coldest"])
    finally:
        sys.path.remove(str(tmp_path))
    greedy = llm.generate(TEXTS, SamplingParams(temperature=0))
    sampled = llm.generate(TEXTS, SamplingParams(temperature=0.9, seed=1))
    assert [o.outputs[0].token_ids for o in sampled] == [o.outputs[0].token_ids for o in greedy]
