"""The EAGLE-3 head that the repository keeps, on the model that it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from forerun import LLM, SamplingParams
from forerun.inspection import inspect

HEAD = Path(__file__).parents[2] / "bench" / "heads" / "smollm2-135m-eagle3"
QUESTIONS = ("What is a prime number?", "Write a short story about a lighthouse.")
MIB = 1 << 20


@pytest.mark.parametrize("shape", [{}, {"draft_tree_width": 3}])
def test_it_drafts_what_the_model_says(smollm_dir: Path, shape: dict[str, int]) -> None:
    config = {"model": str(HEAD), "num_speculative_tokens": 4, "adaptive": False, **shape}
    plain, drafting = LLM(smollm_dir), LLM(smollm_dir, speculative_config=config)
    params = SamplingParams(temperature=0, max_tokens=64)
    passes = tokens = 0
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        expected = plain.chat(messages, params)[0].outputs[0].token_ids
        output = drafting.chat(messages, params)[0]
        assert output.outputs[0].token_ids == expected
        tokens += len(expected)
        passes += output.metrics.num_target_passes
    # Chance would be 1 of 12288.
    assert tokens / passes > 1.3


def test_it_is_found_by_its_content_and_is_small() -> None:
    assert inspect(HEAD).method == "eagle3"
    assert sum(file.stat().st_size for file in HEAD.iterdir()) < 12 * MIB
