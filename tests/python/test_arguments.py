"""Arguments are copied, read once, and may be anything: what is wrong is a typed error."""

from __future__ import annotations

import collections
import pathlib
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from forerun import (
    LLM,
    BeamSearchParams,
    EngineArgs,
    ForerunError,
    InvalidArgumentError,
    LLMEngine,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    SpeculativeConfig,
    StructuredOutputsParams,
    selftest,
)
from forerun.sampling_params import SamplingType
from forerun.vllm_fields import OWNERS

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    model = write_tiny_model(tmp_path_factory.mktemp("arguments") / "model")
    return LLM(str(model), skip_tokenizer_init=True, max_model_len=64, max_num_seqs=4)


def ids(llm: LLM, params: SamplingParams, prompt: Any = (1, 2, 3)) -> list[int]:
    [output] = llm.generate([list(prompt)], params, use_tqdm=False)
    return list(output.outputs[0].token_ids)


GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


# Parameters are copied and checked when they are submitted.


@pytest.mark.parametrize(
    "change",
    [
        {"logprobs": 1},
        {"n": 0},
        {"prompt_logprobs": 2, "max_tokens": 1},
        {"stop_token_ids": "x", "detokenize": None},
    ],
)
def test_changes_after_submission_have_no_effect(change: dict[str, Any], llm: LLM) -> None:
    expected = ids(llm, SamplingParams(**GREEDY))
    params = SamplingParams(**GREEDY)
    stream = llm.stream([[1, 2, 3]], params)
    first = next(stream)
    for name, value in change.items():
        setattr(params, name, value)
    assert ids(llm, SamplingParams(**GREEDY)) == expected  # a neighbour
    assert first.token_ids + [token for delta in stream for token in delta.token_ids] == expected


def test_lists_are_copied_too(llm: LLM) -> None:
    allowed, bias = [5, 6], {5: 3.0}
    params = SamplingParams(**GREEDY, allowed_token_ids=allowed, logit_bias=bias, extra_args=None)
    expected = ids(llm, params)
    allowed[:] = [7]
    bias[6] = 100.0
    assert params.allowed_token_ids == [5, 6]
    assert ids(llm, params) == expected
    stream = llm.stream([[1, 2, 3]], params)
    assert params.allowed_token_ids is not None
    params.allowed_token_ids.clear()  # type: ignore[attr-defined]
    assert [token for delta in stream for token in delta.token_ids] == expected


@pytest.mark.parametrize(
    ("name", "value"), [("n", 0), ("logprobs", "all"), ("top_p", 3.0), ("stop_token_ids", [-4])]
)
def test_a_wrong_value_set_later_is_refused_at_submission(name: str, value: Any, llm: LLM) -> None:
    params = SamplingParams(**GREEDY)
    setattr(params, name, value)
    for call in (llm.generate, llm.stream):
        with pytest.raises(InvalidArgumentError) as error:
            call([[1], [2]], [SamplingParams(), params])  # type: ignore[operator]
        assert error.value.field == name
    assert not llm.metrics().num_running_requests


def test_attributes_that_do_not_exist_cannot_be_set() -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'max_tokens'"):
        SamplingParams().max_token = 5
    with pytest.raises(InvalidArgumentError, match="not parsed for reasoning"):
        SamplingParams().thinking_token_budget = 5
    with pytest.raises(InvalidArgumentError, match="did you mean 'method'"):
        SpeculativeConfig(method="suffix").metod = "ngram"
    params = SamplingParams()
    params.thinking_token_budget = None
    assert params.watermarking is None


def test_clones_are_independent_and_from_optional_clamps() -> None:
    params = SamplingParams(stop=["a"], extra_args={"deep": [1]}, seed=3)
    copy = params.clone()
    assert copy == params
    copy.stop.append("b")
    copy.extra_args["deep"].append(2)
    assert (params.stop, params.extra_args) == (["a"], {"deep": [1]})
    given = {"temperature": None, "top_k": 3, "logit_bias": {"5": 1000, 6: -1000.0}, "n": None}
    params = SamplingParams.from_optional(**given)
    assert (params.temperature, params.top_k, params.n) == (1.0, 3, 1)
    assert params.logit_bias == {5: 100.0, 6: -100.0}
    with pytest.raises(InvalidArgumentError, match="temprature"):
        SamplingParams.from_optional(temprature=None, top_p=1)
    assert SamplingParams(seed=1).sampling_type is SamplingType.RANDOM_SEED
    assert SamplingParams(seed=-1).sampling_type is SamplingType.RANDOM
    assert SamplingParams(temperature=0).sampling_type is SamplingType.GREEDY


def test_ends_of_a_generation_config_are_added() -> None:
    params = SamplingParams(stop_token_ids=[9])
    params.update_from_generation_config({"eos_token_id": [3, 2]}, eos_token_id=2)
    assert params.all_stop_token_ids == {3, 9}
    params.update_from_generation_config({"eos_token_id": 5})
    assert params.stop_token_ids == [3, 5, 9]
    params = SamplingParams(ignore_eos=True)
    params.update_from_generation_config({"eos_token_id": 5})
    assert params.all_stop_token_ids == set()
    with pytest.raises(InvalidArgumentError, match="eos_token_id"):
        SamplingParams().update_from_generation_config({"eos_token_id": "end"})


def test_vllm_spellings_have_the_same_meaning() -> None:
    params = SamplingParams(logprobs=True, prompt_logprobs=True, seed=-1, logit_bias={"12": 1})
    assert (params.logprobs, params.prompt_logprobs, params.seed) == (1, 1, None)
    assert params.logit_bias == {12: 1.0}
    params = SamplingParams(logprobs=False, output_kind=RequestOutputKind.DELTA, top_k=np.int64(4))
    assert (params.logprobs, params.output_kind, params.top_k) == (None, RequestOutputKind.DELTA, 4)


# Iterables are read once; what is false is not absent.


def test_generators_count_like_lists(llm: LLM) -> None:
    plain = ids(llm, SamplingParams(**GREEDY))
    stop = plain[2]
    for given in ((token for token in [stop]), {stop}, np.array([stop]), range(stop, stop + 1)):
        params = SamplingParams(**GREEDY, stop_token_ids=given)
        expected = plain[: plain.index(stop) + 1]
        assert ids(llm, params) == expected
        assert ids(llm, params) == expected  # the second time as well
    params = SamplingParams(**GREEDY, allowed_token_ids=iter([4, 9]))
    assert set(ids(llm, params)) <= {4, 9}
    params = SamplingParams(stop=(text for text in ["x"]), bad_words=iter(["y"]))
    assert (params.stop, params.bad_words) == (["x"], ["y"])
    seen: list[int] = []
    processors = (hook for hook in [lambda tokens, logits: seen.append(len(tokens))])
    assert ids(llm, SamplingParams(**GREEDY, logits_processors=processors)) == plain
    assert seen
    outputs = llm.generate(
        ([token for token in prompt] for prompt in [[1, 2, 3], [1, 2, 3]]),
        (SamplingParams(**GREEDY) for _ in range(2)),
        use_tqdm=False,
    )
    assert [list(output.outputs[0].token_ids) for output in outputs] == [plain, plain]
    config = SpeculativeConfig(model="d", speculative_token_tree=(path for path in [(0,), (1,)]))
    assert config.speculative_token_tree == [[0], [1]]


@pytest.mark.parametrize("value", ["", 0, False, b""])
@pytest.mark.parametrize(
    "name", ["tokenizer", "speculative_config", "revision", "spec_method", "generation_config"]
)
def test_false_values_are_not_treated_as_absent(
    name: str, value: Any, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM(tmp_path, **{name: value})
    assert error.value.field == name


@pytest.mark.parametrize("name", ["model", "revision", "method", "speculative_token_tree"])
@pytest.mark.parametrize("value", ["", 0, False, b""])
def test_false_values_are_not_treated_as_absent_in_a_config(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        SpeculativeConfig(**{"model": "d", name: value})
    assert error.value.field == name


def test_a_generation_config_may_come_from_elsewhere(tmp_path: pathlib.Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 7}')
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"top_p": 0.5}')

    def recommended(**options: Any) -> SamplingParams:
        llm = LLM(model, skip_tokenizer_init=True, max_model_len=64, **options)
        return llm.get_default_sampling_params()

    assert recommended() == SamplingParams(temperature=0.5, top_k=7)
    assert recommended(generation_config="vllm") == SamplingParams()
    assert recommended(generation_config=str(other)) == SamplingParams(top_p=0.5)
    changed = recommended(override_generation_config={"top_k": 3, "max_new_tokens": 9})
    assert changed == SamplingParams(temperature=0.5, top_k=3, max_tokens=9)
    with pytest.raises(InvalidArgumentError, match="generation_config: got"):
        recommended(generation_config=str(tmp_path))


@pytest.mark.parametrize("length", [300, 5000])  # of a name, and of a path, that no system has
@pytest.mark.parametrize(
    "option", ["tokenizer", "generation_config", "model", "hf_config_path", "speculative_config"]
)
def test_paths_that_are_too_long_are_refused(
    tmp_path: pathlib.Path, option: str, length: int
) -> None:
    path = "x" * length
    options: dict[str, Any] = {"model": str(write_tiny_model(tmp_path / "model"))}
    options[option] = {"model": path} if option == "speculative_config" else path
    options["skip_tokenizer_init"] = option != "tokenizer"
    with pytest.raises(ForerunError, match=option):
        LLM(**options)


def test_a_drafter_must_not_be_shorter_than_its_target(tmp_path: pathlib.Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = {"method": "suffix", "max_model_len": 32}
    for options in ({"max_model_len": 64}, {}):
        with pytest.raises(InvalidArgumentError, match="at least the target's"):
            LLM(model, skip_tokenizer_init=True, speculative_config=config, **options)
    LLM(model, skip_tokenizer_init=True, speculative_config=config, max_model_len=32)


# Values may be anything.


class Hostile:
    """Raises whatever is done with it."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __index__(self) -> int:
        raise RuntimeError("index")

    def __float__(self) -> float:
        raise RuntimeError("float")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("iter")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __fspath__(self) -> str:
        raise RuntimeError("fspath")


class HostileDict(dict[Any, Any]):
    """A dict whose items cannot be read."""

    def keys(self) -> Any:
        raise RuntimeError("keys")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("iter")


class HostileText(str):
    """A string that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = str.__hash__


def failing() -> Iterator[int]:
    yield 1
    raise RuntimeError("in the middle")


DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]

MAKERS: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, True, 0, -1, 2**31, 2**64, 10**5000)),
    *(lambda value=value: value for value in (0.5, float("nan"), float("inf"), 1j)),
    *(lambda value=value: value for value in ("", "x", "\ud83d", "\0", "a" * 100_000, b"x")),
    *(lambda value=value: value for value in ((), (1,), [None], {1: 1}, {"a": 1}, {None: None})),
    *(lambda value=value: value for value in (np.array([1]), np.array(1), np.array([[1.0, 2]]))),
    *(lambda value=value: value for value in (np.int64(3), np.bool_(True), np.str_("x"))),
    *(lambda value=value: value for value in (object(), int, Ellipsis, range(10**12))),
    *(lambda value=value: value for value in (["\ud800"], {"\ud800": 1}, {"1": "x"})),
    *(Hostile, lambda: [Hostile()], lambda: {"a": Hostile()}, lambda: HostileDict(a=1)),
    *(lambda: HostileText("x"), failing, lambda: DEEP, lambda: collections.UserDict(a=1)),
    *(SamplingParams, lambda: StructuredOutputsParams(choice=["a"])),
]


def check_message(error: InvalidArgumentError) -> None:
    """The message is short, can be printed, and survives pickling."""
    text = str(error)
    assert len(text) < 5000
    text.encode()
    assert str(pickle.loads(pickle.dumps(error))) == text


def try_all(call: Callable[[str, Any], Any], names: Any, errors: list[str]) -> None:
    """Calls with every value for every name; nothing but InvalidArgumentError may come out."""
    for name in names:
        for make in MAKERS:
            try:
                call(name, make())
            except InvalidArgumentError as error:
                check_message(error)
                errors.append(error.field)


def test_no_value_of_any_field_ends_in_another_error(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[str] = []
    names = OWNERS["SamplingParams"]
    try_all(lambda name, value: SamplingParams(**{name: value}), names, errors)
    names = OWNERS["SpeculativeConfig"]
    for given in ({"method": "ngram", "num_speculative_tokens": 2}, {"model": "d"}):
        try_all(lambda name, value, g=given: SpeculativeConfig(**{**g, name: value}), names, errors)
    names = list(OWNERS["LLM"])[::12]
    try_all(lambda name, value: EngineArgs(**{name: value}), [*names, "no_such"], errors)
    assert len(set(errors)) > 100


def test_no_argument_of_a_request_ends_in_another_error(llm: LLM) -> None:
    errors: list[str] = []
    params = SamplingParams(max_tokens=1)

    def generate(name: str, value: Any) -> None:
        given: dict[str, Any] = {"prompts": [[1]], "sampling_params": params, "use_tqdm": False}
        llm.generate(**{**given, name: value})

    try_all(generate, ["prompts", "sampling_params", "lora_request", "no_such"], errors)
    try_all(lambda key, value: generate("prompts", [{key: value}]), OWNERS["prompt"], errors)
    try_all(lambda _, value: generate("prompts", [[1], value]), [""], errors)
    try_all(lambda _, value: generate("prompts", [[1, value]]), [""], errors)
    try_all(lambda _, value: llm.stream([[1]], value).close(), [""], errors)
    assert {"prompts", "sampling_params", "lora_request", "no_such"} <= set(errors)


def test_no_argument_of_the_engine_ends_in_another_error(llm: LLM) -> None:
    engine = llm.llm_engine
    errors: list[str] = []

    def add(name: str, value: Any) -> None:
        given = {"request_id": "a", "prompt": [1], "params": SamplingParams(max_tokens=1)}
        engine.add_request(**{**given, name: value})
        while engine.has_unfinished_requests():
            engine.step()

    try_all(add, [*OWNERS["LLMEngine.add_request"], "no_such"], errors)
    try_all(lambda _, value: engine.abort_request(value), [""], errors)
    try_all(lambda _, value: LLMEngine.from_engine_args(value), [""], errors)
    assert {"request_id", "prompt", "params", "priority", "prompt_text", "no_such"} <= set(errors)
    assert {"request_ids", "engine_args"} <= set(errors)


BEAMS = BeamSearchParams(beam_width=2, max_tokens=1)


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "fields"),
    [
        ("generate", (), {}, ["prompts"]),
        ("generate", (), {"prompt": [1]}, ["prompt", "prompts"]),
        ("generate", ([[1]], None, True), {}, ["LLM.generate"]),
        ("generate", ([[1]],), {"prompts": [[1]]}, ["LLM.generate"]),
        ("generate", ([[1]],), {"lora_request": 3, "top_k": 1}, ["lora_request", "top_k"]),
        ("chat", (), {"message": []}, ["message", "messages"]),
        ("chat", ([],), {"mesages": [], "lora_request": 1}, ["lora_request", "mesages"]),
        ("render_chat", (), {}, ["messages"]),
        ("stream", (), {"params": None}, ["params", "prompts"]),
        ("stream", ([[1]], None, 3), {}, ["LLM.stream"]),
        ("enqueue", (), {"use_tqdm": False}, ["prompts"]),
        ("enqueue_chat", (), {}, ["messages"]),
        ("wait_for_completion", (int,), {}, ["output_type"]),
        ("wait_for_completion", (None, False), {}, ["LLM.wait_for_completion"]),
        ("beam_search", ([[1]],), {}, ["params"]),
        ("beam_search", ([[1]], BEAMS), {"beam_width": 3}, ["beam_width"]),
        ("get_world_size", (True, 1), {}, ["LLM.get_world_size"]),
        ("get_world_size", ("x",), {}, ["include_dp"]),
        ("reset_prefix_cache", (), {"force": True}, ["force"]),
        ("reset_prefix_cache", (True,), {}, ["reset_running_requests"]),
        ("from_engine_args", (), {}, ["engine_args"]),
        ("metrics", (3,), {}, ["LoadedModel.metrics"]),
        ("get_tokenizer", (), {"lora_request": None}, ["lora_request"]),
        ("reset_caches", (1, 2), {}, ["LLM.reset_caches"]),
        ("reset_mm_cache", (1,), {}, ["UnsupportedMethods.reset_mm_cache"]),
    ],
)
def test_surplus_missing_and_unknown_arguments_are_named(
    method: str, args: Any, kwargs: Any, fields: list[str], llm: LLM
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        getattr(llm, method)(*args, **kwargs)
    assert sorted(problem.field for problem in error.value.problems) == fields
    assert not llm.metrics().num_running_requests


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda: LLM(), ["model"]),
        (lambda: LLM("a", "b"), ["LLM"]),
        (lambda: LLM("a", model="b"), ["LLM"]),
        (lambda: EngineArgs("a", "b"), ["LLM"]),
        (lambda: EngineArgs("a", model="b"), ["model"]),
        (lambda: SamplingParams(*range(18)), ["SamplingParams"]),
        (lambda: SamplingParams(2, n=2), ["n"]),
        (lambda: SamplingParams(1, 0.5, 9), ["frequency_penalty"]),
        (lambda: SpeculativeConfig("ngram"), ["SpeculativeConfig"]),
        (lambda: StructuredOutputsParams({}, *range(5)), ["StructuredOutputsParams"]),
        (lambda: BeamSearchParams(4), ["max_tokens"]),
        (lambda: SamplingParams().clone(3), ["SamplingParams.clone"]),
        (lambda: SamplingParams.from_optional(3), ["SamplingParams.from_optional"]),
        (lambda: LLMEngine(), ["llm"]),
        (lambda: LLMEngine(3), ["llm"]),
        (lambda: LLMEngine(None, 3), ["LLMEngine"]),
        (lambda: selftest(), ["target"]),
        (lambda: selftest("a", "b", "c"), ["selftest"]),
    ],
)
def test_constructors_name_surplus_and_missing_arguments(
    call: Callable[[], Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        call()
    assert {problem.field for problem in error.value.problems} >= set(fields)


def test_parameters_without_names_come_in_vllms_order() -> None:
    assert SamplingParams(2, 0.5) == SamplingParams(n=2, presence_penalty=0.5)
    given = (1, 0, 0, 1, 0.7, None, 0.9, 5, 0.1, 3, ["x"], [4], True, 9, 2, 1, 0)
    assert SamplingParams(*given) == SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=3,
        stop=["x"],
        stop_token_ids=[4],
        ignore_eos=True,
        max_tokens=9,
        min_tokens=2,
        logprobs=1,
        prompt_logprobs=0,
    )
    assert BeamSearchParams(4, 10) == BeamSearchParams(beam_width=4, max_tokens=10)
    assert BeamSearchParams(1, 2, True, 0.0, 2.0) == BeamSearchParams(
        beam_width=1, max_tokens=2, ignore_eos=True, length_penalty=2.0
    )
    assert StructuredOutputsParams(None, "a+") == StructuredOutputsParams(regex="a+")


def test_vllm_arguments_without_effect_are_accepted(
    tiny_dir: pathlib.Path,
) -> None:
    llm = LLM(tiny_dir, max_model_len=64, num_threads=1)
    [output] = llm.beam_search([[1, 2]], BEAMS, mm_processor_kwargs={"a": 1})
    assert output.sequences
    assert llm.get_world_size(include_dp=False) == 1
    llm.reset_mm_cache()
    assert llm.wait_for_completion(RequestOutput, use_tqdm=False) == []
