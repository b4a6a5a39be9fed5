"""Trains heads that draft for a target, and writes them in the formats people publish."""

from forerun.training.options import TRAIN_METHODS, TrainOptions

__all__ = ["TRAIN_METHODS", "TrainOptions", "train"]


def train(options: TrainOptions) -> None:
    """Trains as the options say; see `forerun train --help`. Needs the extra `train`."""
    from forerun.errors import InvalidArgumentError

    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InvalidArgumentError(
            "forerun train", f"no module {error.name}", "pip install 'forerun[train]'"
        ) from error
    from forerun.training.loop import run

    run(options)
