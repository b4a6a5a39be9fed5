"""The models that `forerun chat` talks with: one of this process, or one on a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from forerun.errors import ForerunError, InvalidArgumentError
from forerun.tools.cli_options import (
    load_with_method,
    model_name,
    print_stats,
    sampling_params,
    structure,
)

if TYPE_CHECKING:
    from forerun.outputs import RequestOutput
    from forerun.tools.remote import RemoteAnswer

Messages = Sequence[dict[str, str]]


class ConversationTooLongError(ForerunError):
    """A conversation that leaves no room for an answer."""


class ChatModel(Protocol):
    """What continues a conversation."""

    name: str

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """The pieces of the next message, as they come; closing the generator stops it.

        Raises ConversationTooLongError before the first piece.
        """

    def remark(self) -> str | None:
        """How the last answer ended; None if it ended by itself."""

    def print_stats(self) -> None:
        """Writes speed and acceptance of the last answer to standard error."""


class LocalModel:
    """A model of this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.model is None:
            raise InvalidArgumentError("model", None, "MODEL, or --url with a server's address")
        self._llm = load_with_method(options)
        if self._llm.get_tokenizer().chat_template is None:
            raise InvalidArgumentError("model", options.model, "a model with a chat template")
        self._params = sampling_params(options)
        self._output: RequestOutput | None = None
        self.name = model_name(options.model)

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """Streams."""
        prompt = self._llm.render_chat(messages)
        num_tokens, limit = len(prompt["prompt_token_ids"]), self._llm.limits.max_model_len
        if num_tokens >= limit:
            raise ConversationTooLongError(
                f"too long: the conversation would have {num_tokens} tokens, and the model takes "
                f"{limit} with the answer; /reset starts a new one"
            )
        with self._llm.stream(prompt, self._params) as stream:
            for delta in stream:
                yield delta.text
                self._output = delta.output

    def remark(self) -> str | None:
        """An error, or what cut the answer off."""
        output = self._output
        assert output is not None
        if output.error is not None:
            return f"error: {output.error}"
        if output.outputs[0].finish_reason != "length":
            return None
        limit = self._llm.limits.max_model_len
        num_tokens = len(output.prompt_token_ids) + len(output.outputs[0].token_ids)
        if num_tokens >= limit:
            return (
                f"cut off: the conversation fills the model's {limit} tokens; /reset starts a new "
                "one"
            )
        return f"cut off after {self._params.max_tokens} tokens: --max-tokens"

    def print_stats(self) -> None:
        """As the other commands do."""
        if self._output is not None:
            print_stats(self._output)


class ServedModel:
    """A model on a server."""

    def __init__(self, options: argparse.Namespace) -> None:
        from forerun.tools.remote import RemoteAnswer, RemoteModel, request_fields

        self._fields = request_fields(sampling_params(options), structure(options))
        self._model = RemoteModel(options.url, options.model, options.api_key)
        self._answer = RemoteAnswer()
        self._asks_metrics = options.stats
        self.name = self._model.name

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """Streams."""
        from forerun.tools.remote import RemoteAnswer

        self._answer = RemoteAnswer()
        yield from self._model.stream(
            "chat/completions",
            {"messages": list(messages), **self._fields},
            self._answer,
            is_forerun=self._asks_metrics,
        )

    def remark(self) -> str | None:
        """What cut the answer off."""
        if self._answer.finish_reason == "length":
            return f"cut off after {self._answer.num_tokens} tokens"
        return None

    def print_stats(self) -> None:
        """With the client's times, and what the server says of its drafts."""
        print(_stats(self._answer), file=sys.stderr)


def _stats(answer: RemoteAnswer) -> str:
    seconds = answer.last_text_seconds - answer.first_text_seconds
    speed = (answer.num_tokens - 1) / seconds if seconds > 0 else 0.0
    text = (
        f"{answer.num_tokens} tokens, {speed:.1f} tokens/s, first token after "
        f"{answer.first_text_seconds:.2f} s"
    )
    metrics = answer.metrics
    if metrics:
        text += (
            f", {metrics['tokens_per_target_pass']:.2f} tokens per target pass, mean acceptance "
            f"length {metrics['mean_acceptance_length']:.2f}"
        )
    return f"[{text}]"
