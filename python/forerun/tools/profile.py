"""What `forerun bench --profile` shows: where the time of a forward pass goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forerun import _core
from forerun.checkpoints.loading import resolve_model
from forerun.engine.config import settle_options
from forerun.tools.report import table

LEGEND = """\
of read: the rate at which products read weights, by that at which this process reads memory
of arithmetic: their multiplications and additions a second, by those of the same products with many
  rows of a matrix that stays in cache"""


@dataclass(frozen=True)
class OperationProfile:
    """One kind of operation; the shares of rates are for products alone.

    Attributes:
        seconds: in one pass, of all layers.
        share: of the pass.
        share_of_read: the rate of reading weights, by that of plain reading.
        share_of_arithmetic: the arithmetic rate, by that of many rows of a small matrix.
    """

    name: str
    seconds: float
    share: float
    share_of_read: float | None
    share_of_arithmetic: float | None


@dataclass(frozen=True)
class PassProfile:
    """A forward pass.

    Attributes:
        num_rows: tokens that go through the model at once.
        num_context: tokens of the sequence before them.
        seconds: of the pass.
        read_rate: bytes a second of plain reading.
        arithmetic_rate: multiplications and additions a second.
    """

    num_rows: int
    num_context: int
    seconds: float
    read_rate: float
    arithmetic_rate: float
    operations: list[OperationProfile]


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

    def add(measured: _core.PassProfile) -> None:
        passes.append(_pass_profile(measured))
        report(passes[-1])

    _core.profile_passes(core_options, add, rounds)
    return passes


def _pass_profile(measured: _core.PassProfile) -> PassProfile:
    return PassProfile(
        num_rows=measured.num_rows,
        num_context=measured.num_context,
        seconds=measured.seconds,
        read_rate=measured.read_rate,
        arithmetic_rate=measured.arithmetic_rate,
        operations=[
            OperationProfile(
                name=each.name,
                seconds=each.seconds,
                share=each.share,
                share_of_read=each.share_of_read,
                share_of_arithmetic=each.share_of_arithmetic,
            )
            for each in measured.operations
        ],
    )


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
