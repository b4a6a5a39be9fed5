"""A caller's own functions of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from forerun.checks import check_list
from forerun.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Row: TypeAlias = npt.NDArray[np.float32]

# Changes the logits behind the output in place, or returns others.
LogitsProcessor: TypeAlias = "Callable[[list[int], Row], Any]"


def check_processors(field: str, processors: Any) -> list[LogitsProcessor]:
    """A list of callables."""
    expected = "a list of functions of (output_token_ids, logits)"
    listed = check_list(field, processors, expected)
    for processor in listed:
        if not callable(processor):
            raise InvalidArgumentError(field, processor, expected)
    return listed


def chain_processors(processors: Sequence[LogitsProcessor]) -> Callable[[list[int], Row], Row]:
    """One function that applies all, one after the other."""
    import numpy as np

    def apply(token_ids: list[int], row: Row) -> Row:
        for processor in processors:
            changed = processor(list(token_ids), row)
            if changed is None:
                continue
            changed = np.ascontiguousarray(changed, dtype=np.float32)
            if changed.shape != row.shape:
                raise ValueError(
                    f"logits of shape {changed.shape} came back where {row.shape} were given"
                )
            row = changed
        return row

    return apply
