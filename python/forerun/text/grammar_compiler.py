"""Structured output: grammars compiled for a vocabulary, and their states after some output."""

from __future__ import annotations

import ctypes
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forerun import _core
from forerun.errors import InvalidArgumentError, shown
from forerun.text.structured_outputs import StructuredOutputsParams, load_llguidance
from forerun.text.turns import make_turns

_MAX_CACHED_GRAMMARS = 256


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
        llguidance = load_llguidance()
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
        key = params.key()
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
            text = params.grammar_text()
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

        matcher = load_llguidance().LLMatcher(self._tokenizer, text, log_level=0, limits=limits())
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
    return load_llguidance().LLExecutor(num_threads=num_threads)
