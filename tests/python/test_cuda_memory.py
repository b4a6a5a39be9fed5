"""A GPU's memory: what the KV cache takes of it, too little of it, a GPU that is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from drafter_rows import Row
from drafter_runs import make_engine, make_params
from emulated_gpu import EmulatedGpu
from test_drafter_mixes import SAFETENSORS_ROWS

from forerun import LLM, AsyncLLM, DeviceError, InternalError, InvalidArgumentError, SamplingParams

# One of each kind of drafter.
KINDS = {row.method: row for row in reversed(SAFETENSORS_ROWS)}
MIB = 1 << 20
TOKENS = 10


def load(model: Path, **options: Any) -> LLM:
    given = {"max_model_len": 96, "max_num_seqs": 4, "max_num_batched_tokens": 48, "device": "cuda"}
    return LLM(str(model), **{**given, **options})


def num_blocks(model: Path, **options: Any) -> int:
    return load(model, **options).metrics().num_total_blocks


def test_the_fraction_limits_weights_buffers_and_cache(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    gpu.configure(memory_mib=64)
    block_bytes = MIB // num_blocks(tiny_dir, kv_cache_memory_bytes=MIB)
    # They would fill more than there is.
    many = {"max_num_seqs": 400, "max_num_batched_tokens": 400, "max_model_len": 512}
    low, high = (
        num_blocks(tiny_dir, gpu_memory_utilization=share, **many) for share in (0.5, 0.75)
    )
    # Weights and buffers are the same in both.
    assert abs((high - low) * block_bytes - 16 * MIB) <= 2 * block_bytes
    assert 0 < low * block_bytes < 32 * MIB
    assert num_blocks(tiny_dir) == 4 * 96 // 16, "what requests can fill"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gpu_memory_utilization": 0.001},
            r"gpu_memory_utilization: got 0.001\d*, which leaves 0 bytes .*; expected at least \d+ "
            r"for one request of 96 tokens, .*: weights and buffers take \d+ bytes, and \d+ bytes "
            r"are free of the GPU's 67108864",
        ),
        (
            {"kv_cache_memory_bytes": 64 * MIB},
            r"kv_cache_memory_bytes: got 67108864; expected at most .*: \d+ bytes are free of the "
            r"GPU's 67108864",
        ),
        ({"kv_cache_memory_bytes": 10}, r"kv_cache_memory_bytes: got 10; expected at least \d+ "),
        (
            {"max_num_batched_tokens": 100_000},
            r"max_num_batched_tokens: got 100000; expected a number whose buffers fit: these take "
            r"\d+ bytes, and \d+ are free of the GPU's 67108864, for weights too",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(
    options: dict[str, Any], message: str, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    gpu.configure(memory_mib=64)
    with pytest.raises(InvalidArgumentError, match=message):
        load(tiny_dir, **options)
    assert num_blocks(tiny_dir) > 0, "what it took is free again"


def test_each_allocation_of_an_engine_may_fail(gpu: EmulatedGpu) -> None:
    row = KINDS["eagle"]
    errors: list[DeviceError] = []
    engine = None
    while engine is None:
        gpu.configure(failing_allocation=1 + 3 * len(errors))
        try:
            engine = drafting_engine(row)
        except DeviceError as error:
            errors.append(error)
    assert len(errors) > 7
    assert all("bytes of" in error.wanted for error in errors)
    assert all("bytes free of 1073741824" in error.found for error in errors)
    assert not any(error.is_lost for error in errors)
    gpu.configure()
    run(engine)


def drafting_engine(row: Row, **speculative: Any) -> Any:
    return make_engine(
        row,
        {"adaptive": False, **speculative},
        max_model_len=80,
        max_num_seqs=3,
        max_num_batched_tokens=20,
        device="cuda",
    )


def run(engine: Any) -> int:
    """Requests of all kinds; returns the number of tokens."""
    fields: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 3, "top_p": 0.8, "repetition_penalty": 1.2},
        {"temperature": 0.7, "seed": 4, "logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 0.0, "logit_bias": {3: 1.0, 5: -2.0}, "bad_words": [[7, 8]]},
        {"temperature": 1.0, "seed": 5, "top_k": 9, "speculative": False},
    ]
    for i, each in enumerate(fields):
        prompt = [(7 * i + 3 * j) % 50 for j in range(2 + 6 * i)]
        engine.submit(prompt, make_params(max_tokens=TOKENS, ignore_eos=True, **each))
    num_tokens = 0
    while engine.has_unfinished():
        for update in engine.step():
            assert update.error == ""
            num_tokens += len(update.new_tokens)
    return num_tokens


@pytest.mark.parametrize(
    ("row", "is_tree"),
    [*((row, False) for row in KINDS.values()), (KINDS["eagle"], True)],
    ids=[*KINDS, "eagle tree"],
)
def test_steps_allocate_nothing(row: Row, is_tree: bool, gpu: EmulatedGpu) -> None:
    tree: dict[str, Any] = {"draft_tree_width": 3, "num_speculative_tokens": 8}
    engine = drafting_engine(row, **(tree if is_tree else {}))
    gpu.configure()
    assert run(engine) == 5 * TOKENS
    assert gpu.launches > 0
    assert gpu.allocations == 0


def test_a_server_with_a_lost_gpu_tells_every_request(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    async def serve() -> None:
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        async with AsyncLLM(str(tiny_dir), max_model_len=96, max_num_seqs=2, device="cuda") as llm:
            llm.check_health()
            gpu.configure(failing_launch=60)
            tasks = [asyncio.create_task(llm.generate("a b a", params)) for _ in range(5)]
            results = await asyncio.wait_for(
                asyncio.gather(*tasks, return_exceptions=True), timeout=60
            )
            for result in results:
                assert isinstance(result, DeviceError), result
                assert result.is_lost
                assert "719" in result.found
            llm._failed_at = 0.0  # long ago
            with pytest.raises(InternalError, match="719"):
                llm.check_health()
            with pytest.raises(DeviceError, match="719"):
                await llm.generate("a b a", params)

    asyncio.run(serve())
    gpu.configure()
