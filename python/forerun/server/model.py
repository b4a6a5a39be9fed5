"""What the server needs of an AsyncLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from forerun import _core
from forerun.engine.prompts import Prompt
from forerun.engine.requests import PreparedPrompt
from forerun.metrics import Metric
from forerun.outputs import CompletionDelta, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.text.tokenizer import Tokenizer


class Stream(Protocol):
    """The deltas of one request; leaving its block cancels the request."""

    async def __aenter__(self) -> Stream: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    async def read(self) -> list[CompletionDelta]:
        """The next deltas: those that are there, or the first that comes; none at the end."""

    def read_late(self) -> None:
        """Lets deltas come late, many at a time."""

    async def aclose(self) -> None:
        """Cancels the request, unless it has finished."""


class Model(Protocol):
    """An AsyncLLM, as far as requests are concerned."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its name, as metrics have it."""

    @property
    def limits(self) -> _core.ModelLimits:
        """What it can serve."""

    def check_health(self) -> None:
        """Raises an error where requests cannot be served."""

    def get_tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    def get_default_sampling_params(self) -> SamplingParams:
        """What its generation_config.json recommends."""

    def get_metrics(self) -> list[Metric]:
        """The engine's counters."""

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> TokensPrompt:
        """A conversation's prompt."""

    def prepare(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams
    ) -> list[PreparedPrompt]:
        """Does what takes long before `stream`, in any thread."""

    def check_room(self, num_completions: int) -> None:
        """Raises an error unless so many may be added now."""

    def stream(
        self,
        prompt: PreparedPrompt,
        *,
        priority: int = 0,
        timeout: float | _core.Deadline | None = None,
    ) -> Stream:
        """Generates for one prompt, one token after the other."""
