"""A real model with a real drafter on the emulated GPU, which takes minutes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulated_gpu import EmulatedGpu
from test_kept_head import HEAD, QUESTIONS

from forerun import LLM, RequestOutput, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def answer(model: Path, **options: Any) -> RequestOutput:
    llm = LLM(
        model,
        device="cuda",
        max_model_len=128,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=16 << 20,
        **options,
    )
    return llm.chat([{"role": "user", "content": QUESTIONS[0]}], PARAMS, use_tqdm=False)[0]


@pytest.mark.long
def test_the_kept_head_changes_no_token(smollm_dir: Path, gpu: EmulatedGpu) -> None:
    plain = answer(smollm_dir)
    drafter = {"model": str(HEAD), "num_speculative_tokens": 4, "adaptive": False}
    drafted = answer(smollm_dir, speculative_config=drafter)
    assert len(plain.outputs[0].token_ids) == PARAMS.max_tokens
    assert drafted.outputs[0].token_ids == plain.outputs[0].token_ids
    # Chance would be 1 of 12288.
    assert PARAMS.max_tokens / drafted.metrics.num_target_passes > 1.3
