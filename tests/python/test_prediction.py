"""Predicted outputs: a prompt's `prediction` is drafted for its request alone, and changes nothing.

The output with a prediction is compared with == to that without speculation; what a prediction
saves is counted in passes of the model. `adaptive`, which chooses by the time that passes take, is
off where they are counted.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_lossless as lossless
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet_drafter import QUIET

from forerun import LLM, AsyncLLM, InvalidArgumentError, RequestOutput, SamplingParams, _core
from forerun.beam_search import BeamSearchParams

PROMPT = [5, 9, 12, 7]
NUM_TOKENS = 60
CODE = """\
def add(a, b):
    return a + b


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()
"""


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, speculative_config=QUIET, check_invariants=True, max_num_seqs=4)


@pytest.fixture(scope="module")
def expected(tiny_dir: Path) -> list[int]:
    """What is generated after PROMPT."""
    return run(LLM(tiny_dir), PROMPT).outputs[0].token_ids


def params(**fields: Any) -> SamplingParams:
    usual = {"temperature": 1.0, "seed": 4, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return SamplingParams(**{**usual, **fields})


def run(llm: LLM, prompt: Any, **fields: Any) -> RequestOutput:
    return llm.generate(prompt, params(**fields), use_tqdm=False)[0]


def predicted(prediction: Any, prompt: list[int] = PROMPT) -> dict[str, Any]:
    return {"prompt_token_ids": prompt, "prediction": prediction}


def counts(output: RequestOutput) -> tuple[int, int, int]:
    """Passes, accepted and rejected prediction tokens."""
    metrics = output.metrics
    assert metrics is not None
    accepted, rejected = (
        metrics.num_accepted_prediction_tokens,
        metrics.num_rejected_prediction_tokens,
    )
    return metrics.num_target_passes, accepted, rejected


def test_an_exact_prediction_is_accepted_in_long_runs(llm: LLM, expected: list[int]) -> None:
    output = run(llm, predicted(expected))
    assert output.outputs[0].token_ids == expected
    # The first pass has no draft, one accepts 32 tokens, one the rest.
    assert counts(output) == (3, NUM_TOKENS - 3, 0)
    assert output.metrics is not None
    assert output.metrics.spec_decode.num_accepted_tokens == NUM_TOKENS - 3
    assert counts(run(llm, PROMPT)) == (NUM_TOKENS, 0, 0)


def test_it_needs_no_speculative_config(tiny_dir: Path, expected: list[int]) -> None:
    llm = LLM(tiny_dir, check_invariants=True)
    output = run(llm, predicted(expected))
    assert output.outputs[0].token_ids == expected
    # The first draft is 32 tokens long; what later ones are depends on the time that passes take.
    num_passes, num_accepted, num_rejected = counts(output)
    assert num_passes <= NUM_TOKENS - 32 <= num_accepted + 32
    assert num_rejected == 0
    assert llm.metrics().spec_decode.num_accepted_tokens == num_accepted


def test_after_an_edit_the_prediction_is_found_again(llm: LLM, expected: list[int]) -> None:
    edits = {
        "replaced": [*expected[:20], 1, 1, 1, *expected[23:]],
        "inserted": [*expected[:20], 1, 1, 1, *expected[20:]],
        "removed": [*expected[:20], *expected[26:]],
        "another begin": [1, 1, *expected],
    }
    for name, prediction in edits.items():
        output = run(llm, predicted(prediction))
        assert output.outputs[0].token_ids == expected, name
        num_passes, num_accepted, num_rejected = counts(output)
        assert num_accepted == NUM_TOKENS - num_passes, name
        assert num_passes <= 16, name
        # The first token was generated before there was a draft.
        assert (num_rejected > 0) == (name != "another begin")


def test_a_prediction_of_another_text_changes_nothing(llm: LLM, expected: list[int]) -> None:
    unlike = [token + 1 for token in expected]
    output = run(llm, predicted(unlike))
    assert output.outputs[0].token_ids == expected
    assert output.metrics is not None
    assert counts(output)[2] > counts(output)[1]


def test_a_text_is_encoded_without_special_tokens(llm: LLM) -> None:
    text = "x y z" * 20
    ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
    written = {"logit_bias": {ids[0]: 100.0}}  # so that the text's first token is found
    of_text, of_ids = (run(llm, predicted(given), **written) for given in (text, ids))
    assert counts(of_text) == counts(of_ids)
    assert sum(counts(of_text)[1:]) > 0


@pytest.mark.parametrize("nothing", [None, "", []])
def test_no_prediction_is_none(llm: LLM, nothing: Any, expected: list[int]) -> None:
    output = run(llm, predicted(nothing))
    assert output.outputs[0].token_ids == expected
    assert counts(output) == (NUM_TOKENS, 0, 0)


def test_prompts_and_completions_have_their_own(llm: LLM) -> None:
    prompts = [[5, 9], [7, 3, 2], [8]]
    plain = [run(llm, prompt, n=2) for prompt in prompts]
    given = [
        predicted(output.outputs[0].token_ids, prompt)
        for prompt, output in zip(prompts, plain, strict=True)
    ]
    outputs = llm.generate([*given, [8]], params(n=2), use_tqdm=False)
    for output, one in zip(outputs, [*plain, plain[-1]], strict=True):
        assert [each.token_ids for each in output.outputs] == [
            each.token_ids for each in one.outputs
        ]
    # The first completions are as predicted, the others are not.
    assert all(counts(output)[1] >= NUM_TOKENS - 9 for output in outputs[:3])
    assert counts(outputs[3]) == (2 * NUM_TOKENS, 0, 0)


def test_it_is_indexed_once_for_all_completions(
    tiny_dir: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed: list[int] = []

    def index(token_ids: list[int]) -> Any:
        indexed.append(len(token_ids))
        return make(token_ids)

    make = _core.Prediction
    monkeypatch.setattr(_core, "Prediction", index)

    async def main() -> list[RequestOutput]:
        async with AsyncLLM(tiny_dir, speculative_config=QUIET, max_num_seqs=4) as llm:
            (prepared,) = llm.prepare(predicted(expected), params(n=4))
            assert indexed == [NUM_TOKENS]
            return [await llm.generate(prepared) for _ in range(2)]

    outputs = asyncio.run(main())
    assert indexed == [NUM_TOKENS]
    for output in outputs:
        assert output.outputs[0].token_ids == expected
        assert counts(output)[1] >= NUM_TOKENS - 9


def test_requests_can_limit_or_refuse_its_drafts(llm: LLM, expected: list[int]) -> None:
    assert counts(run(llm, predicted(expected), speculative=False)) == (NUM_TOKENS, 0, 0)
    assert counts(run(llm, predicted(expected), max_draft_tokens=0)) == (NUM_TOKENS, 0, 0)
    num_passes, num_accepted, _ = counts(run(llm, predicted(expected), max_draft_tokens=5))
    assert num_accepted == NUM_TOKENS - num_passes
    assert num_passes == 1 + -(-(NUM_TOKENS - 1) // 6)


def test_an_async_llm_drafts_it_token_by_token(tiny_dir: Path, expected: list[int]) -> None:
    async def main() -> tuple[list[int], RequestOutput | None, int]:
        async with AsyncLLM(tiny_dir, speculative_config=QUIET) as llm:
            tokens, output, num_drafted = [], None, 0
            async for delta in llm.stream(predicted(expected), params()):
                tokens += delta.token_ids
                num_drafted += delta.is_drafted
                output = delta.output
            return tokens, output, num_drafted

    tokens, output, num_drafted = asyncio.run(main())
    assert tokens == expected
    assert output is not None
    assert counts(output) == (3, num_drafted, 0)


def test_a_chat_is_given_one_after_it_was_rendered(llm: LLM) -> None:
    prompt = llm.render_chat([{"role": "user", "content": "x"}])
    plain = run(llm, prompt)
    prompt["prediction"] = plain.outputs[0].token_ids
    output = run(llm, prompt)
    assert output.outputs[0].token_ids == plain.outputs[0].token_ids
    assert counts(output) == (3, NUM_TOKENS - 3, 0)


def test_an_llm_engine_takes_it_with_the_prompt(llm: LLM, expected: list[int]) -> None:
    engine = llm.llm_engine
    engine.add_request("a", predicted(expected), params())
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert outputs[-1].outputs[0].token_ids == expected
    assert counts(outputs[-1]) == (3, NUM_TOKENS - 3, 0)


def test_a_grammar_holds_beside_it(llm: LLM, tiny_dir: Path) -> None:
    fields: dict[str, Any] = {"structured_outputs": {"regex": "(ab|cd){12}x"}}
    plain = run(LLM(tiny_dir), PROMPT, **fields)
    tokens = plain.outputs[0].token_ids
    wrong = [*tokens[:8], 1, 1, *tokens[9:]]
    for prediction in (tokens, wrong):
        output = run(llm, predicted(prediction), **fields)
        assert output.outputs[0].token_ids == tokens
        assert output.outputs[0].text == plain.outputs[0].text
        assert counts(output)[1] > 8


@pytest.mark.parametrize(
    ("prediction", "field"),
    [
        (5, "prompts: prediction"),
        ([1, "x"], "prompts: prediction"),
        ([1, 2.5], "prompts: prediction"),
        (b"text", "prompts: prediction"),
        ("\ud800", "prompts: prediction"),
        ([1, -1], "prediction[1]"),
        ([1, 2, 10**6], "prediction[2]"),
        ([1, 2**31], "prompts: prediction"),
        ([1] * 5000, "prediction"),
    ],
)
def test_wrong_ones_are_refused(llm: LLM, prediction: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        run(llm, predicted(prediction))
    assert error.value.field == field


def test_a_beam_search_refuses_it(llm: LLM) -> None:
    with pytest.raises(InvalidArgumentError, match=r"prompts\[0\]: prediction"):
        llm.beam_search([predicted([1])], BeamSearchParams(beam_width=2, max_tokens=2))


def test_text_of_an_llm_without_a_tokenizer_is_refused(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, skip_tokenizer_init=True)
    with pytest.raises(InvalidArgumentError, match="skip_tokenizer_init"):
        run(llm, predicted("x"), detokenize=False)


def test_editing_a_file_of_code_takes_a_part_of_the_passes(smollm_dir: Path) -> None:
    llm = LLM(smollm_dir, speculative_config=QUIET)
    ask = f"Rewrite this code with the class Stack renamed to Pile. Only the code.\n{CODE}"
    prompt = llm.render_chat([{"role": "user", "content": ask}])
    fields = {"temperature": 0, "seed": None, "max_tokens": 96, "ignore_eos": False}
    plain = run(llm, prompt, **fields).outputs[0]
    edited = plain.text.replace("items", "elements", 3).replace("def push", "def add", 1)
    assert edited != plain.text
    output = run(llm, {**prompt, "prediction": edited}, **fields)
    assert output.outputs[0].text == plain.text
    num_passes, num_accepted, _ = counts(output)
    assert num_accepted == len(plain.token_ids) - num_passes
    assert num_passes < len(plain.token_ids) / 3


@st.composite
def edited(draw: st.DrawFn) -> list[tuple[int, int, list[int]]]:
    """Edits of a text: a position, how many tokens to drop there and what to put there."""
    tokens = st.lists(st.integers(0, lossless.VOCAB_SIZE - 1), max_size=4)
    return draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 5), tokens), max_size=4))


def apply(edits: list[tuple[int, int, list[int]]], text: list[int]) -> list[int]:
    for position, num_dropped, put in edits:
        text = [*text[:position], *put, *text[position + num_dropped :]]
    return text


@settings(max_examples=60, derandomize=True, **lossless.QUIET)
@given(
    st.sampled_from(lossless.MODELS),
    lossless.engine_settings(),
    st.lists(st.tuples(lossless.prompts(), lossless.sampling(), edited()), min_size=1, max_size=6),
)
def test_no_token_depends_on_predictions(model, options, requests):
    """With any engine: the predictions are what plain decoding generates, after some edits."""
    options = dict(options)
    options["kv_cache_memory_bytes"] = (
        options.pop("num_blocks") * lossless.block_bytes(model) * options["block_size"] // 16
    )
    engine = lossless.make_engine(model, **options)
    expected, ids = [], []
    for prompt, fields, edits in requests:
        prompt = prompt[: options["max_model_len"] - 1]
        room = options["max_model_len"] - len(prompt)
        alone = {**fields, "max_tokens": min(fields["max_tokens"], room)}
        (result,) = lossless.run(
            lossless.reference_engine(model), [(prompt, lossless.to_params(alone))]
        )
        expected.append(result)
        prediction = apply(edits, result[0])[: options["max_model_len"]]
        submit_options = _core.SubmitOptions(prediction=_core.Prediction(prediction))
        array = np.array(prompt, np.int32)
        ids.append(engine.submit(array, lossless.to_params(fields), options=submit_options))
    tokens: dict[int, list[int]] = {id: [] for id in ids}
    reasons: dict[int, str] = {}
    while engine.has_unfinished():
        for update in engine.step():
            tokens[update.id] += update.new_tokens
            reasons[update.id] = update.finish_reason.name
            if update.metrics is not None:
                drafts = update.metrics.spec_decode
                accepted = update.metrics.num_accepted_prediction_tokens
                assert accepted <= drafts.num_accepted_tokens
                assert (
                    accepted + update.metrics.num_rejected_prediction_tokens
                    <= drafts.num_draft_tokens
                )
    assert [(tokens[id], reasons[id]) for id in ids] == expected
