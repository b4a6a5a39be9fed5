"""What a GGUF file holds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from forerun.checkpoints.convert.config import architecture, model_config
from forerun.checkpoints.convert.reader import GgufFile
from forerun.checkpoints.convert.weights import rope_freqs
from forerun.checkpoints.inspection.result import Inspection
from forerun.errors import CheckpointError


def inspect_gguf(path: Path, method: str | None) -> Inspection:
    """Tells what the file holds, as it would be converted; CheckpointError as for convert."""
    file = GgufFile(path)
    config = model_config(file, rope_freqs(file))
    if method not in (None, "draft_model"):
        raise CheckpointError("method", method, "draft_model: a GGUF file is a language model")
    types = Counter(tensor.type_name for tensor in file.tensors.values())
    return Inspection(
        path,
        "target",
        f"GGUF of architecture {architecture(file)}",
        sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        path.stat().st_size,
        config["hidden_size"],
        config["vocab_size"],
        {
            "model type": config["model_type"],
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "KV heads": config["num_key_value_heads"],
            "context length": config["max_position_embeddings"],
            "tied embeddings": config["tie_word_embeddings"],
            "tensors by type": [f"{count} {name}" for name, count in types.most_common()],
        },
    )
