"""Grammars at their edges: dead ends, many alternatives, deep nesting, ends before min_tokens."""

from __future__ import annotations

import ctypes
import enum
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from random_schemas import random_schema

from forerun import LLM, InvalidArgumentError, SamplingParams, StructuredOutputsParams
from forerun.text.grammar_compiler import GrammarCompiler, GrammarState, GrammarTokenizer

EOS = 256
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1},
    "grammar": {"method": "grammar", "adaptive": False},
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    tokens = [bytes([byte]) for byte in range(256)]
    return GrammarCompiler(
        GrammarTokenizer([*tokens, b"<end>"], [], [EOS], lambda s: list(s.encode()))
    )


@pytest.fixture(scope="module")
def llms(tiny_dir: Path) -> dict[str, LLM]:
    return {
        name: LLM(tiny_dir, speculative_config=config, max_num_seqs=4, check_invariants=True)
        for name, config in METHODS.items()
    }


def allowed(state: GrammarState) -> list[int]:
    mask = (ctypes.c_uint32 * 9)()
    state.fill_mask(ctypes.addressof(mask), ctypes.sizeof(mask))
    return [t for t in range(257) if mask[t // 32] >> t % 32 & 1]


def written(state: GrammarState, rng: random.Random, most: int = 5000) -> str:
    """A random text from its beginning to its end."""
    text: list[int] = []
    while len(text) < most:
        choice = allowed(state)
        assert choice, bytes(text)
        token = rng.choice(choice)
        if EOS in choice and rng.random() < 0.5:
            token = EOS
        assert state.advance([token]) == 1
        if token == EOS:
            return bytes(text).decode()
        text.append(token)
    raise AssertionError(f"no end: {bytes(text[:100])!r}")


def an_object(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **keywords}


ONE = {"const": 1}
CYCLE = {"$ref": "#/$defs/node"}
NODE = {"type": "object", "properties": {"next": CYCLE}, "required": ["next"]}
REPAIRED: list[Any] = [
    an_object(properties={"a": ONE}, required=["a"], patternProperties={"^a$": {}}),
    an_object(properties={"a": {"type": "integer", "maximum": 3}}, patternProperties={"^a$": ONE}),
    an_object(properties={"a": {}, "b": {}}, patternProperties={"^[ab]$": ONE}),
    an_object(properties={"a": {}, "b": ONE}, patternProperties={"^a$": ONE, "^(b|a)$": {}}),
    an_object(properties={'"': ONE, "é\n": {}}, patternProperties={"^é\n$": ONE, '^"$': {}}),
    {"type": "object", "properties": {"a": ONE}, "patternProperties": {"^(?s:.)*$": False}},
    {"type": "array", "items": an_object(properties={"x": ONE}, patternProperties={"^x$": {}})},
    {"anyOf": [CYCLE, ONE], "$defs": {"node": NODE}},
    an_object(properties={"a": CYCLE, "b": ONE}, required=["b"], **{"$defs": {"node": NODE}}),
    {"type": "array", "items": CYCLE, "maxItems": 2, "$defs": {"node": NODE}},
]


@pytest.mark.parametrize("schema", REPAIRED, ids=json.dumps)
def test_schemas_have_no_dead_ends(schema: Any, compiler: GrammarCompiler) -> None:
    start = compiler.compile(StructuredOutputsParams(json=schema))
    for seed in range(20):
        jsonschema.validate(json.loads(written(start(), random.Random(seed))), schema)


NEVER: list[dict[str, Any]] = [
    {"json": {"$ref": "#/$defs/node", "$defs": {"node": NODE}}},
    {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    {"json": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}},
    {"json": {"anyOf": [{"$ref": "#"}, False]}},
    {"json": {"enum": []}},
    {"json": {"type": "array", "minItems": 3, "maxItems": 2}},
    {"json": {"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 5}},
    {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
    {"json": {"type": "string", "pattern": "^a$", "minLength": 2}},
    {"json": an_object(required=["b"])},
    {"json": an_object(properties={"a": ONE}, required=["a"], patternProperties={"a": False})},
    {"regex": r"[^\s\S]"},
    {"grammar": "start: T\nT: /a/ & /b/"},
    {"grammar": 'start: "a" T\nT: /a/ & /b/'},
]


@pytest.mark.parametrize("fields", NEVER, ids=json.dumps)
def test_grammars_that_no_text_satisfies_are_refused(
    fields: Any, compiler: GrammarCompiler
) -> None:
    [kind] = fields
    with pytest.raises(InvalidArgumentError, match=rf"^structured_outputs\.{kind}: "):
        compiler.compile(StructuredOutputsParams(**fields))


@pytest.mark.parametrize("schema", [{"const": 1}, {"type": "array"}, {"type": "object"}, {}])
def test_whitespace_has_an_end(schema: Any, compiler: GrammarCompiler) -> None:
    for beginning in (b"", b"[", b'{"a":', b"[1,"):
        state = compiler.compile(StructuredOutputsParams(json=schema))()
        if state.advance(list(beginning)) < len(beginning):
            continue
        assert state.advance([ord(" "), ord("\n")] * 40) <= 40
        assert allowed(state)
        assert not {*b" \n\t\r"} & set(allowed(state))


@pytest.mark.parametrize("number", [2_000, 50_000])
def test_choices_may_be_many(number: int, compiler: GrammarCompiler) -> None:
    rng = random.Random(number)
    letters = 'abé漢😀"\\/\n\t (|)[.*'
    texts = {"".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(number)}
    choices = [*texts, *(f"{i} and more" for i in range(number - len(texts)))]
    choices += choices[:5]
    start = compiler.compile(StructuredOutputsParams(choice=choices))
    for text in rng.sample(choices, 10):
        state = start()
        assert state.advance([*text.encode(), EOS]) == len(text.encode()) + 1
        cut = start()
        assert cut.advance([*text[:-1].encode(), EOS]) >= len(text[:-1].encode())
        assert (EOS in allowed(start())) is False
    for seed in range(3):
        assert written(start(), random.Random(seed)) in set(choices)


def test_a_choice_may_begin_another(compiler: GrammarCompiler) -> None:
    state = compiler.compile(StructuredOutputsParams(choice=["a", "ab", "abc", "ab"]))()
    for expected in ([ord("a")], [ord("b"), EOS], [ord("c"), EOS], [EOS]):
        assert allowed(state) == expected
        state.advance(expected[:1])


MANY = [f"a{i}" for i in range(2_200)]
LARGE: list[dict[str, Any]] = [
    {"grammar": "start: " + " | ".join(f'"{word}"' for word in MANY)},
    {"grammar": "root ::= " + " | ".join(f'"{word}" "b"?' for word in MANY)},
    {"json": {"enum": [{"a": word} for word in MANY]}},
    {"json": an_object(properties={word: ONE for word in MANY[:700]})},
]


@pytest.mark.parametrize("fields", LARGE, ids=lambda fields: str(fields)[:40])
def test_alternatives_may_be_many(fields: Any, compiler: GrammarCompiler) -> None:
    start = compiler.compile(StructuredOutputsParams(**fields, **WITHOUT_SPACE.get(*fields)))
    for seed in range(3):
        text = written(start(), random.Random(seed))
        if "json" in fields:
            jsonschema.validate(json.loads(text), fields["json"])


WITHOUT_SPACE: Any = {"json": {"disable_any_whitespace": True}, "grammar": {}}


@pytest.mark.parametrize(
    "expression",
    [
        "((x{100}){100}){100}",
        "(((x{100}){100}){100}){100}",
        "(x{1000}){1000}",
        "a{20}((x{100}){100}){100}",
    ],
)
def test_expressions_that_would_take_seconds_for_each_token_are_refused(
    expression: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidArgumentError, match="too many expressions"):
        compiler.compile(StructuredOutputsParams(regex=expression))


@pytest.mark.parametrize("expression", ["x?", "[ab]+", "[a-z]{1,5000}", "(.{1000}y){50}"])
def test_expressions_of_a_usual_size_are_taken(expression: str, compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputsParams(regex=expression))()


@pytest.mark.long
def test_a_grammar_beyond_the_limit_is_refused(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {f"a{i}": ONE for i in range(15_000)}}
    with pytest.raises(InvalidArgumentError, match=r"structured_outputs\.json: .* can compile"):
        compiler.compile(StructuredOutputsParams(json=schema))


def nested(make: Callable[[Any], Any], depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = make(value)
    return value


def referring(depth: int, make: Callable[[Any], Any]) -> Any:
    """Definitions that refer to each other in one chain."""
    links = {f"d{i}": make({"$ref": f"#/$defs/d{i + 1}"}) for i in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{depth}": {}}}


DEEP: list[Any] = [
    {"json": "[" * 200_000 + "]" * 200_000},
    {"json": '{"items":' * 200_000 + "{}" + "}" * 200_000},
    {"json": '{"const":' + "[" * 200_000 + "]" * 200_000 + "}"},
    {"json": nested(lambda value: {"items": value}, 200_000)},
    {"json": nested(lambda value: {"const": [value]}, 500)},
    {"json": nested(lambda value: {"anyOf": [value]}, 300)},
    {"json": referring(20_000, lambda target: target)},
    {"json": referring(2_000, lambda target: {"properties": {"a": target}, "required": ["a"]})},
    {"json": referring(2_000, lambda target: {"anyOf": [target, {"type": "object"}]})},
    {"json": referring(2_000, lambda target: {"type": "array", "items": target, "minItems": 1})},
    {"regex": "(" * 20_000 + "a" + ")" * 20_000},
    {"regex": "a" + "?" * 20_000},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {
        "grammar": "start: r0\n"
        + "".join(f"r{i}: r{i + 1}\n" for i in range(20_000))
        + 'r20000: "a"'
    },
    {
        "grammar": "start: T0\n"
        + "".join(f"T{i}: T{i + 1}\n" for i in range(20_000))
        + 'T20000: "a"'
    },
    {
        "grammar": "root ::= r0\n"
        + "".join(f"r{i} ::= r{i + 1}\n" for i in range(999))
        + 'r999 ::= "a"'
    },
]


@pytest.mark.parametrize("fields", DEEP, ids=lambda fields: str(list(fields)))
def test_deep_nesting_is_refused(fields: Any, compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^(structured_outputs\.)?(json|regex|grammar)"):
        compiler.compile(StructuredOutputsParams(**fields))


def test_moderate_nesting_is_welcome(compiler: GrammarCompiler) -> None:
    rules = "".join(f'r{i}: "a" (("b" | "c") r{i + 1})\n' for i in range(60))
    compiler.compile(StructuredOutputsParams(grammar=f'start: r0\n{rules}r60: "x"'))
    schema = referring(80, lambda target: {"type": "object", "properties": {"a": target}})
    compiler.compile(StructuredOutputsParams(json=schema))
    many = {f"d{i}": {"type": "object", "properties": {"a": ONE}} for i in range(600)}
    refer = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in many], "$defs": many}
    compiler.compile(StructuredOutputsParams(json=refer))
    flat = "start: " + " | ".join(f"r{i}" for i in range(600)) + "\n"
    compiler.compile(
        StructuredOutputsParams(grammar=flat + "".join(f'r{i}: "{i}"\n' for i in range(600)))
    )


NAMES = ("enum", "const", "default", "examples", "properties", "$defs", "required", "items", "type")


@pytest.mark.parametrize("name", NAMES)
def test_properties_named_as_keywords_are_closed(name: str, compiler: GrammarCompiler) -> None:
    inner = {"type": "object", "properties": {"x": ONE}, "required": ["x"]}
    schema = {"type": "object", "properties": {name: inner}, "required": [name]}
    params = StructuredOutputsParams(
        json=schema, disable_additional_properties=True, disable_any_whitespace=True
    )
    start = compiler.compile(params)
    text = json.dumps({name: {"x": 1}}, separators=(",", ":"))
    assert start().advance([*text.encode(), EOS]) == len(text) + 1
    assert start().advance(list(text[:-2].encode() + b",")) == len(text) - 2


CLOSED = {"type": "object", "additionalProperties": False}
OPEN = {"type": "object"}


@pytest.mark.parametrize("key", ["items", "additionalProperties", "not", "if", "contains"])
def test_objects_within_keywords_are_closed(key: str) -> None:
    for schema, expected in [
        ({key: OPEN}, {key: CLOSED}),
        (
            {"properties": {"a": {key: OPEN}}, **CLOSED},
            {"properties": {"a": {key: CLOSED}}, **CLOSED},
        ),
        ({"anyOf": [{key: OPEN}]}, {"anyOf": [{key: CLOSED}]}),
        ({"$defs": {key: OPEN}}, {"$defs": {key: CLOSED}}),
        ({"default": {key: OPEN}, "enum": [OPEN]}, {"default": {key: OPEN}, "enum": [OPEN]}),
    ]:
        params = StructuredOutputsParams(json=schema, disable_additional_properties=True)
        assert params._schema() == expected


def test_min_tokens_beyond_the_end_of_a_grammar_stop(llms: dict[str, LLM]) -> None:
    structures: list[dict[str, Any]] = [
        {"choice": ["abc"]},
        {"regex": "[ab]{3,5}"},
        {"json": random_schema(random.Random(4))},
    ]
    params = [
        SamplingParams(structured_outputs=fields, min_tokens=400, max_tokens=450, seed=1)
        for fields in structures
    ]
    expected: Any = None
    for llm in llms.values():
        outputs = llm.generate(["hello"] * 3, params, use_tqdm=False)
        got = [(o.outputs[0].token_ids, o.outputs[0].finish_reason, o.error) for o in outputs]
        expected = expected or got
        assert got == expected
        assert [(reason, error) for _, reason, error in got] == [("stop", None)] * 3
        assert outputs[0].outputs[0].text == "abc"
        assert len(outputs[1].outputs[0].text) == 5, "it goes on where it may"


def test_a_dead_end_in_a_text_fails_its_request_alone(llms: dict[str, LLM]) -> None:
    tokenizer = llms["none"].get_tokenizer()
    [b] = tokenizer.encode("b", add_special_tokens=False)
    grammar = 'start: "b" T | "c"\nT: /a/ & /b/'
    dead = SamplingParams(structured_outputs={"grammar": grammar}, logit_bias={b: 100})
    fine = SamplingParams(temperature=0, max_tokens=8)
    [alone] = llms["none"].generate("hello", fine, use_tqdm=False)
    for llm in llms.values():
        failed, beside = llm.generate(["hello"] * 2, [dead, fine], use_tqdm=False)
        assert failed.outputs[0].finish_reason == "error"
        assert failed.outputs[0].text == "b"
        assert "no token can follow" in str(failed.error)
        assert f"structured_outputs.grammar {grammar}" in str(failed.error)
        assert beside.outputs[0].token_ids == alone.outputs[0].token_ids


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


class Lying(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


class Other(BaseException):
    pass


ERRORS = [
    (ValueError("half \ud83d of a pair"), r"ValueError: half \ud83d of a pair"),
    (Silent(), "Silent (its __str__ raises)"),
    (Lying(), "Lying (its __str__ raises)"),
    (ValueError({"a": [1]}, 2), "ValueError: ({'a': [1]}, 2)"),
    (Other("none of Exception"), "Other: none of Exception"),
    (GeneratorExit(), "GeneratorExit: "),
]


@pytest.mark.parametrize(("error", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_hooks_error_fails_its_request_alone(
    error: BaseException, message: str, llms: dict[str, LLM]
) -> None:
    def hook(token_ids: Any, logits: Any) -> Any:
        raise error

    fine = SamplingParams(temperature=0, max_tokens=4)
    bad = SamplingParams(logits_processors=[hook])
    failed, beside = llms["ngram"].generate(["hello"] * 2, [bad, fine], use_tqdm=False)
    assert failed.error == f"the logits hook failed: {message}"
    assert beside.outputs[0].finish_reason in ("length", "stop")


GRAMMARS = [
    ('root ::= verb " " noun\nverb ::= "GET " | "PUT "\nnoun ::= "a" | "b"\n', "GET  a"),
    ('\nroot ::= item+\nitem ::= [a-c] "-" [0-9]{2}\n', "a-12b-34"),
    ('?start: item ("," item)*\n?item: NAME\nNAME: /[a-z]+/', "ab,c"),
    ('start: item\nitem: "x" | "(" item ")"', "((x))"),
    ('start: "say ::= it"', "say ::= it"),
    ('start ::= "x"\n', None),
]


@pytest.mark.parametrize(("grammar", "text"), GRAMMARS)
def test_both_notations_of_grammars(
    grammar: str, text: str | None, compiler: GrammarCompiler
) -> None:
    params = StructuredOutputsParams(grammar=grammar)
    if text is None:
        with pytest.raises(InvalidArgumentError, match="grammar"):
            compiler.compile(params)
        return
    assert compiler.compile(params)().advance([*text.encode(), EOS]) == len(text) + 1


class Color(str, enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


class Wheel(pydantic.BaseModel):
    size: int = pydantic.Field(ge=1, le=30)
    color: Color
    kind: Color | None = None


class Car(pydantic.BaseModel):
    brand: str = pydantic.Field(max_length=8)
    wheels: list[Wheel] = pydantic.Field(max_length=2)


def test_schemas_of_pydantic(compiler: GrammarCompiler) -> None:
    start = compiler.compile(StructuredOutputsParams(json=Car.model_json_schema()))
    for seed in range(10):
        Car.model_validate_json(written(start(), random.Random(seed)))


def looped() -> Any:
    value: dict[str, Any] = {}
    value["properties"] = {"a": value}
    return value


WRONG: list[tuple[Any, str]] = [
    ({1: 1}, "structured_outputs"),
    ({"json": looped()}, "json"),
    ({"json": {"const": float("nan")}}, "json"),
    ({"json": {b"a": 1}}, "json"),
    ({"json": Car}, "json"),
    ({"json": "\ud83d"}, "json"),
    ({"json": '"\\ud83d"'}, "json"),
    ({"json": {"const": "\ud83d"}}, "json"),
    ({"json": ""}, "json"),
    ({"json": {}, "whitespace_pattern": 3}, "whitespace_pattern"),
    ({"regex": ["a"]}, "regex"),
    ({"regex": "\ud83d"}, "regex"),
    ({"choice": {"a": 1}}, "choice"),
    ({"choice": [b"a"]}, "choice"),
    ({"choice": (text for text in ())}, "choice"),
    ({"choice": ["\ud83d"]}, "choice"),
    ({"grammar": 3}, "grammar"),
    ({"grammar": "\ud83d"}, "grammar"),
    ({"json_object": "yes"}, "json_object"),
    ({"structural_tag": "{}"}, "structural_tag"),
    ({"json": {}, "structural_tag": "{}"}, "structural_tag"),
    ({"json": {}, "disable_additional_properties": None}, "disable_additional_properties"),
]


@pytest.mark.parametrize(("fields", "name"), WRONG, ids=lambda value: repr(value)[:40])
def test_wrong_values_are_named(fields: Any, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        SamplingParams(structured_outputs=fields)
    assert name in error.value.field or name in str(error.value)


def test_a_whitespace_pattern_must_be_an_expression(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidArgumentError, match="whitespace_pattern"):
        compiler.compile(StructuredOutputsParams(json={}, whitespace_pattern="("))
