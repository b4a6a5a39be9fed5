"""Structured output: texts restricted by a schema, an expression, a list or a grammar."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forerun import _core
from forerun.errors import InvalidArgumentError, shown
from forerun.text.json_schemas import check_depth, closed, without_dead_ends
from forerun.text.turns import make_turns
from forerun.text.user_grammars import to_lark
from forerun.util.checks import check_bool, check_list, check_str
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import parse_json
from forerun.vllm_fields.arguments import checked_keywords

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_MAX_CACHED_GRAMMARS = 256
# Enough for indented JSON, and a limit for a text that is nothing but whitespace.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


@checked_keywords
@dataclass(kw_only=True)
class StructuredOutputsParams:
    """Restricts a completion to one of five kinds of text. Wrong values raise at once.

    Attributes:
        json: valid JSON that follows this JSON schema, given as a dict or as text. Exactly one of
            `json`, `regex`, `choice`, `grammar` and `json_object` must be given.
        regex: a match of this regular expression, from its beginning to its end.
        choice: one of these strings.
        grammar: a text of this grammar, in Lark's or GBNF's notation (vLLM's EBNF).
        json_object: True for any JSON object.
        disable_any_whitespace: JSON without whitespace between its parts.
        disable_additional_properties: objects have only the properties that the schema names,
            unless it mentions additional ones itself.
        whitespace_pattern: JSON with this regular expression's whitespace between its parts; None
            is up to 40 spaces, tabs and line ends.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InvalidArgumentError(
                "structured_outputs", given or None, f"exactly one of {', '.join(_KINDS)}"
            )
        for field in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, field)
            if value is not None and not check_str(field, value):
                raise InvalidArgumentError(field, value, "a text that is not empty")
        if self.json_object is not None and not check_bool("json_object", self.json_object):
            raise InvalidArgumentError("json_object", False, "True, or no json_object")
        check_bool("disable_any_whitespace", self.disable_any_whitespace)
        check_bool("disable_additional_properties", self.disable_additional_properties)
        self._check_choice()
        self._refuse_json_options()
        if self.json is not None or self.json_object:
            self._schema()

    @property
    def kind(self) -> str:
        """The one field that is given."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        self.choice = check_list("choice", self.choice, "a list of at least one string")
        if not self.choice:
            raise InvalidArgumentError("choice", self.choice, "a list of at least one string")
        for text in self.choice:
            if not check_str("choice", text):
                raise InvalidArgumentError("choice", text, "strings that are not empty")

    def _refuse_json_options(self) -> None:
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise InvalidArgumentError(
                "whitespace_pattern", self.whitespace_pattern, "none with disable_any_whitespace"
            )
        if self.kind in ("json", "json_object"):
            return
        for option in ("disable_any_whitespace", "disable_additional_properties"):
            if getattr(self, option):
                raise InvalidArgumentError(option, True, f"no such option with {self.kind}")
        if self.whitespace_pattern is not None:
            raise InvalidArgumentError(
                "whitespace_pattern", self.whitespace_pattern, f"no such option with {self.kind}"
            )

    def _schema(self) -> Any:
        """The schema as parsed JSON, checked for its depth."""
        if self.json is None:
            return {"type": "object"}
        text = self.json
        if not isinstance(text, str):
            if not isinstance(text, Mapping | bool):
                raise InvalidArgumentError("json", text, "a JSON schema: a dict, or its text")
            try:
                text = json.dumps(text, allow_nan=False)
            except Exception as error:  # a mapping's methods may raise anything
                pass_on_interrupt(error)
                reason = f"{type(error).__name__}: {error}"
                expected = f"a JSON schema that JSON can write ({reason})"
                raise InvalidArgumentError("json", "a dict that is no JSON", expected) from error
        schema = parse_json(text, "json", "a JSON schema", InvalidArgumentError)
        if not isinstance(schema, dict | bool):
            raise InvalidArgumentError("json", self.json, "a JSON schema: a dict, or its text")
        check_depth(schema)
        return closed(schema) if self.disable_additional_properties else schema

    def _key(self) -> str:
        """Equal for equal grammars that are given in the same way."""
        is_json = self.kind in ("json", "json_object")
        value = self._schema() if is_json else getattr(self, self.kind)
        text = json.dumps([self.kind, value, self._whitespace() if is_json else None])
        return hashlib.sha256(text.encode()).hexdigest()  # grammars may be long

    def _whitespace(self) -> dict[str, Any]:
        if self.disable_any_whitespace:
            return {"whitespace_flexible": False}
        return {"whitespace_pattern": self.whitespace_pattern or _WHITESPACE}

    def _finite_schema(self) -> Any:
        """The schema without what llguidance cannot finish."""
        from forerun.text.grammar_probes import accepts, expression_error

        if self.whitespace_pattern and (why := expression_error(self.whitespace_pattern)):
            raise InvalidArgumentError("whitespace_pattern", self.whitespace_pattern, why)
        return without_dead_ends(self._schema(), accepts)

    def _choices(self) -> str:
        # One terminal: alternatives of a rule are items of the parser, and those are limited.
        return "CHOICE: " + " | ".join(
            json.dumps(text) for text in dict.fromkeys(self.choice or ())
        )

    def lark_rules(self, name: str) -> str:
        """Rules in Lark's notation, the first of which, of this name, is the whole text."""
        if self.kind in ("json", "json_object"):
            schema = self._finite_schema()
            if schema is not False:
                rest = {} if schema is True else schema
                schema = {"x-guidance": self._whitespace(), **rest}
            return f"{name}: %json {json.dumps(schema)}\n"
        if self.choice is not None:
            return f"{name}: CHOICE\n{self._choices()}\n"
        if self.grammar is not None:
            return f"{name}: %lark {{\n{to_lark(self.grammar)}\n}}\n"
        # What is escaped already stays as it is.
        regex = re.sub(r"(\\.)|/|\n", _escaped_for_lark, self.regex or "", flags=re.DOTALL)
        return f"{name}: EXPRESSION\nEXPRESSION: /{regex}/\n"

    def _grammar_text(self) -> str:
        """The grammar in llguidance's own notation."""
        matcher = _llguidance().LLMatcher
        if self.kind in ("json", "json_object"):
            schema = json.dumps(self._finite_schema())
            text = matcher.grammar_from_json_schema(schema, defaults=self._whitespace())
        elif self.choice is not None:
            text = matcher.grammar_from_lark(f"start: CHOICE\n{self._choices()}")
        elif self.grammar is not None:
            text = matcher.grammar_from_lark(to_lark(self.grammar))
        else:
            text = matcher.grammar_from_regex(self.regex)
        return str(text)


def _escaped_for_lark(match: re.Match[str]) -> str:
    return match[1] or {"/": r"\/", "\n": r"\n"}[match[0]]


class GrammarTokenizer:
    """The tokenizer that llguidance wraps: a model's tokens and a way to encode text.

    Args:
        token_bytes: the bytes of each token id.
        special_token_ids: tokens that are not text.
        eos_token_ids: the end-of-sequence tokens.
        encode: tokenizes a text.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens = list(token_bytes)
        self.eos_token_ids = [token for token in eos_token_ids if token < len(self.tokens)]
        if not self.eos_token_ids:
            raise InvalidArgumentError(
                "structured_outputs", "a model without one", "an end-of-sequence token"
            )
        self.eos_token_id = self.eos_token_ids[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({*special_token_ids, *self.eos_token_ids})
        self._special = set(self.special_token_ids)
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """Token ids whose bytes are exactly the text."""
        if not isinstance(text, str):
            raise TypeError("a vocabulary encodes strings")
        ids = self._encode(text)
        # Some tokenizers prepend a space, and all of them recognize the names of special tokens.
        if self._special.isdisjoint(ids) and b"".join(self.tokens[i] for i in ids) == text.encode():
            return ids
        return self._greedy(text.encode())

    def _greedy(self, data: bytes) -> list[int]:
        ids = []
        while data:
            sizes = range(min(len(data), self._longest), 0, -1)
            token = next(
                (self._by_bytes[data[:n]] for n in sizes if data[:n] in self._by_bytes), None
            )
            if token is None:
                break  # no tokens have the rest; the tokens so far are still a hint
            ids.append(token)
            data = data[len(self.tokens[token]) :]
        return ids

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        pairs = reversed(list(enumerate(self.tokens)))
        return {data: token for token, data in pairs if data and token not in self._special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)


@dataclass
class _Grammar:
    turns: _core.Turns  # of those who want it
    matcher: Any = None  # None: not compiled


class GrammarCompiler:
    """Compiles the grammars of requests, equal ones once. Threads may share it.

    Attributes:
        num_threads: how many threads compute the masks of a step.
        eos_token_ids: the end-of-sequence tokens.
        only_eos: the mask that allows only those.
    """

    def __init__(self, vocabulary: GrammarTokenizer, num_threads: int = 1) -> None:
        llguidance = _llguidance()
        self._turns = make_turns()
        with self._turns:
            self._tokenizer = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(vocabulary),
                n_vocab=len(vocabulary.tokens),
                eos_token=vocabulary.eos_token_ids,
            )
        self._grammars: OrderedDict[str, _Grammar] = OrderedDict()
        mask = bytearray((len(vocabulary.tokens) + 31) // 32 * 4)
        for token in vocabulary.eos_token_ids:
            mask[token // 8] |= 1 << token % 8
        self.only_eos = bytes(mask)
        self.eos_token_ids = vocabulary.eos_token_ids
        self.num_threads = num_threads

    def compile(self, params: StructuredOutputsParams) -> Callable[[], GrammarState]:
        """A function that makes a state for each completion.

        Raises:
            InvalidArgumentError: llguidance cannot compile the grammar.
        """
        name = f"structured_outputs.{params.kind} {shown(getattr(params, params.kind))}"
        key = params._key()
        with self._turns:
            grammar = self._grammars.pop(key, None) or _Grammar(make_turns())
            self._grammars[key] = grammar
            if len(self._grammars) > _MAX_CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
        # Threads wait for each other only where they want the same grammar.
        with grammar.turns:
            if grammar.matcher is None:
                try:
                    grammar.matcher = self._matcher(params)
                except BaseException:
                    self._forget(key, grammar)
                    raise
            matcher = grammar.matcher
        return lambda: GrammarState(matcher.deep_copy(), self, name)

    def _forget(self, key: str, grammar: _Grammar) -> None:
        """Keeps a grammar that cannot be compiled from taking the room of others."""
        with self._turns:
            if self._grammars.get(key) is grammar:
                del self._grammars[key]

    def _matcher(self, params: StructuredOutputsParams) -> Any:
        where = f"structured_outputs.{params.kind}"
        value = getattr(params, params.kind)
        try:
            text = params._grammar_text()
        except InvalidArgumentError as error:
            field = f"structured_outputs.{error.field}"
            raise InvalidArgumentError(field, error.value, error.expected) from None
        except ValueError as error:
            raise InvalidArgumentError(where, value, f"what llguidance can read: {error}") from None
        try:
            return self._compile(text)
        except ValueError as error:
            raise InvalidArgumentError(where, value, str(error)) from None

    def _compile(self, text: str) -> Any:
        from forerun.text.grammar_probes import dead_end, is_beyond_limit, limits, reason

        matcher = _llguidance().LLMatcher(self._tokenizer, text, log_level=0, limits=limits())
        if matcher.is_error():
            raise ValueError(f"what llguidance can compile: {reason(matcher)}")
        if why := dead_end(text):
            raise ValueError(f"what some text satisfies: {why}")
        first = matcher.deep_copy()
        mask = int.from_bytes(first.compute_bitmask(), "little")
        if first.is_error():
            raise ValueError(f"what some text of the model's tokens satisfies: {reason(first)}")
        # What is too large for a step shows after one token.
        mask &= ~int.from_bytes(self.only_eos, "little")
        if mask:
            first.try_consume_tokens([(mask & -mask).bit_length() - 1])
            first.compute_bitmask()
        if is_beyond_limit(first):
            raise ValueError(f"what a step has the time for: {reason(first)}")
        return matcher


class GrammarState:
    """A grammar after some output of one completion: the engine's constraint.

    Args:
        matcher: llguidance's, after no output.
        compiler: the one that made it.
        name: the field and its value, for errors.

    After an end-of-sequence token only others may follow, for requests that ignore them.
    """

    def __init__(self, matcher: Any, compiler: GrammarCompiler, name: str) -> None:
        self._matcher = matcher
        self._compiler = compiler
        self._name = name
        self._eos = compiler.eos_token_ids
        self._num_ends = 0

    def restart(self) -> None:
        """Returns to the state after no output."""
        self._matcher.reset()
        self._num_ends = 0

    def advance(self, token_ids: list[int]) -> int:
        """Accepts tokens up to the first one that is not allowed; returns how many."""
        num_accepted = self._advance(token_ids)
        self.check()
        return num_accepted

    def _advance(self, token_ids: list[int]) -> int:
        num_accepted: int = 0
        if self._num_ends == 0:
            is_end = (index for index, token in enumerate(token_ids) if token in self._eos)
            end = next(is_end, len(token_ids))
            num_accepted = self._matcher.try_consume_tokens(token_ids[:end])
            if num_accepted < end or end == len(token_ids) or not self._matcher.is_accepting():
                return num_accepted
        while num_accepted < len(token_ids) and token_ids[num_accepted] in self._eos:
            self._num_ends += 1
            num_accepted += 1
        return num_accepted

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last tokens."""
        num_ends = min(num_tokens, self._num_ends)
        self._num_ends -= num_ends
        if num_tokens > num_ends:
            self._matcher.rollback(num_tokens - num_ends)
            self.check()

    def forced(self) -> list[int]:
        """Tokens that certainly come next."""
        if self._num_ends > 0:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self.check()
        if not tokens and len(self._eos) == 1 and self._matcher.is_stopped():
            return list(self._eos)
        return tokens

    def after(self, token_ids: list[int], parents: list[int]) -> list[GrammarState | None]:
        """Copies after no token and after each node of a draft; None where a node is not allowed.

        A failure of a node's grammar is its copy's alone: the output may never get there.
        """
        states: list[GrammarState | None] = [self._copy()]
        for token, parent in zip(token_ids, parents, strict=True):
            before = states[parent + 1]
            state = before._copy() if before is not None else None
            if state is not None and not state._advance([token]) and not state._matcher.is_error():
                state = None
            states.append(state)
        return states

    def _copy(self) -> GrammarState:
        copy = GrammarState(self._matcher.deep_copy(), self._compiler, self._name)
        copy._num_ends = self._num_ends
        return copy

    def fill_mask(self, address: int, num_bytes: int) -> None:
        """Writes a bit per token that may be next."""
        self.fill_masks([self], address, num_bytes)
        self.check()

    def fill_masks(
        self, states: Sequence[GrammarState | None], address: int, row_bytes: int
    ) -> None:
        """Writes row i for states[i], in parallel and without the GIL. Their check() raises.

        The states may be those of other requests, with grammars of the same compiler.
        """
        jobs = []
        for row, state in enumerate(states):
            if state is None:
                continue
            if state._num_ends > 0:
                ctypes.memmove(address + row * row_bytes, self._compiler.only_eos, row_bytes)
            else:
                jobs.append((state._matcher, row))
        if jobs:
            executor = _executor(os.getpid(), self._compiler.num_threads)
            executor.unsafe_compute_mask_ptr(jobs, address, row_bytes, len(states))

    def check(self) -> None:
        """Raises RuntimeError if the grammar is at a dead end or beyond a limit."""
        if self._matcher.is_error():
            from forerun.text.grammar_probes import reason

            raise RuntimeError(f"no token can follow under {self._name}: {reason(self._matcher)}")


@functools.cache
def _executor(process_id: int, num_threads: int) -> Any:
    """Threads of this process; those of its parent do not exist in the child of a fork."""
    return _llguidance().LLExecutor(num_threads=num_threads)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InvalidArgumentError(
            "structured_outputs", str(error), "the package llguidance: pip install llguidance"
        ) from error
    return llguidance
