"""What a model's generation_config.json recommends, in the names of SamplingParams."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.util.json_files import read_json_object

_SAME_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def recommended_params(
    directory: Path, source: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords of SamplingParams that the file and the overrides set.

    Args:
        source: the directory of the file; "auto" is the model's, and "vllm" reads none.
        overrides: values by the file's names, which count more than the file's.
    """
    path = (directory if source == "auto" else Path(source).expanduser()) / "generation_config.json"
    has_file = source != "vllm" and os.path.isfile(path)
    config = {**(read_json_object(path) if has_file else {}), **overrides}
    names = {"max_new_tokens": "max_tokens"} | {name: name for name in _SAME_NAMES}
    return {
        ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None
    }
