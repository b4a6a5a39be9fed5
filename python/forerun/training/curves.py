"""The learning curves as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def draw_curves(out: Path) -> None:
    """Draws out/training_log.jsonl as out/learning_curves.png, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    log = out / "training_log.jsonl"
    if not log.is_file():
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    _draw_positions(left, [(e, e["accuracy"]) for e in entries if "accuracy" in e], "-", "training")
    held_out = [(e, e["held_out"]["accuracy"]) for e in entries if "held_out" in e]
    _draw_positions(left, held_out, "o--", "held out")
    left.set_ylabel("accuracy by position")
    losses = [(e, [sum(e["loss"])]) for e in entries if "loss" in e]
    right.plot([e["answer_tokens"] for e, _ in losses], [v[0] for _, v in losses], color="C7")
    right.set_ylabel("loss, positions added")
    lengths = [e for e in entries if "held_out" in e]
    if lengths:
        other = right.twinx()
        values = [e["held_out"]["chain_length"] for e in lengths]
        other.plot([e["answer_tokens"] for e in lengths], values, "o--", color="C1")
        other.set_ylabel("mean acceptance length, held out")
    for axes in (left, right):
        axes.set_xlabel("tokens of answers")
        axes.grid(alpha=0.3)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(out / "learning_curves.png", dpi=120)
    pyplot.close(figure)


def _draw_positions(
    axes: Any, points: list[tuple[Any, list[float]]], style: str, what: str
) -> None:
    # Positions may be trained for from some time on only.
    for position in range(max((len(values) for _, values in points), default=0)):
        trained = [(entry, values) for entry, values in points if len(values) > position]
        axes.plot(
            [entry["answer_tokens"] for entry, _ in trained],
            [values[position] for _, values in trained],
            style,
            markersize=3,
            color=f"C{position}",
            label=f"{what}, position {position}",
        )
