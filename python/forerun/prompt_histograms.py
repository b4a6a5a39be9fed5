"""Distributions over prompts, which the engine does not see: each completion is a request there."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

_NUM_COMPLETIONS = (1.0, 2.0, 5.0, 10.0, 20.0)  # as in vLLM


@dataclass(frozen=True)
class Distribution:
    """How many observed values fell into each range, as the engine's histograms have it.

    Attributes:
        bounds: upper bounds of the ranges, inclusive, ascending.
        counts: [len(bounds) + 1]; the last has the values above every bound.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0

    @classmethod
    def empty(cls, bounds: Sequence[float]) -> Distribution:
        """Nothing observed yet."""
        return cls(tuple(bounds), (0,) * (len(bounds) + 1))

    @property
    def count(self) -> int:
        """All observed values."""
        return sum(self.counts)

    def observe(self, value: int) -> Distribution:
        """The distribution with one more value."""
        at = bisect.bisect_left(self.bounds, value)
        counts = (*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :])
        return Distribution(self.bounds, counts, self.sum + value)


@dataclass(frozen=True)
class PromptHistograms:
    """Histograms over the prompts whose completions have all finished.

    Immutable, so that an interrupt cannot leave a prompt half counted.

    Attributes:
        request_params_n: how many completions were asked for.
        request_max_num_generation_tokens: the tokens of the longest completion.
        last_id: the prompt counted last, by its first completion's id.
    """

    request_params_n: Distribution
    request_max_num_generation_tokens: Distribution
    last_id: int = -1

    @classmethod
    def empty(cls, token_bounds: Sequence[float]) -> PromptHistograms:
        """Nothing observed yet."""
        return cls(Distribution.empty(_NUM_COMPLETIONS), Distribution.empty(token_bounds))

    def observe(self, prompt_id: int, num_tokens: Sequence[int]) -> PromptHistograms:
        """Counts a prompt, unless it was counted last; `num_tokens` has one number a completion."""
        if prompt_id == self.last_id:
            return self
        return PromptHistograms(
            self.request_params_n.observe(len(num_tokens)),
            self.request_max_num_generation_tokens.observe(max(num_tokens)),
            prompt_id,
        )

    def by_name(self) -> dict[str, Distribution]:
        """The distributions by vLLM's names."""
        names = ("request_params_n", "request_max_num_generation_tokens")
        return {name: getattr(self, name) for name in names}
