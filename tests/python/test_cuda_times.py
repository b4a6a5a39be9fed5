"""What forward passes take on the emulated GPU decides how much is drafted."""

from __future__ import annotations

from pathlib import Path

from emulated_gpu import EmulatedGpu

from forerun import LLM, SamplingParams


def num_drafted(gpu: EmulatedGpu, model: Path, **durations: float) -> int:
    """Draft tokens of a text that repeats itself now and then."""
    config = {
        "method": "ngram",
        "num_speculative_tokens": 8,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    llm = LLM(str(model), max_model_len=256, device="cuda", speculative_config=config)
    gpu.configure(**durations)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    llm.generate(["a b a b a b"], params, use_tqdm=False)
    return llm.metrics().spec_decode.num_draft_tokens


def test_where_rows_are_dear_less_is_drafted(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    # A pass of more rows has no more launches, and more blocks.
    where_free = num_drafted(gpu, tiny_dir, launch_us=100, block_us=0)
    where_dear = num_drafted(gpu, tiny_dir, launch_us=0, block_us=100)
    assert where_free > 100
    assert where_dear < where_free / 2
