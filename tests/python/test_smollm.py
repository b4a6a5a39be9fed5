"""The newcomer's path on the real SmolLM2-135M-Instruct, beside transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forerun import LLM, SamplingParams

MESSAGES = [{"role": "user", "content": "Name the three primary colours, each with an emoji."}]


@pytest.mark.filterwarnings("ignore")
def test_greedy_chat_in_float32_is_that_of_transformers(smollm_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm_dir, dtype=torch.float32)
    reference = AutoTokenizer.from_pretrained(smollm_dir)
    inputs = reference.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=48)
    expected = generated[0, inputs["input_ids"].shape[1] :].tolist()

    llm = LLM(smollm_dir, dtype="float32", speculative_config={"method": "suffix"})
    params = SamplingParams(temperature=0, max_tokens=48, logprobs=3, prompt_logprobs=0)
    output = llm.chat(MESSAGES, params, use_tqdm=False)[0]
    assert output.prompt_token_ids == inputs["input_ids"][0].tolist()
    assert output.outputs[0].token_ids == expected
    assert output.outputs[0].text == reference.decode(expected, skip_special_tokens=True)

    with torch.no_grad():
        rows = torch.log_softmax(model(generated).logits[0].double(), dim=-1)
    text = generated[0].tolist()
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    scored = output.prompt_logprobs + output.outputs[0].logprobs
    assert len(scored) == len(text)
    for row, token, entries in zip(rows, text[1:], scored[1:], strict=False):
        assert entries is not None
        assert token in entries
        for candidate, entry in entries.items():
            assert entry.logprob == pytest.approx(row[candidate].item(), abs=2e-3)
            better = int((row > row[candidate] + 2e-3).sum())
            close = int((row > row[candidate] - 2e-3).sum())
            assert better + 1 <= (entry.rank or 0) <= close
    llm_entries = output.outputs[0].logprobs[0]
    for token, entry in llm_entries.items():
        assert entry.decoded_token == reference.decode([token])


def test_a_gguf_path_is_enough_and_methods_agree(
    smollm_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path))
    prompt = "1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3"
    ids = []
    for config in (
        None,
        {"method": "ngram", "num_speculative_tokens": 5},
        {"method": "suffix"},
    ):
        llm = LLM(smollm_gguf, speculative_config=config)
        params = SamplingParams(temperature=0.7, seed=3, max_tokens=40)
        ids.append(llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids)
        assert (llm.metrics().spec_decode.num_accepted_tokens > 0) == (config is not None)
    assert ids[0] == ids[1] == ids[2]
