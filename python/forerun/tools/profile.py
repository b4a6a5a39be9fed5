"""What `forerun bench --profile` shows: where the time of a forward pass goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from forerun import _core
from forerun._core import PassProfile
from forerun.checkpoints.loading import resolve_model
from forerun.engine.config import settle_options
from forerun.tools.report import table

LEGEND = """\
of read: the rate at which products read weights, by that at which this process reads memory
of arithmetic: their multiplications and additions a second, by those of the same products with many
  rows of a matrix that stays in cache"""


_OF_PASS = ("num_rows", "num_context", "seconds", "read_rate", "arithmetic_rate")
_OF_ONE = ("name", "seconds", "share", "share_of_read", "share_of_arithmetic")


def profile_passes(
    model: str | os.PathLike[str],
    *,
    report: Callable[[PassProfile], object],
    rounds: int,
    **options: Any,
) -> list[PassProfile]:
    """Measures passes of 1, 5 and 16 rows and of prompts at several contexts, medians of rounds.

    Args:
        model: what LLM takes.
        report: is called after each pass.
        rounds: measurements of each pass.
        options: keywords of LLM: those of weights, num_threads and max_model_len.

    Raises:
        InvalidArgumentError: an option is not valid.
        CheckpointError: the model cannot be read.
    """
    core_options, _ = settle_options(options)
    core_options.model = str(resolve_model(model, revision=options.get("revision")))
    passes: list[PassProfile] = []

    def add(measured: PassProfile) -> None:
        passes.append(measured)
        report(measured)

    _core.profile_passes(core_options, add, rounds)
    return passes


def as_dict(profile: PassProfile) -> dict[str, Any]:
    """A pass for JSON: rates per second, and of each operation seconds and shares."""
    fields = {name: getattr(profile, name) for name in _OF_PASS}
    operations = [{name: getattr(one, name) for name in _OF_ONE} for one in profile.operations]
    return {**fields, "operations": operations}


def pass_table(profile: PassProfile) -> str:
    """One pass: a line above, and a line for each kind of operation."""
    title = (
        f"{profile.num_rows} row{'s' * (profile.num_rows > 1)} at a context of "
        f"{profile.num_context}: {1e3 * profile.seconds:.2f} ms; this process reads "
        f"{profile.read_rate / 1e9:.1f} GB/s and computes {profile.arithmetic_rate / 1e9:.0f} "
        "GFLOP/s"
    )
    rows = [
        [
            each.name,
            f"{1e3 * each.seconds:.3f}",
            f"{100 * each.share:.1f} %",
            _percent(each.share_of_read),
            _percent(each.share_of_arithmetic),
        ]
        for each in profile.operations
    ]
    return f"{title}\n{table(('', 'ms', 'share', 'of read', 'of arithmetic'), rows)}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
