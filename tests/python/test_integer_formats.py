"""What an engine writes with weights of every integer format: the same however it is run."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_metadata, llama_tensors, write_gguf
from quantized_layers import awq, quantize_model
from test_gguf_blocks import keep, write_model

from forerun import LLM, SamplingParams
from forerun.checkpoints.convert import write_converted

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9], [3, 9, 27, 4, 8, 1, 2, 37, 57, 9, 3], [*range(10, 43)]]
NUM_TOKENS = 20
SPECULATION = {"method": "ngram", "num_speculative_tokens": 4, "adaptive": False}
FORMATS = {
    "int8": "Q8_0",
    "int4": "Q4_0",
    "int4min": "Q4_1",
    "int5": "Q5_0",
    "int5min": "Q5_1",
    "int4k": "Q4_K",
    "int5k": "Q5_K",
    "int6k": "Q6_K",
    "int4zero": "AWQ",
}


@functools.cache
def directory_of(kind: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="forerun-formats-"))
    if kind != "AWQ":
        write_model(folder / "tiny.gguf", kind, odd=False)
        return keep(folder / "tiny.gguf", folder)
    path = write_gguf(folder / "tiny.gguf", llama_metadata(), llama_tensors())
    directory = write_converted(path, folder / "awq", progress=False, keep_types=False)
    quantize_model(directory, awq, {"group_size": 128})
    return directory


def outputs(
    kind: str, predictions: list[list[int]] | None = None, **options: Any
) -> tuple[list[list[int]], LLM]:
    llm = LLM(directory_of(kind), skip_tokenizer_init=True, **options)
    prompts: list[dict[str, Any]] = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    for prompt, prediction in zip(prompts, predictions or [], strict=False):
        prompt["prediction"] = prediction
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=NUM_TOKENS, ignore_eos=True)
    made = llm.generate(prompts, params, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in made], llm


def test_no_integer_format_is_left_out() -> None:
    header = (Path(__file__).parents[2] / "cpp" / "ops" / "weight_format.h").read_text()
    assert FORMATS.keys() == set(re.findall(r'return "(int\w+)";', header))


@pytest.mark.parametrize("format_", FORMATS)
def test_speculation_batches_and_threads_change_no_token(format_: str) -> None:
    kind = FORMATS[format_]
    plain, llm = outputs(kind, max_num_seqs=1, num_threads=1)
    assert format_ in llm.limits.weight_bytes
    assert outputs(kind, max_num_seqs=4, num_threads=2)[0] == plain
    # Drafts that are accepted, up to a token that is not.
    predictions = [[t if i % 6 != 5 else (t + 1) % 256 for i, t in enumerate(p)] for p in plain]
    for num_seqs, num_threads in ((1, 2), (4, 1)):
        tokens, llm = outputs(
            kind,
            predictions,
            max_num_seqs=num_seqs,
            num_threads=num_threads,
            speculative_config=SPECULATION,
        )
        assert tokens == plain
        drafts = llm.metrics().spec_decode
        assert 0 < drafts.num_accepted_tokens < drafts.num_draft_tokens
