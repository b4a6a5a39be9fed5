"""Methods of vLLM's LLM that Forerun does not support."""

from __future__ import annotations

from typing import Any, NoReturn

from forerun.errors import InvalidArgumentError
from forerun.vllm_fields.arguments import checked_arguments

_ONE_PROCESS = "the engine runs in one process, without workers"
_SLEEP = "the engine has no sleep mode; delete the LLM to free its memory"
_POOLING = "the engine generates text and does not pool hidden states"


class UnsupportedMethods:
    """Methods that raise InvalidArgumentError with the reason, for any arguments.

    Except reset_mm_cache, which vLLM calls for every model and which has no effect on text models.
    """

    @checked_arguments
    def reset_mm_cache(self) -> None:
        """Does nothing: there are no images whose features could be cached."""

    def sleep(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("sleep", _SLEEP)

    def wake_up(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("wake_up", _SLEEP)

    def release_kv_cache_memory(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("release_kv_cache_memory", _SLEEP)

    def collective_rpc(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("collective_rpc", _ONE_PROCESS)

    def apply_model(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("apply_model", "the model is not a PyTorch module")

    def encode(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("encode", _POOLING)

    def embed(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("embed", _POOLING)

    def classify(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("classify", _POOLING)

    def score(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        _refuse("score", _POOLING)


def _refuse(method: str, reason: str) -> NoReturn:
    raise InvalidArgumentError(f"LLM.{method}", "a call", f"none: {reason}")
