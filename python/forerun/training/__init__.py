"""Trains drafters for a target and writes them in the formats that people publish.

Needs the extra `train` (torch, transformers); importing this package does not import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forerun.training.options import TRAIN_METHODS, TrainOptions

if TYPE_CHECKING:
    from forerun.training.evaluation import Acceptance

__all__ = ["TRAIN_METHODS", "TrainOptions", "train"]


def train(options: TrainOptions) -> Acceptance | None:
    """Trains as the options say, or continues from the state in `options.out`.

    Returns:
        What the drafter reaches on the examples that were held out; None where there are none.

    Raises:
        InvalidArgumentError: options or data are wrong, or the extra is not installed.
        CheckpointError: the target cannot be loaded, or is of a kind that is not trained for.
    """
    from forerun.errors import InvalidArgumentError

    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InvalidArgumentError(
            "forerun train", f"no module {error.name}", "pip install 'forerun[train]'"
        ) from error
    from forerun.training.loop import run

    return run(options)
