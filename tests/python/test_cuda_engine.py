"""The engine over the emulated GPU: the same output, one wait a step, failures that end there."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu

from forerun import LLM, DeviceError, RequestOutput, SamplingParams, StructuredOutputsParams

METHODS = ("coupled", "rejection", "block")


def load(model: Path, verify_device: str, **options: Any) -> LLM:
    speculative = {
        "method": "suffix",
        "num_speculative_tokens": 6,
        "suffix_decoding_use_tree": True,
    }
    return LLM(
        str(model),
        **{
            "speculative_config": speculative,
            "max_model_len": 96,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "check_invariants": True,
            "num_threads": 1,
            "verify_device": verify_device,
            **options,
        },
    )


def forbid_even_tokens(past: list[int], logits: np.ndarray) -> np.ndarray:
    """A logits processor, for which rows go to the host."""
    logits[::2] = -np.inf
    return logits


def random_params(rng: random.Random, index: int) -> SamplingParams:
    fields: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.4, 1.0, 1.6]),
        "seed": rng.getrandbits(31),
        "max_tokens": rng.randint(1, 30),
        "ignore_eos": rng.random() < 0.7,
    }
    choices: dict[str, Any] = {
        "top_k": rng.randint(1, 200),
        "top_p": rng.uniform(0.1, 1.0),
        "min_p": rng.uniform(0.0, 0.3),
        "repetition_penalty": rng.uniform(0.7, 1.6),
        "frequency_penalty": rng.uniform(-1, 1),
        "presence_penalty": rng.uniform(-1, 1),
        "logit_bias": {rng.randrange(256): rng.uniform(-5, 5) for _ in range(4)},
        "allowed_token_ids": rng.sample(range(256), 60),
        "bad_words": ["a", "ab"],
        "logprobs": rng.choice([0, 3, 32, -1]),
        "prompt_logprobs": rng.choice([0, 2]),
        "min_tokens": 1,
    }
    for name in rng.sample(list(choices), rng.randint(0, 4)):
        fields[name] = choices[name]
    if index % 7 == 3:
        fields["structured_outputs"] = StructuredOutputsParams(regex="[ab]{2,12}")
        fields.pop("allowed_token_ids", None)
        fields.pop("bad_words", None)
    if index % 11 == 5:
        fields["logits_processors"] = [forbid_even_tokens]
    return SamplingParams(**fields)


def random_requests(seed: int, count: int) -> tuple[list[str], list[SamplingParams]]:
    rng = random.Random(seed)
    prompts = ["".join(rng.choice("ab c") for _ in range(rng.randint(1, 40))) for _ in range(count)]
    return prompts, [random_params(rng, index) for index in range(count)]


def assert_equal(got: list[RequestOutput], wanted: list[RequestOutput]) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        (a,), (b,) = ours.outputs, theirs.outputs
        assert (a.token_ids, a.finish_reason, a.text) == (b.token_ids, b.finish_reason, b.text)
        for mine, other in (
            (a.logprobs, b.logprobs),
            (ours.prompt_logprobs, theirs.prompt_logprobs),
        ):
            assert (mine is None) == (other is None)
            for entry, expected in zip(mine or [], other or [], strict=True):
                assert (entry is None) == (expected is None)
                if entry is not None:
                    assert_close(entry, expected)


def assert_close(entry: dict[int, Any], expected: dict[int, Any]) -> None:
    """The same tokens and ranks; log-probabilities within one ulp."""
    assert list(entry) == list(expected)
    for token, logprob in entry.items():
        assert logprob.rank == expected[token].rank
        value, other = np.float32(logprob.logprob), np.float32(expected[token].logprob)
        assert abs(value - other) <= abs(np.spacing(other)) or value == other


@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_emits_what_the_cpu_emits(method: str, gpu: EmulatedGpu, tiny_dir: Path) -> None:
    outputs, drafts = [], []
    for device in ("cpu", "cuda"):
        config = {
            "method": "suffix",
            "num_speculative_tokens": 6,
            "suffix_decoding_use_tree": method != "block",
            "acceptance_method": method,
            "adaptive": False,
        }
        llm = load(tiny_dir, device, speculative_config=config, seed=5)
        outputs.append(llm.generate(*random_requests(3, 60), use_tqdm=False))
        counts = llm.metrics().spec_decode
        drafts.append((counts.num_drafts, counts.num_draft_tokens, counts.num_accepted_tokens))
    assert_equal(outputs[1], outputs[0])
    assert drafts[1] == drafts[0]
    assert drafts[0][2] > 100
    assert gpu.launches > 0


def test_a_step_waits_once(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    llm = load(tiny_dir, "cuda")
    prompts = ["a b a b a b a b", "c c c c c c", "a"]
    params = [SamplingParams(temperature=t, max_tokens=24, seed=1) for t in (0.0, 0.7, 1.0)]
    for _ in range(3):
        llm.generate(prompts, params, use_tqdm=False)  # buffers for a step's data may grow
    gpu.configure()
    before = llm.metrics().num_steps
    outputs = llm.generate(prompts, params, use_tqdm=False)
    num_steps = llm.metrics().num_steps - before
    assert num_steps > 0
    assert gpu.allocations == 0
    # The logits of the CPU, which a model on the GPU would have there, take a copy.
    assert gpu.copies_to_device == 2 * num_steps
    assert gpu.copies_from_device == num_steps
    assert gpu.waits == num_steps
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    num_requests = len(prompts) * num_steps  # at most, over all steps
    assert gpu.bytes_from_device <= 256 * num_requests + 16 * num_tokens


def test_each_allocation_may_fail_and_the_process_goes_on(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    prompts, params = ["a b a b"], SamplingParams(temperature=0, max_tokens=6)
    num_failures = 0
    llm = None
    while llm is None:
        gpu.configure(failing_allocation=num_failures + 1)
        with contextlib.suppress(DeviceError):
            llm = load(tiny_dir, "cuda")
        if llm is None:
            gpu.configure(failing_allocation=num_failures + 1)
            with pytest.raises(DeviceError, match=r"bytes of .*; found \d+ bytes free of \d+; "):
                load(tiny_dir, "cuda")
            num_failures += 1
    assert 2 <= num_failures < 40
    gpu.configure()
    plain = load(tiny_dir, "cpu").generate(prompts, params, use_tqdm=False)
    assert_equal(llm.generate(prompts, params, use_tqdm=False), plain)


@pytest.mark.parametrize("launch", [1, 4, 9])
def test_a_launch_that_is_refused_fails_its_step_only(
    launch: int, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    prompts, params = random_requests(11, 8)
    wanted = load(tiny_dir, "cpu").generate(prompts, params, use_tqdm=False)
    llm = load(tiny_dir, "cuda")
    gpu.configure(failing_launch=launch, launch_error=701)
    with pytest.raises(DeviceError) as error:
        llm.generate(prompts, params, use_tqdm=False)
    assert "701" in error.value.found
    assert_equal(llm.generate(prompts, params, use_tqdm=False), wanted)
    assert llm.metrics().num_held_blocks == 0


def test_a_gpu_that_is_lost_fails_every_step_and_the_cpu_goes_on(
    gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    prompts, params = random_requests(12, 4)
    llm = load(tiny_dir, "cuda")
    gpu.configure(failing_launch=3)
    for _ in range(2):
        with pytest.raises(DeviceError, match="719"):
            llm.generate(prompts, params, use_tqdm=False)
    assert llm.metrics().num_held_blocks == 0
    cpu = load(tiny_dir, "cpu")
    wanted = cpu.generate(prompts, params, use_tqdm=False)
    gpu.configure()
    assert_equal(load(tiny_dir, "cuda").generate(prompts, params, use_tqdm=False), wanted)
