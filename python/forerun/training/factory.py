"""From options to a drafter that has learned nothing yet."""

from __future__ import annotations

from collections.abc import Callable

from forerun.training.draft_model import DraftModel
from forerun.training.heads import Head, Medusa, MlpSpeculator
from forerun.training.layer_heads import Eagle, Eagle3
from forerun.training.mtp import Mtp
from forerun.training.options import TrainOptions
from forerun.training.target import Target


def make_head(target: Target, options: TrainOptions, vocabulary: list[int] | None) -> Head:
    """The drafter of options.method; `vocabulary` are the ids that it can draft, or that its
    loss always compares."""
    if options.method == "eagle3":
        assert vocabulary is not None
        return Eagle3(target, options, vocabulary)
    if options.method == "medusa":
        return Medusa(target, options, vocabulary)
    if options.method == "mlp_speculator":
        return MlpSpeculator(target, options, vocabulary)
    kinds: dict[str, Callable[[Target, TrainOptions], Head]] = {
        "eagle": Eagle,
        "mtp": Mtp,
        "draft_model": DraftModel,
    }
    return kinds[options.method](target, options)
