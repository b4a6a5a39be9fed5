"""Weights of 8 and 4 bits: the options, and the logits and drafts that come of them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import drafter_runs
import numpy as np
import pytest
from drafter_checkpoints import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, NUM_LAYERS, VOCAB
from drafter_checkpoints import make_target as make_checkpoint
from model_reference import LanguageModel
from quantization_reference import STEP_BYTES, QuantizedModel, dequantized
from quantized_layers import gptq, quantize_model
from test_gguf_blocks import keep, write_model

from forerun import LLM, SamplingParams, SpeculativeConfig, _core
from forerun.errors import InvalidArgumentError
from forerun.tools import cli, report

TOKENS = [3, 9, 27, 4, 8, 1, 2, 37, 57, 9, 3, 25, 28, 60, 9, 3, 25, 28, 41]
BY_KIND = {"linear": "int4", "embedding": "int8", "head": "int8"}
MATRICES = [
    ("linear", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, NUM_LAYERS),
    ("linear", HIDDEN, HEADS * HEAD_DIM, NUM_LAYERS),
    ("linear", 2 * INNER, HIDDEN, NUM_LAYERS),
    ("linear", HIDDEN, INNER, NUM_LAYERS),
    ("embedding", VOCAB, HIDDEN, 1),
    ("head", VOCAB, HIDDEN, 1),
]


@functools.cache
def directory_of(family: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="forerun-quantized-"))
    return make_checkpoint(family).checkpoint.write(folder)


def error_of(reference: Any, got: Any) -> float:
    """The largest error, of the spread of the reference's logits."""
    return float(np.abs(got - reference).max() / (reference.max() - reference.min()))


@pytest.mark.parametrize("family", ["llama", "qwen3", "tied"])
@pytest.mark.parametrize(
    "kinds",
    [
        *[dict.fromkeys(("linear", "embedding", "head"), name) for name in ("int8", "int4")],
        BY_KIND,
        {"linear": "int4"},
        {"embedding": "int4"},
        {"head": "int8"},
    ],
    ids=str,
)
def test_logits_are_those_of_the_dequantized_weights(family: str, kinds: dict[str, str]) -> None:
    directory = directory_of(family)
    is_tied = family == "tied"
    # One matrix: the head's format counts, and without one the embedding's.
    kinds_of_it = kinds | {"head": kinds.get("head", kinds.get("embedding"))} if is_tied else kinds
    expected = QuantizedModel(directory, **kinds_of_it).logits(TOKENS)
    model = _core.Model(
        str(directory), dtype="float32", quantization=_core.QuantizationOptions(**kinds)
    )
    got = model.logits(np.array(TOKENS, np.int32))
    # An activation between two integers may be rounded to either, as the instruction set rounds
    # norms and attention: then what follows is off by a part of what quantization takes away.
    taken_away = error_of(LanguageModel(directory).logits(TOKENS), got)
    assert error_of(expected, got) < max(0.35 * taken_away, 2e-6)
    if kinds.keys() == {"embedding"} and not is_tied:
        assert error_of(expected, got) < 2e-6  # no product is quantized


def test_real_weights_give_the_logits_of_the_dequantized_ones(smollm_dir: Path) -> None:
    tokens = [1, 504, 5024, 314, 253, 1123, 28, 284, 260, 6330, 335, 325, 4098, 30]
    expected = QuantizedModel(smollm_dir, linear="int4", head="int8").logits(tokens)
    array = np.array(tokens, np.int32)
    quantization = _core.QuantizationOptions(linear="int4", head="int8")
    got = _core.Model(str(smollm_dir), dtype="float32", quantization=quantization).logits(array)
    floats = _core.Model(str(smollm_dir), dtype="float32").logits(array)
    assert np.abs(got - expected).mean() < 0.1 * np.abs(got - floats).mean(), (
        np.abs(got - expected).mean(),
        np.abs(got - floats).mean(),
    )


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_no_weight_is_off_by_more_than_half_a_step(name: str) -> None:
    weights = np.random.default_rng(1).standard_normal((50, 77)).astype(np.float32)
    largest = {"int8": np.abs(weights).max() / 127, "int4": np.abs(weights).max() / 8}[name]
    off = np.abs(dequantized(weights, name) - weights).max()
    # The opposite of the farthest weight has no integer of its own in int4.
    assert off < {"int8": 0.51, "int4": 1.5}[name] * largest


def test_limits_say_what_is_packed_and_read() -> None:
    engine_options = _core.EngineOptions()
    engine_options.model = str(directory_of("llama"))
    engine_options.quantization = _core.QuantizationOptions(linear="int4", head="int8")
    limits = _core.Engine(engine_options).limits
    expected = {"int4": 0, "int8": 0, "float32": 0}
    for kind, outputs, inputs, count in MATRICES:
        name = {"linear": "int4", "head": "int8", "embedding": "float32"}[kind]
        tiles, steps = -(-outputs // 16), -(-inputs // 64)
        size = tiles * (steps * STEP_BYTES[name] if kind != "embedding" else 64 * inputs)
        expected[name] += count * size
    assert limits.weight_bytes == expected
    assert limits.num_weight_bytes == sum(expected.values())
    assert limits.num_bytes_per_token == expected["int4"] + expected["int8"]
    assert (limits.dtype, limits.kv_cache_dtype) == ("float32", "float32")


def test_a_wish_wins_over_the_integers_of_a_file(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf", "Q5_0", odd=False)
    directory = str(keep(tmp_path / "tiny.gguf", tmp_path))
    all_of = _core.QuantizationOptions
    formats = {}
    for name, fields in {
        "as stored": {},
        "a type": {"dtype": "bfloat16"},
        "floats": {"quantization": all_of(*["none"] * 3), "dtype": "bfloat16"},
        "floats as stored": {"quantization": all_of(*["none"] * 3)},
        "the head": {"quantization": all_of(head="none"), "dtype": "float32"},
        "layers": {"quantization": all_of(linear="int4")},
        "all": {"quantization": all_of(*["int8"] * 3), "dtype": "bfloat16"},
    }.items():
        options = _core.EngineOptions()
        options.model = directory
        for field, value in fields.items():
            setattr(options, field, value)
        formats[name] = set(_core.Engine(options).limits.weight_bytes)
    assert formats == {
        "as stored": {"int5"},
        "a type": {"int5"},
        "floats": {"bfloat16"},
        "floats as stored": {"bfloat16"},
        "the head": {"int5", "float32"},
        "layers": {"int4", "int5"},
        "all": {"int8"},
    }
    floats = _core.Model(directory, dtype="float32", quantization=all_of(*["none"] * 3))
    exact = floats.logits(np.array(TOKENS, np.int32))
    stored = _core.Model(directory).logits(np.array(TOKENS, np.int32))
    again = _core.Model(directory, quantization=all_of(*["int8"] * 3))
    assert 0 < error_of(exact, stored) < 0.1
    assert 0 < error_of(exact, again.logits(np.array(TOKENS, np.int32))) < 0.1


def test_shares_of_formats_are_shown() -> None:
    assert report.formats({"int8": 9}) == "int8"
    assert report.formats({"int4": 25, "int8": 75}) == "int8 75 %, int4 25 %"


def test_the_kv_cache_has_a_type_of_its_own() -> None:
    directory = str(directory_of("llama"))
    blocks, logits = {}, {}
    for name in ("auto", "float32", "bfloat16", "int8"):
        options = _core.EngineOptions()
        options.model = directory
        options.kv_cache_dtype = name
        options.kv_cache_memory_bytes = 1 << 20
        limits = _core.Engine(options).limits
        assert limits.kv_cache_dtype == name.replace("auto", "float32")
        blocks[name] = limits.num_kv_blocks
        model = _core.Model(directory, kv_cache_dtype=name)
        logits[name] = model.logits(np.array(TOKENS, np.int32))
    assert blocks["bfloat16"] // 2 == blocks["float32"] == blocks["auto"]
    assert blocks["int8"] > blocks["bfloat16"]
    assert (logits["auto"] == logits["float32"]).all()
    assert 1e-5 < error_of(logits["float32"], logits["bfloat16"]) < 0.02
    assert 1e-5 < error_of(logits["float32"], logits["int8"]) < 0.02


def test_int8_keys_and_values_have_vllms_name(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, kv_cache_dtype="int8_per_token_head")
    assert llm.limits.kv_cache_dtype == "int8"


@pytest.mark.parametrize(
    ("fields", "drafter"),
    [({}, "int8"), ({"quantization": {}}, None), ({"quantization": "int4"}, "int4")],
)
@pytest.mark.parametrize("name", ["draft_model", "eagle3 two layers", "medusa vllm token_map"])
def test_a_drafter_follows_its_target_at_8_bits(
    name: str, fields: dict[str, Any], drafter: str | None
) -> None:
    """What it drafts is the same as where its format is given, and no output changes."""
    row = drafter_runs.row_named(name)
    target = {"quantization": _core.QuantizationOptions(*["int4"] * 3)}
    config = SpeculativeConfig(model="somewhere", **fields)
    method = config._to_core().method
    assert isinstance(method, _core.ModelDrafterOptions)
    runs = [
        drafter_runs.run(
            drafter_runs.make_engine(row, {"quantization": quantization}, **target),
            drafter_runs.PROMPTS,
        )
        for quantization in (method.quantization, _core.QuantizationOptions(*[drafter] * 3))
    ]
    assert runs[0].outputs == runs[1].outputs
    first, second = ({record.key: record.logits.tolist() for record in run.records} for run in runs)
    assert first == second
    other = {None: "int8", "int8": None, "int4": "int8"}[drafter]
    different = drafter_runs.run(
        drafter_runs.make_engine(
            row, {"quantization": _core.QuantizationOptions(*[other] * 3)}, **target
        ),
        drafter_runs.PROMPTS,
    )
    assert different.outputs == runs[0].outputs
    assert {record.key: record.logits.tolist() for record in different.records} != first


@pytest.mark.parametrize(("dtype", "drafter"), [("bfloat16", "int8"), ("float32", None)])
def test_a_drafter_has_8_bits_unless_its_target_is_in_float32(
    dtype: str, drafter: str | None
) -> None:
    row = drafter_runs.row_named("eagle3 two layers")
    runs = [
        drafter_runs.run(
            drafter_runs.make_engine(row, {"quantization": quantization}, dtype=dtype),
            drafter_runs.PROMPTS,
        )
        for quantization in (None, _core.QuantizationOptions(*[drafter] * 3))
    ]
    first, second = ({record.key: record.logits.tolist() for record in run.records} for run in runs)
    assert first == second


@pytest.mark.parametrize(
    ("target", "same", "other"),
    [
        ("int4", [None, "int8", "int8"], ["int8"] * 3),
        ("int8", [None, "int8", "int8"], ["int8"] * 3),
        (None, [None] * 3, ["int8"] * 3),
        ("none", ["none"] * 3, [None] * 3),
    ],
    ids=str,
)
def test_a_drafter_of_integers_keeps_them_unless_they_are_unpacked(
    target: str | None, same: list[str | None], other: list[str | None], tmp_path: Path
) -> None:
    row = drafter_runs.row_named("draft_model")
    _, drafter = drafter_runs.engine_directories(row)
    assert drafter is not None
    directory = tmp_path / "drafter"
    shutil.copytree(drafter, directory)
    quantize_model(directory, gptq, {"group_size": 32})
    quantization = _core.QuantizationOptions(*[target] * 3)
    records: list[Any] = []
    for names in (None, same, other):
        own = {} if names is None else {"quantization": _core.QuantizationOptions(*names)}
        draft = {"model": str(directory), **own}
        engine = drafter_runs.make_engine(row, draft, quantization=quantization)
        run = drafter_runs.run(engine, drafter_runs.PROMPTS)
        records.append({record.key: record.logits.tolist() for record in run.records})
    assert records[0] == records[1] != records[2]


@pytest.mark.parametrize(
    "value",
    ["int3", "INT8", "", 8, ["int8"], {"linear": "int2"}, {"layers": "int8"}, {1: "int8"}],
    ids=repr,
)
def test_unknown_formats_are_refused(value: Any) -> None:
    for make in (
        lambda: LLM("/nowhere", quantization=value),
        lambda: SpeculativeConfig(model="somewhere", quantization=value),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            make()
        assert caught.value.field.startswith("quantization")
        assert "int8" in str(caught.value.expected)


@pytest.mark.parametrize("value", ["float16", "fp8", "int4", None, 16])
def test_unknown_types_of_the_kv_cache_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        LLM("/nowhere", kv_cache_dtype=value)
    assert caught.value.field == "kv_cache_dtype"


def test_the_core_refuses_unknown_formats() -> None:
    quantization = _core.QuantizationOptions(head="int3")
    options = _core.EngineOptions()
    options.quantization = quantization
    with pytest.raises(InvalidArgumentError, match="head 'int3'"):
        _core.check_engine_options(options)
    with pytest.raises(InvalidArgumentError, match="head 'int3'"):
        _core.Model(str(directory_of("llama")), quantization=quantization)
    with pytest.raises(InvalidArgumentError, match="kv_cache_dtype"):
        _core.Model(str(directory_of("llama")), kv_cache_dtype="int4")


def test_the_command_line_takes_a_format_or_json(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {}
    for text, value in (("int4", "int4"), ('{"head": "int8"}', {"head": "int8"})):
        arguments = ["generate", str(tiny_dir), "hello", "--max-tokens", "20"]
        assert cli.main([*arguments, "--quantization", text, "--kv-cache-dtype", "bfloat16"]) == 0
        llm = LLM(tiny_dir, quantization=value, kv_cache_dtype="bfloat16")
        params = SamplingParams(temperature=0, max_tokens=20)
        texts[text] = llm.generate("hello", params, use_tqdm=False)[0].outputs[0].text
        assert capsys.readouterr().out.rstrip("\n").endswith(texts[text].rstrip("\n"))
    assert texts["int4"] != texts['{"head": "int8"}']
    for text in ("int3", "{", '{"head": 4}'):
        assert cli.main([*arguments, "--quantization", text]) == 2
        assert "quantization" in capsys.readouterr().err
