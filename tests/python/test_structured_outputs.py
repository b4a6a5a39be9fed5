"""Structured output: valid, the same with and without speculation, and never another's problem."""

from __future__ import annotations

import ctypes
import json
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from random_schemas import random_schema

from forerun import LLM, InvalidArgumentError, SamplingParams, StructuredOutputsParams, _core
from forerun.text.grammar_compiler import GrammarCompiler, GrammarState, GrammarTokenizer

METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "adaptive": False},
    "tree": {"method": "suffix", "suffix_decoding_use_tree": True, "adaptive": False},
    "grammar": {"method": "grammar", "adaptive": False},
}
EOS = 0
LETTERS = [b"<end>", b"<pad>", *(bytes([byte]) for byte in range(32, 127))]
VOCABULARY = [
    *LETTERS,
    b'{"',
    b'":',
    b'","',
    b"ab",
    b"abc",
    b"null",
    b"\xc3",
    b"\xa9",
    b"\xaf",
    b"\xc3\xa9",
]


def encode(text: str) -> list[int]:
    # What is not ASCII it cannot write by itself.
    return [VOCABULARY.index(bytes([byte])) for byte in text.encode("ascii", "ignore")]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(GrammarTokenizer(VOCABULARY, [1], [EOS], encode))


@pytest.fixture(scope="module")
def llms(tiny_dir: Path) -> dict[str, LLM]:
    return {
        name: LLM(tiny_dir, speculative_config=config, max_num_seqs=4, check_invariants=True)
        for name, config in METHODS.items()
    }


def allowed(state: GrammarState) -> list[int]:
    mask = (ctypes.c_uint32 * ((len(VOCABULARY) + 31) // 32))()
    state.fill_mask(ctypes.addressof(mask), ctypes.sizeof(mask))
    return [t for t in range(len(VOCABULARY)) if mask[t // 32] >> t % 32 & 1]


GRAMMARS: list[dict[str, Any]] = [
    {"regex": r"(ab|c){2,4}x*"},
    {"choice": ["abc", "ab", 'quo"te\\n', "null"]},
    {"grammar": 'start: "a" start "b" | "c"'},
    {"grammar": 'root ::= "a" root "b" | "c"'},
    {"json_object": True, "disable_any_whitespace": True},
    *({"json": random_schema(random.Random(seed))} for seed in range(6)),
]


@pytest.mark.parametrize("fields", GRAMMARS)
def test_a_state_is_a_function_of_its_tokens(fields: Any, compiler: GrammarCompiler) -> None:
    start = compiler.compile(StructuredOutputsParams(**fields))
    rng = random.Random(repr(fields))
    for _ in range(5):
        worn, output = start(), []
        while len(output) < 25 and EOS not in output:
            for _ in range(rng.randrange(3)):  # looks along some drafts
                path = [rng.randrange(len(VOCABULARY)) for _ in range(rng.randrange(4))]
                if rng.random() < 0.7:
                    path = worn.forced() + path
                worn.rollback(worn.advance(path))
            fresh = start()
            assert fresh.advance(output) == len(output)
            choice = allowed(fresh)
            assert allowed(worn) == choice
            assert worn.forced() == fresh.forced()
            assert choice, "there is always a way to go on"
            token = rng.choice(choice)
            for other in rng.sample(range(len(VOCABULARY)), 10):
                fresh = start()
                fresh.advance(output)
                assert fresh.advance([other]) == (other in choice)
            assert worn.advance([token]) == 1
            output.append(token)


@pytest.mark.parametrize("fields", GRAMMARS)
def test_forced_tokens_are_the_only_ones(fields: Any, compiler: GrammarCompiler) -> None:
    state = compiler.compile(StructuredOutputsParams(**fields))()
    rng = random.Random(1)
    for _ in range(40):
        for token in state.forced():
            assert allowed(state) == [token]
            assert state.advance([token]) == 1
        choice = allowed(state)
        assert state.advance([rng.choice(choice)]) == 1


def test_the_end_is_allowed_where_the_grammar_accepts(compiler: GrammarCompiler) -> None:
    state = compiler.compile(StructuredOutputsParams(regex="abx?"))()
    assert EOS not in allowed(state)
    assert state.advance([EOS]) == 0
    assert state.advance(encode("ab")) == 2
    assert set(allowed(state)) == {EOS, *encode("x")}
    assert state.advance([*encode("x"), EOS, EOS]) == 3
    assert allowed(state) == [EOS]
    assert state.forced() == []
    state.rollback(2)
    assert state.forced() == [EOS]
    state.rollback(1)
    assert set(allowed(state)) == {EOS, *encode("x")}
    assert state.advance([EOS, *encode("x")]) == 1


def test_tokens_that_a_tokenizer_would_write_otherwise_are_written_greedily() -> None:
    vocabulary = GrammarTokenizer(VOCABULARY, [1], [EOS], lambda text: [VOCABULARY.index(b" ")])
    assert vocabulary("abcab<pad>") == [
        VOCABULARY.index(b"abc"),
        VOCABULARY.index(b"ab"),
        *encode("<pad>"),
    ]
    assert vocabulary("ab\x01") == [VOCABULARY.index(b"ab")]
    with pytest.raises(TypeError):
        vocabulary(b"bytes")  # type: ignore[arg-type]


def test_equal_grammars_are_compiled_once(compiler: GrammarCompiler) -> None:
    before = len(compiler._grammars)
    for _ in range(3):
        compiler.compile(StructuredOutputsParams(json={"const": "only here"}))
        compiler.compile(StructuredOutputsParams(json='{"const":   "only here"}'))
    assert len(compiler._grammars) == before + 1


def test_grammars_that_fail_take_no_room_from_others(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputsParams(regex="kept"))
    before = dict(compiler._grammars)
    for number in range(300):
        with pytest.raises(InvalidArgumentError):
            compiler.compile(StructuredOutputsParams(regex=f"({number}"))
    assert dict(compiler._grammars) == before


def test_threads_wait_for_each_other_only_for_the_same_grammar(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_now, texts = compiler._compile, []
    has_begun, may_go_on = threading.Event(), threading.Event()

    def compile_slowly(text: str) -> Any:
        texts.append(text)
        if len(texts) == 1:
            has_begun.set()
            assert may_go_on.wait(60)
        return compile_now(text)

    monkeypatch.setattr(compiler, "_compile", compile_slowly)
    slow = StructuredOutputsParams(regex="[ab]{3}c")
    with ThreadPoolExecutor() as pool:
        slow_ones = [pool.submit(compiler.compile, slow) for _ in range(3)]
        assert has_begun.wait(60)
        compiler.compile(StructuredOutputsParams(regex="[ab]{4}c"))
        assert not any(each.done() for each in slow_ones)
        may_go_on.set()
        for each in slow_ones:
            each.result()
    assert len(texts) == 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "structured_outputs: got None; expected exactly one of json"),
    ({"regex": "a", "choice": ["a"]}, "structured_outputs: got ['regex', 'choice']"),
    ({"regx": "a"}, "did you mean 'regex'?"),
    ({"regex": ""}, "regex: got ;"),
    ({"regex": 3}, "regex: got 3"),
    ({"grammar": b"x"}, "grammar: got b'x'"),
    ({"choice": []}, "choice: got []"),
    ({"choice": "abc"}, "choice: got abc;"),
    ({"choice": ["a", ""]}, "choice: got ;"),
    ({"choice": ["a", 1]}, "choice: got 1"),
    ({"json": "{"}, "json: got text that cannot be parsed; expected a JSON schema"),
    ({"json": "[]"}, "json: got []; expected a JSON schema"),
    ({"json": {"const": {1, 2}}}, "expected a JSON schema"),
    ({"json": 3}, "json: got 3"),
    ({"json_object": False}, "json_object: got False"),
    ({"json_object": 1}, "json_object: got 1"),
    ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace: got 1"),
    ({"regex": "a", "disable_any_whitespace": True}, "no such option with regex"),
    ({"choice": ["a"], "disable_additional_properties": True}, "no such option with choice"),
    ({"grammar": "a", "whitespace_pattern": " "}, "no such option with grammar"),
    ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}, "whitespace_pattern"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    for make in (
        lambda: StructuredOutputsParams(**fields),
        lambda: SamplingParams(structured_outputs=fields),
    ):
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            make()


UNCOMPILABLE: list[dict[str, Any]] = [
    {"json": {"type": "strin"}},
    {"json": {"$ref": "#/nowhere"}},
    {"json": {"type": "integer", "minimum": 3, "maximum": 2}},
    {"regex": "(a"},
    {"grammar": "start: undefined_rule"},
    {"grammar": "root ::= ("},
]


@pytest.mark.parametrize("fields", UNCOMPILABLE)
def test_grammars_that_do_not_compile_are_refused_with_the_reason(
    fields: dict[str, Any], llms: dict[str, LLM]
) -> None:
    [kind] = fields
    with pytest.raises(
        InvalidArgumentError, match=rf"structured_outputs\.{kind}: .*llguidance"
    ) as e:
        llms["none"].generate("x", SamplingParams(structured_outputs=fields), use_tqdm=False)
    assert "<state>" not in str(e.value)


def test_a_model_without_a_tokenizer_or_an_end_is_told(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, skip_tokenizer_init=True)
    with pytest.raises(InvalidArgumentError, match="skip_tokenizer_init"):
        llm.generate([[1]], SamplingParams(structured_outputs={"regex": "a"}), use_tqdm=False)
    with pytest.raises(InvalidArgumentError, match="end-of-sequence"):
        GrammarTokenizer(VOCABULARY, [], [], encode)
    for wrong in ("regex", 3):
        with pytest.raises(InvalidArgumentError, match="structured_outputs"):
            SamplingParams(structured_outputs=wrong)  # type: ignore[arg-type]


def test_objects_are_closed_on_request() -> None:
    inner = {"properties": {"x": {"type": "object", "additionalProperties": True}}}
    schema = {"type": "object", "properties": {"a": inner, "b": {"enum": [{"type": "object"}]}}}
    params = StructuredOutputsParams(json=schema, disable_additional_properties=True)
    closed = params._schema()
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert closed["properties"]["a"]["properties"]["x"]["additionalProperties"] is True
    assert closed["properties"]["b"] == {"enum": [{"type": "object"}]}


def results(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[Any]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(prompts)
    return [
        (done.token_ids, done.finish_reason, done.logprobs, done.text)
        for output in outputs
        for done in output.outputs
    ]


def check(fields: dict[str, Any], text: str, reason: str) -> None:
    if reason == "length":
        return
    assert reason == "stop"
    if "regex" in fields:
        assert re.fullmatch(fields["regex"], text)
    elif "choice" in fields:
        assert text in fields["choice"]
    elif "grammar" in fields:
        assert re.fullmatch("(a*)c(b*)", text)
        assert text.count("a") == text.count("b")
    else:
        jsonschema.validate(json.loads(text), fields.get("json", {"type": "object"}))


def test_texts_are_valid_and_the_same_with_every_method(llms: dict[str, LLM]) -> None:
    rng = random.Random(5)
    structures = GRAMMARS + [{"json": random_schema(rng)} for _ in range(12)]
    prompts = [rng.choice(("hello", "The JSON is: ", "abc abc abc")) for _ in structures]
    params = [
        SamplingParams(
            temperature=index % 2 * 0.8,
            n=1 + index % 2,
            seed=index,
            max_tokens=rng.choice((5, 60, 150)),
            logprobs=2,
            repetition_penalty=rng.choice((1.0, 1.3)),
            structured_outputs=fields,
        )
        for index, fields in enumerate(structures)
    ]
    expected = results(llms["none"], prompts, params)
    assert {reason for _, reason, _, _ in expected} == {"stop", "length"}
    owners = [
        fields for fields, param in zip(structures, params, strict=True) for _ in range(param.n)
    ]
    for fields, (_, reason, _, text) in zip(owners, expected, strict=True):
        check(fields, text, reason)
    for method in METHODS.keys() - {"none"}:
        assert results(llms[method], prompts, params) == expected, method
    assert llms["grammar"].metrics().spec_decode.num_accepted_tokens > 50


def test_a_text_cut_by_its_length_is_a_valid_beginning(llms: dict[str, LLM]) -> None:
    llm = llms["grammar"]
    structure = StructuredOutputsParams(json=random_schema(random.Random(9)))
    params = SamplingParams(structured_outputs=structure, max_tokens=3, seed=1)
    [output] = llm.generate("x", params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"
    state = llm._grammars.compile(structure)()
    assert state.advance(list(output.outputs[0].token_ids)) == 3


def test_forced_tokens_cost_hardly_any_pass(llms: dict[str, LLM]) -> None:
    fields = {"json": {"const": "one long text without any choice"}, "disable_any_whitespace": True}
    params = SamplingParams(structured_outputs=fields, max_tokens=100)
    [plain] = llms["none"].generate("x", params, use_tqdm=False)
    [output] = llms["grammar"].generate("x", params, use_tqdm=False)
    assert output.outputs[0].text == plain.outputs[0].text == '"one long text without any choice"'
    assert output.outputs[0].finish_reason == "stop"
    assert output.metrics is not None
    assert output.metrics.tokens_per_target_pass > 5
    [kept_plain] = llms["grammar"].generate(
        "x",
        SamplingParams(structured_outputs=fields, max_tokens=100, speculative=False),
        use_tqdm=False,
    )
    assert kept_plain.metrics is not None
    assert kept_plain.metrics.tokens_per_target_pass == 1


def test_nothing_left_fails_its_request_alone(llms: dict[str, LLM]) -> None:
    a, b, c = llms["none"].get_tokenizer().encode("abc", add_special_tokens=False)
    structure = StructuredOutputsParams(choice=["abcd"])
    never = SamplingParams(structured_outputs=structure, allowed_token_ids=[a, b, c])
    fine = SamplingParams(temperature=0, max_tokens=8)
    [alone] = llms["none"].generate("hello", fine, use_tqdm=False)
    for llm in llms.values():
        failed, beside = llm.generate(["hello", "hello"], [never, fine], use_tqdm=False)
        assert failed.error is not None
        assert "no token can be sampled" in failed.error
        assert failed.outputs[0].text == "abc"
        assert beside.outputs[0].token_ids == alone.outputs[0].token_ids


def test_a_failing_grammar_fails_its_request_alone(
    llms: dict[str, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def break_down(self: GrammarState, *arguments: list[int]) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("too complex")
        return original(self, *arguments)

    original: Callable[..., Any] = GrammarState.after
    monkeypatch.setattr(GrammarState, "after", break_down)
    params = SamplingParams(structured_outputs={"regex": "[a-z]+"}, max_tokens=8, temperature=0)
    plain = SamplingParams(max_tokens=8, temperature=0)
    failed, beside = llms["suffix"].generate(["hello"] * 2, [params, plain], use_tqdm=False)
    assert failed.error == "the constraint failed: RuntimeError: too complex"
    assert failed.outputs[0].finish_reason == "error"
    assert len(failed.outputs[0].token_ids) == 2
    assert beside.error is None


@pytest.mark.parametrize(
    "num_schemas", [3, pytest.param(200, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_random_schemas_give_valid_json_with_and_without_speculation(
    num_schemas: int, smollm_dir: Path
) -> None:
    schemas = [random_schema(random.Random(seed)) for seed in range(num_schemas)]
    prompts = [f"JSON that follows {json.dumps(schema)}:\n" for schema in schemas]
    params = [
        SamplingParams(
            temperature=index % 2,
            seed=index,
            max_tokens=160,
            structured_outputs=StructuredOutputsParams(
                json=schema, disable_any_whitespace=index % 8 > 0
            ),
        )
        for index, schema in enumerate(schemas)
    ]
    expected: list[Any] = []
    for method, config in METHODS.items():
        if method in ("ngram", "tree"):
            continue
        llm = LLM(smollm_dir, speculative_config=config, max_num_seqs=8, max_model_len=1024)
        got = results(llm, prompts, params)
        expected = expected or got
        assert got == expected, method
        print(f"{method}: {llm.metrics().tokens_per_target_pass:.3f} tokens per target pass")
    num_whole = 0
    for schema, (_, reason, _, text) in zip(schemas, expected, strict=True):
        check({"json": schema}, text, reason)
        num_whole += reason == "stop"
    print(f"{num_whole} of {num_schemas} texts came to their end")
    assert num_whole >= 0.8 * num_schemas


@pytest.mark.parametrize("method", METHODS)
def test_a_step_takes_the_gil_once_for_all_grammars_and_drafts(
    method: str, llms: dict[str, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = llms[method]
    num_rows: list[int] = []  # of each call that computes masks
    fill_masks = GrammarState.fill_masks

    def fill(self: GrammarState, states: Any, *arguments: int) -> None:
        num_rows.append(len(states))
        fill_masks(self, states, *arguments)

    steps: list[tuple[int, int]] = []  # acquisitions of the GIL and calls, by step

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def step(self) -> Any:
            before = _core.num_gil_acquisitions(), len(num_rows)
            updates = engine.step()
            steps.append((_core.num_gil_acquisitions() - before[0], len(num_rows) - before[1]))
            return updates

    engine = llm._board._engine
    monkeypatch.setattr(GrammarState, "fill_masks", fill)
    monkeypatch.setattr(llm._board, "_engine", Counted())
    # More requests than fit at a time: some begin and end while others run.
    params = [
        SamplingParams(max_tokens=10 + 5 * index, temperature=0, structured_outputs=fields)
        for index, fields in enumerate(GRAMMARS)
    ]
    outputs = llm.generate(["abc abc abc"] * len(params), params, use_tqdm=False)
    assert all(output.error is None for output in outputs)
    assert len(steps) > 10
    assert set(steps) <= {(1, 1), (0, 0)}
    assert (max(num_rows) > 4) == (method != "none"), "rows of drafts are in the same call"
