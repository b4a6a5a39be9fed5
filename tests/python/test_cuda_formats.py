"""Integer weights on the emulated GPU: the same ids with drafts, and nearly what floats give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from test_integer_formats import FORMATS, PROMPTS, SPECULATION, directory_of, outputs

from forerun import LLM, SamplingParams

GPU: dict[str, Any] = {
    "device": "cuda",
    "kv_cache_dtype": "bfloat16",
    "max_model_len": 96,
    "check_invariants": True,
}


# One of each way to scale; all of them in the long run.
SCALES = ("int8", "int4min", "int5k", "int6k", "int4zero")


@pytest.mark.parametrize(
    "format_", [f if f in SCALES else pytest.param(f, marks=pytest.mark.long) for f in FORMATS]
)
def test_drafts_and_batches_change_no_id(format_: str, gpu: EmulatedGpu) -> None:
    kind = FORMATS[format_]
    plain, llm = outputs(kind, max_num_seqs=1, **GPU)
    assert format_ in llm.limits.weight_bytes
    predictions = [[t if i % 6 != 5 else (t + 1) % 256 for i, t in enumerate(p)] for p in plain]
    tokens, llm = outputs(kind, predictions, max_num_seqs=4, speculative_config=SPECULATION, **GPU)
    assert tokens == plain
    drafts = llm.metrics().spec_decode
    assert 0 < drafts.num_accepted_tokens < drafts.num_draft_tokens
    assert gpu.launches > 0


def logprobs(model: Path, **options: Any) -> np.ndarray:
    llm = LLM(model, skip_tokenizer_init=True, max_model_len=96, **options)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompt: dict[str, Any] = {"prompt_token_ids": PROMPTS[-1]}
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    return np.array([next(iter(e.values())).logprob for e in output.prompt_logprobs if e])


def difference(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("format_", FORMATS)
def test_integers_give_nearly_what_their_floats_give(format_: str, gpu: EmulatedGpu) -> None:
    model = directory_of(FORMATS[format_])
    integers = logprobs(model, device="cuda", kv_cache_dtype="float32")
    floats = logprobs(model, device="cpu", dtype="float32", quantization="none")
    # Activations are rounded to bfloat16.
    assert 0 < difference(integers, floats) < 2e-2


@pytest.mark.parametrize("quantization", ["int8", {"linear": "int4", "head": "int8"}])
def test_floats_are_quantized_at_load(quantization: Any, gpu: EmulatedGpu, tiny_dir: Path) -> None:
    values = [
        logprobs(tiny_dir, device=device, dtype="bfloat16", quantization=quantization)
        for device in ("cpu", "cuda")
    ]
    # The same integers; on the CPU activations are quantized too.
    assert 0 < difference(values[1], values[0]) < 2e-2
