"""Models on the emulated GPU: the same ids with any drafter, and nearly the logits of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu

from forerun import LLM, SamplingParams
from forerun.tools import cli


def load(model: Path, **options: Any) -> LLM:
    given = {
        "max_model_len": 96,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 48,
        "check_invariants": True,
        "device": "cuda",
    }
    return LLM(str(model), **{**given, **options})


SPECULATIVE: list[dict[str, Any]] = [
    {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3},
    {"method": "suffix", "num_speculative_tokens": 6, "suffix_decoding_use_tree": True},
]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("coupled", "bfloat16"),
        ("coupled", "float32"),
        ("rejection", "bfloat16"),
        ("block", "bfloat16"),
    ],
)
def test_drafts_change_no_id(method: str, dtype: str, gpu: EmulatedGpu, tiny_dir: Path) -> None:
    prompts = ["a b a b a b a b a b", "c c c c c c c", "one two one two one", "x"]
    params = [
        SamplingParams(temperature=t, seed=7, max_tokens=16, ignore_eos=True)
        for t in (0.0, 0.8 if method == "coupled" else 0.0, 0.0, 0.0)
    ]
    plain = load(tiny_dir, dtype=dtype).generate(prompts, params, use_tqdm=False)
    for config in SPECULATIVE:
        if method == "block" and config.get("suffix_decoding_use_tree"):
            config = {**config, "suffix_decoding_use_tree": False}
        config = {**config, "acceptance_method": method, "adaptive": False}
        llm = load(tiny_dir, dtype=dtype, speculative_config=config)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]
        assert llm.metrics().spec_decode.num_accepted_tokens > 3
    assert gpu.launches > 0


def test_graphs_change_no_id(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    prompts = ["a b a b a b a b a b", "c c c c c c c", "one two one two one", "x"]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    results = []
    for enforce_eager in (True, False):
        before = gpu.graph_launches
        llm = load(tiny_dir, speculative_config=SPECULATIVE[1], enforce_eager=enforce_eager)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        results.append([output.outputs[0].token_ids for output in outputs])
        assert (gpu.graph_launches > before) != enforce_eager
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype", "most"),
    [("bfloat16", "auto", 2e-2), ("bfloat16", "int8", 2e-2), ("float32", "auto", 1e-5)],
)
def test_logits_are_those_of_the_cpu_but_for_rounding(
    dtype: str, kv_cache_dtype: str, most: float, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
    prompt = "some words and then some more words, and again some words"
    logits = []
    for device in ("cpu", "cuda"):
        options = {"device": device, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
        llm = load(tiny_dir, max_logprobs=-1, **options)
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        assert output.prompt_logprobs is not None
        rows = np.array([[e[t].logprob for t in sorted(e)] for e in output.prompt_logprobs if e])
        # Log-probabilities are logits less a constant of the row.
        logits.append(rows - rows.mean(axis=1, keepdims=True))
    difference = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
    assert 0 < difference < most


def test_the_command_line_runs_a_model_there(
    gpu: EmulatedGpu, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(tiny_dir), "a b a b", "--max-tokens", "4", "--device"]
    assert cli.main([*arguments, "cuda"]) == 0
    assert gpu.launches > 0
    assert capsys.readouterr().out
