"""What a loaded model is, under the names of vLLM's configs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from forerun.util.json_files import read_json_object

if TYPE_CHECKING:
    from forerun.engine.loaded_model import LoadedModel
    from forerun.speculative_config import SpeculativeConfig


class ModelConfig:
    """The model and its limits.

    Attributes:
        model: the name or path that LLM was given.
        tokenizer: the tokenizer's directory; None without a tokenizer.
        dtype: the type that the model computes in, as text: "bfloat16" or "float32".
        max_model_len: the most tokens of a prompt and its output together.
        hf_config: the fields of config.json as attributes.
    """

    def __init__(self, llm: LoadedModel) -> None:
        self._llm = llm
        self.model = llm.labels["model_name"]
        self.tokenizer = None if llm._tokenizer is None else llm._tokenizer.name_or_path
        self.dtype = llm.limits.dtype
        self.max_model_len = llm.limits.max_model_len
        self.hf_config = SimpleNamespace(**read_json_object(llm.directory / "config.json"))

    def get_vocab_size(self) -> int:
        """The number of logits, which may be more than the tokenizer's tokens."""
        return self._llm.limits.vocab_size

    def get_diff_sampling_param(self) -> dict[str, Any]:
        """What the model's generation_config.json recommends."""
        return dict(self._llm._recommended)


@dataclass(frozen=True)
class CacheConfig:
    """The KV cache.

    Attributes:
        block_size: tokens per block.
        num_gpu_blocks: all blocks; vLLM's name, also for blocks in main memory.
    """

    block_size: int
    num_gpu_blocks: int


@dataclass(frozen=True)
class VllmConfig:
    """The configs of an engine."""

    model_config: ModelConfig
    cache_config: CacheConfig
    speculative_config: SpeculativeConfig | None
