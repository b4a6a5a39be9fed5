"""One table knows every field of vLLM's API and of Forerun's, and everything checks against it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import pathlib
import sys
from typing import Any

import pytest

import forerun
from forerun import (
    LLM,
    EngineArgs,
    InvalidArgumentError,
    SamplingParams,
    SpeculativeConfig,
    StructuredOutputsParams,
    _core,
)
from forerun.engine.config import _ENGINE_OPTIONS, settle_options
from forerun.unsupported import UnsupportedMethods
from forerun.vllm_fields import (
    ENGINE_ARGS,
    METHODS,
    NOT_IN_VLLM,
    OWNERS,
    REQUIRED,
    Kind,
    field_problems,
)
from forerun.vllm_fields.field import Made
from forerun.vllm_fields.page import page

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model

ROOT = pathlib.Path(__file__).resolve().parents[2]

# How many fields vLLM 0.33 has, and how many the table has besides, of older versions.
NUM_FIELDS = {
    "LLM": 257 + len(("chat_template", "device")),
    "SpeculativeConfig": 43 + len(("disable_by_batch_size",)),
    "SamplingParams": 39,
    "StructuredOutputsConfig": 6,
    "ProfilerConfig": 25,
    "StructuredOutputsParams": 9,
    "BeamSearchParams": 10,
}
CLASSES = {
    "BeamSearchParams": forerun.BeamSearchParams,
    "SpeculativeConfig": SpeculativeConfig,
    "SamplingParams": SamplingParams,
    "StructuredOutputsParams": StructuredOutputsParams,
}


def test_the_page_is_what_the_tables_say() -> None:
    text = (ROOT / "docs" / "vllm_compatibility.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m forerun.vllm_fields.page > docs/vllm_compatibility.md"


@pytest.mark.parametrize("owner", NUM_FIELDS)
def test_no_field_of_vllm_is_missing(owner: str) -> None:
    fields = OWNERS[owner].values()
    assert sum(field.default is not NOT_IN_VLLM for field in fields) == NUM_FIELDS[owner]


@pytest.mark.parametrize("owner", CLASSES)
def test_the_table_and_a_class_have_the_same_fields_that_run(owner: str) -> None:
    own = {field.name for field in dataclasses.fields(CLASSES[owner])}
    assert own == {name for name, field in OWNERS[owner].items() if field.kind is Kind.RUNS}


def test_every_parameter_of_llm_and_of_the_engine_is_in_the_table() -> None:
    parameters = set(inspect.signature(LLM.__init__).parameters) - {"self", "options"}
    assert parameters | set(_ENGINE_OPTIONS) <= set(ENGINE_ARGS)
    for method, fields in METHODS.items():
        owner, _, name = method.partition(".")
        if hasattr(UnsupportedMethods, name):
            continue
        call = getattr(getattr(forerun, owner), name)
        own = set(inspect.signature(call).parameters) - {"self"}
        assert own <= set(fields), method
        assert own >= {key for key, field in fields.items() if field.kind is Kind.RUNS}, method


@pytest.mark.parametrize("owner", OWNERS)
def test_vllm_defaults_are_accepted_and_other_values_refused_with_a_reason(owner: str) -> None:
    for name, field in OWNERS[owner].items():
        if field.default not in (REQUIRED, NOT_IN_VLLM):
            given = {} if isinstance(field.default, Made) else field.default
            assert not field_problems(owner, {name: given}), name
        for value in field.also:
            assert not field_problems(owner, {name: value}), name
        if field.kind is Kind.FIXED:
            [problem] = field_problems(owner, {name: object()})
            assert problem.field == name
            assert field.note in problem.expected


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("SamplingParams", "watermarking"),
        ("SamplingParams", "skip_reading_prefix_cache"),
        ("BeamSearchParams", "watermarking"),
        ("SpeculativeConfig", "index_share_for_mtp_iteration"),
    ],
)
def test_what_does_not_run_may_be_switched_off(owner: str, name: str) -> None:
    assert not field_problems(owner, {name: False})
    assert field_problems(owner, {name: True})


def test_configs_of_all_defaults_are_accepted(tmp_path: pathlib.Path) -> None:
    def defaults(owner: str) -> dict[str, Any]:
        fields = OWNERS[owner].items()
        marks = (REQUIRED, NOT_IN_VLLM)
        given = {name: field.default for name, field in fields if field.default not in marks}
        return {n: None if isinstance(value, Made) else value for n, value in given.items()}

    sampling = {**defaults("SamplingParams"), "output_kind": forerun.RequestOutputKind.CUMULATIVE}
    assert SamplingParams(**sampling) == SamplingParams()
    for method in ("ngram", "suffix"):
        given = {**defaults("SpeculativeConfig"), "method": method, "num_speculative_tokens": 3}
        assert SpeculativeConfig(**given).acceptance_method == "coupled"
    model = write_tiny_model(tmp_path / "model")
    given = {**defaults("LLM"), "model": str(model), "skip_tokenizer_init": True}
    given["max_model_len"] = 64
    assert LLM(**given).limits.max_model_len == 64
    args = EngineArgs(str(model), skip_tokenizer_init=True, max_model_len=64)
    assert LLM(**dataclasses.asdict(args)).limits.max_model_len == 64


def test_the_settings_of_vllms_example_of_speculative_decoding(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    with caplog.at_level(logging.INFO, "forerun"):
        llm = LLM(
            model=model,
            trust_remote_code=True,
            tensor_parallel_size=1,
            enable_chunked_prefill=False,
            enforce_eager=False,
            gpu_memory_utilization=0.9,
            speculative_config={
                "method": "draft_model",
                "model": model,
                "num_speculative_tokens": 2,
                "enforce_eager": False,
                "max_model_len": 64,
                "disable_padded_drafter_batch": False,
                "parallel_drafting": False,
            },
            disable_log_stats=False,
            max_model_len=64,
            limit_mm_per_prompt={"image": 5},
            disable_chunked_mm_input=True,
            allowed_local_media_path="",
            skip_tokenizer_init=True,
        )
    assert "enable_chunked_prefill has no effect: prompts are always computed" in caplog.text
    assert llm.drafter is not None


def test_all_mistakes_of_a_call_are_listed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM(
            tmp_path,
            tensor_parallel_size=2,
            enable_lora=True,
            max_num_seqs=0,
            tokenizer="",
            max_model_length=3,
            speculative_config={"method": "ngram", "spec_tokens": 3},
        )
    fields = [problem.field for problem in error.value.problems]
    wrong = ["spec_tokens", "tensor_parallel_size", "enable_lora", "max_num_seqs", "tokenizer"]
    assert sorted(fields) == sorted([*wrong, "max_model_length", "num_speculative_tokens"])
    assert error.value.field == fields[0]
    for field in fields:
        assert f"  {field}: got " in str(error.value)
    with pytest.raises(InvalidArgumentError) as error:
        SamplingParams(top_p=2.0, min_p=-1, top_k="x", thinking_token_budget=5, temprature=0)
    fields = [problem.field for problem in error.value.problems]
    assert sorted(fields) == ["min_p", "temprature", "thinking_token_budget", "top_k", "top_p"]


@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ({"spec_metod": "ngram"}, "spec_metod", "did you mean 'spec_method'?"),
        ({"enable_lora": True}, "enable_lora", "LoRA adapters are not supported"),
        ({"temperature": 0.5}, "temperature", "SamplingParams has this field"),
        ({"num_speculative_token": 3}, "num_speculative_token", "of SpeculativeConfig?"),
        ({"flash_attention": True}, "flash_attention", "docs/vllm_compatibility.md lists them"),
        ({"seed_": 1}, "seed_", "did you mean 'seed'?"),
    ],
)
def test_hints_name_what_was_meant_or_nothing(
    options: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        EngineArgs("model", **options)
    assert error.value.field == field
    assert hint in error.value.expected


def test_shorthands_make_a_speculative_config(tmp_path: pathlib.Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 64}
    llm = LLM(model, spec_method="ngram", spec_tokens=4, **common)
    assert llm.speculative_config == SpeculativeConfig(method="ngram", num_speculative_tokens=4)
    llm = LLM(model, spec_model=model, spec_tokens=2, **common)
    assert llm.drafter is not None
    with pytest.raises(InvalidArgumentError, match="None beside speculative_config"):
        LLM(model, spec_method="ngram", speculative_config={"method": "suffix"}, **common)


@pytest.mark.parametrize("name", ["half", "float16", "torch"])
def test_float16_runs_in_what_the_cpu_has(name: str, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from forerun.engine.config import engine_options

    given = torch.float16 if name == "torch" else name
    assert engine_options({"dtype": given}, None).dtype == "auto"
    assert "nothing is computed in float16" in caplog.text
    assert engine_options({"dtype": "float"}, None).dtype == "float32"
    assert engine_options({"dtype": torch.float32}, None).dtype == "float32"


def test_vllms_names_of_methods_and_acceptance(caplog: pytest.LogCaptureFixture) -> None:
    def config(**fields: Any) -> SpeculativeConfig:
        return SpeculativeConfig(**{"method": "ngram", "num_speculative_tokens": 2, **fields})

    with caplog.at_level(logging.INFO, "forerun"):
        assert config(method="ngram_gpu").method == "ngram"
    assert "runs as 'ngram'" in caplog.text
    assert config(method="glm5_next_mtp").method == "mtp"
    assert config(rejection_sample_method="standard").acceptance_method == "coupled"
    assert config(rejection_sample_method="block").acceptance_method == "block"
    for fields, reason in [
        ({"rejection_sample_method": "synthetic"}, "never simulated"),
        ({"rejection_sample_method": "block", "acceptance_method": "rejection"}, "None beside"),
        ({"method": "dflash"}, "does not run"),
        ({"num_speculative_tokens_per_batch_size": [(1, 2, 3)]}, "'adaptive' shortens"),
    ]:
        with pytest.raises(InvalidArgumentError, match=reason):
            config(**fields)


@pytest.mark.parametrize(
    ("given", "is_logged"),
    [
        *[({"backend": name}, False) for name in ("auto", "guidance")],
        *[({"backend": name}, True) for name in ("xgrammar", "outlines", "lm-format-enforcer")],
        ({}, False),
        ({"disable_any_whitespace": False, "reasoning_parser": ""}, False),
    ],
)
def test_every_backend_of_structured_outputs_is_llguidance(
    given: Any, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="forerun"):
        settle_options({"structured_outputs_config": given})
    assert len(caplog.records) == is_logged
    assert ("llguidance is used in place of" in caplog.text) == is_logged


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("xgrammar", ["structured_outputs_config"]),
        ({"backend": "x"}, ["backend"]),
        ({"backend": None}, ["backend"]),
        (
            {"backend": 3, "disable_any_whitespace": True, "fallback": 1, 4: 5},
            ["disable_any_whitespace", "fallback", "4", "backend"],
        ),
    ],
)
def test_other_configs_of_structured_outputs_are_refused(given: Any, fields: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        settle_options({"structured_outputs_config": given})
    assert [problem.field for problem in error.value.problems] == fields


def test_engine_args_come_from_a_command_line(tmp_path: pathlib.Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    parser.add_argument("--temperature", type=float)
    parser.set_defaults(model=model)
    config = '{"method": "ngram", "num_speculative_tokens": 3}'
    line = ["--max-model-len", "64", "--max_num_seqs", "2", "--no-enable-prefix-caching"]
    line += ["--skip-tokenizer-init", "--speculative-config", config, "--temperature", "0"]
    args = EngineArgs.from_cli_args(parser.parse_args(line))
    assert (args.max_model_len, args.max_num_seqs, args.enable_prefix_caching) == (64, 2, False)
    llm = LLM.from_engine_args(args)
    assert llm.limits.max_model_len == 64
    assert llm.speculative_config is not None
    assert llm.speculative_config.method == "ngram"
    with pytest.raises(InvalidArgumentError, match="tensor_parallel_size: got 2"):
        EngineArgs.from_cli_args(parser.parse_args(["--tensor-parallel-size", "2"]))
    with pytest.raises(InvalidArgumentError, match="engine_args: got"):
        LLM.from_engine_args({"model": model})


def test_ngram_lengths_are_the_same_in_the_engine_and_in_python() -> None:
    core = _core.NgramOptions()
    config = SpeculativeConfig(method="ngram", num_speculative_tokens=1)
    assert (core.prompt_lookup_max, core.prompt_lookup_min) == (5, 5)
    assert (config.prompt_lookup_max, config.prompt_lookup_min) == (5, 5)
