"""Random calls of the Python interface, of which the arguments are hostile, valid and mixed."""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hostile_values import hostile

import forerun
from forerun import LLM, ForerunError, SamplingParams, SpeculativeConfig, StructuredOutputsParams
from forerun.vllm_fields import OWNERS

CONTROL = [5, 6, 7, 5, 6]
_HANG_SECONDS = 120  # a call takes milliseconds
_MOST_DELTAS = 40

_SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False}
_CHAT = [{"role": "user", "content": "hi"}]


def _zero(token_ids: Any, logits: Any) -> Any:
    return np.zeros_like(logits)


# Values that are fine, by the name of the field or parameter.
VALID: dict[str, list[Any]] = {
    "prompts": ["hello", [1, 2, 3], {"prompt": "a"}, {"prompt_token_ids": [4]}, ["a", "b"], ["a"]],
    "prompt": ["hello", "a b", {"prompt_token_ids": [4]}],
    "prompt_token_ids": [[1, 2], (3,), np.array([4, 5])],
    "messages": [_CHAT, [_CHAT, _CHAT], [*_CHAT, {"role": "assistant", "content": "a"}]],
    "conversation": [_CHAT],
    "request_id": ["0", "one", "two"],
    "request_ids": [["0"], ["one", "two"]],
    "text": ["hello", "a b c", ["a", "b"]],
    "token_ids": [[1, 2, 3], (4,), []],
    "ids": [[1, 2, 3], 4],
    "tokens": [["a"], "a"],
    "words": [["a", "b c"]],
    "sequences": [[[1, 2], [3]]],
    "temperature": [0, 0.7, 1.0],
    "top_k": [0, 3],
    "top_p": [0.5, 1.0],
    "min_p": [0.0, 0.1],
    "n": [1, 2],
    "beam_width": [1, 2],
    "seed": [None, 3],
    "max_tokens": [1, 5, 9],
    "min_tokens": [0, 1],
    "stop": [None, "a", ["b", "cd"]],
    "stop_token_ids": [None, [3], np.array([4])],
    "bad_words": [None, ["a"]],
    "allowed_token_ids": [None, [1, 2, 3]],
    "logit_bias": [None, {3: 5.0}, {"4": -1}],
    "logprobs": [None, 0, 2],
    "prompt_logprobs": [None, 1],
    "structured_outputs": [None, {"regex": "a+"}, {"json": _SCHEMA}, {"choice": ["a", "b"]}],
    "logits_processors": [None, [_zero]],
    "json": [_SCHEMA, "{}"],
    "regex": ["a+"],
    "choice": [["a", "b"]],
    "grammar": ['start: "a"'],
    "method": ["ngram", "suffix", "grammar"],
    "num_speculative_tokens": [1, 3],
    "max_draft_tokens": [None, 2],
    "max_model_len": [64, 128],
    "max_num_seqs": [1, 4],
    "max_num_batched_tokens": [64, 128],
    "block_size": [16],
    "dtype": ["auto", "float32"],
    "num_threads": [1, 2],
    "kv_cache_memory_bytes": [1 << 20],
    "priority": [None, 0],
    "use_tqdm": [False],
    "sampling_params": [None, SamplingParams(max_tokens=3)],
    "params": [SamplingParams(max_tokens=3)],
    "speculative_config": [None, {"method": "ngram", "num_speculative_tokens": 2}],
    "chat_template": [None, "{{ messages[0].content }}"],
    "tools": [None, []],
    "add_generation_prompt": [True, False],
    "tokenize": [True, False],
    "add_special_tokens": [True, False],
    "skip_special_tokens": [True, False],
}
# Not the interface's, or an end of what the other calls need.
_LEFT_OUT = {"from_engine_args", "shutdown", "close"}


class Fuzz:
    """One engine, and random calls of everything around it.

    Args:
        directory: a tiny model with a tokenizer and a chat template.
    """

    def __init__(self, directory: Path) -> None:
        self._model = str(directory)
        draft = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
        self._llm = LLM(
            self._model,
            speculative_config=draft,
            max_num_seqs=4,
            max_model_len=128,
            check_invariants=True,
        )
        self._targets = self._find_targets()
        self._control = self.control()

    def control(self) -> list[list[int]]:
        """The ids of a request without anything special, with and without drafts."""
        params = [
            SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, speculative=drafts)
            for drafts in (True, False)
        ]
        outputs = self._llm.generate([CONTROL] * 2, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def call(self, seed: int) -> str | None:
        """Makes one random call; returns what was wrong with how it ended."""
        rng = random.Random(seed)
        names = list(self._targets)
        name = rng.choices(names, [self._targets[name][0] for name in names])[0]
        problem = None
        with _hang_guard():
            try:
                self._targets[name][1](rng)
            except ForerunError as error:
                problem = None if str(error) else f"{type(error).__name__} without a message"
            except MemoryError as error:
                problem = None if str(error) else "MemoryError without a name"
            except NotImplementedError as error:
                problem = None if str(error) else "NotImplementedError without a reason"
            except Exception as error:
                problem = f"{type(error).__name__}: {_text(error)}"
            if problem is None and self.control() != self._control:
                problem = "the engine gives other ids afterwards"
        return None if problem is None else f"{name} (seed {seed}): {problem}"

    def _find_targets(self) -> dict[str, tuple[float, Callable[[random.Random], Any]]]:
        """What can be called, with weights."""
        targets: dict[str, tuple[float, Callable[[random.Random], Any]]] = {
            "LLM": (2, self._load),
            "SamplingParams+generate": (14, self._generate),
        }
        classes: dict[str, Any] = {
            "SamplingParams": SamplingParams,
            "SpeculativeConfig": SpeculativeConfig,
            "StructuredOutputsParams": StructuredOutputsParams,
            "BeamSearchParams": getattr(forerun, "BeamSearchParams", None),
            "EngineArgs": getattr(forerun, "EngineArgs", None),
        }
        for name, cls in classes.items():
            if cls is not None:
                owner = "LLM" if name == "EngineArgs" else name
                targets[name] = (5, _maker(cls, list(OWNERS[owner])))
        objects: dict[str, Any] = {"LLM": self._llm, "Tokenizer": self._llm.get_tokenizer()}
        engine = getattr(self._llm, "llm_engine", None)
        if engine is not None:
            objects["LLMEngine"] = engine
        for owner, instance in objects.items():
            for name in sorted(set(dir(type(instance))) | {"__call__"}):
                method = getattr(instance, name, None)
                is_public = not name.startswith("_") or name == "__call__"
                if not is_public or name in _LEFT_OUT or not callable(method):
                    continue
                weight = 5 if name in ("generate", "chat", "stream", "beam_search") else 1.5
                targets[f"{owner}.{name}"] = (weight, self._caller(method))
        return targets

    def _load(self, rng: random.Random) -> None:
        fields = _arguments(rng, [name for name in OWNERS["LLM"] if name != "model"], 3)
        model = self._model if rng.random() < 0.8 else hostile(rng)
        llm = LLM(model, **fields)
        params = SamplingParams(max_tokens=2)
        prompt: Any = [1, 2]
        llm.generate([prompt], params, use_tqdm=False)

    def _generate(self, rng: random.Random) -> None:
        params = []
        for _ in range(rng.randint(1, 3)):
            fields = _arguments(rng, list(OWNERS["SamplingParams"]), 3, share=0.3)
            fields.setdefault("max_tokens", rng.randint(1, 6))
            params.append(SamplingParams(**fields))
        prompts = [rng.choice(("hello", [1, 2, 3], {"prompt": "a b"})) for _ in params]
        self._llm.generate(prompts, params, use_tqdm=False)

    def _caller(self, method: Callable[..., Any]) -> Callable[[random.Random], Any]:
        parameters = inspect.signature(method).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.kind < 2]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

        def call(rng: random.Random) -> None:
            given = _arguments(rng, names, 3, required)
            if "use_tqdm" in names:
                given.setdefault("use_tqdm", False)
            result = method(**given)
            self._drain(result)

        return call

    def _drain(self, result: Any) -> None:
        """Reads what a call started, so that the next finds an engine without requests."""
        if isinstance(result, Iterator) and not isinstance(result, Mapping):
            for index, _ in enumerate(result):
                if index > _MOST_DELTAS:
                    break
            if hasattr(result, "close"):
                result.close()
        if hasattr(self._llm, "wait_for_completion"):
            self._llm.wait_for_completion(use_tqdm=False)
        engine = getattr(self._llm, "llm_engine", None)
        while engine is not None and engine.has_unfinished_requests():
            engine.step()


def _maker(cls: Callable[..., Any], names: list[str]) -> Callable[[random.Random], Any]:
    def make(rng: random.Random) -> None:
        cls(**_arguments(rng, names, 4))

    return make


def _arguments(
    rng: random.Random,
    names: list[str],
    most: int,
    required: Sequence[str] = (),
    share: float = 0.5,
) -> dict[str, Any]:
    """Values for some names and all required ones; about `share` of them are hostile."""
    chosen = rng.sample(names, min(len(names), rng.randint(1, most)))
    given = {}
    for name in dict.fromkeys([*required, *chosen]):
        values = VALID.get(name)
        given[name] = rng.choice(values) if values and rng.random() > share else hostile(rng)
    return given


def _text(error: Exception) -> str:
    try:
        return str(error)[:300].encode("utf-8", "backslashreplace").decode()
    except Exception:
        return "a message that cannot be shown"


@contextlib.contextmanager
def _hang_guard() -> Iterator[None]:
    """Ends the process where a call does not return, and shows where it is."""
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
