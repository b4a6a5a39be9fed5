"""Shows what `forerun bench` measured: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forerun.errors import InvalidArgumentError


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


HEADER = ("tokens/s", "speed-up", "mean acceptance length", "tokens per target pass", "same tokens")


def columns(summary: dict[str, Any]) -> list[str]:
    """The cells under HEADER for one method."""
    speed_up = summary["speed_up"]
    return [
        f"{summary['tokens_per_second']:.1f}",
        "-" if speed_up is None else f"{speed_up:.2f}x",
        f"{summary['mean_acceptance_length']:.2f}",
        f"{summary['tokens_per_target_pass']:.2f}",
        "yes" if summary["same_tokens"] else "NO",
    ]


def bench_table(report: dict[str, Any]) -> str:
    """The methods of a report, one line each, and one per category where there are several."""
    rows = []
    for method, summary in report["methods"].items():
        share = f"{100 * summary['share_of_roofline']:.0f} %"
        rows.append([method, *columns(summary), share])
        categories = summary["by_category"]
        if len(categories) > 1:
            rows += [[f"  {name}", *columns(part), ""] for name, part in categories.items()]
    return table(("method", *HEADER, "share of roofline"), rows)


def draw(report: dict[str, Any], path: str | Path) -> None:
    """Writes a picture: speed by category, and how far drafts are accepted."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidArgumentError(
            "plot", str(path), "matplotlib, which is not installed: pip install 'forerun[plot]'"
        ) from None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    speeds, acceptance = figure.subplots(1, 2, width_ratios=[3, 2])
    methods = report["methods"]
    categories = list(next(iter(methods.values()))["by_category"])
    width = 0.8 / len(methods)
    for place, (method, summary) in enumerate(methods.items()):
        heights = [summary["by_category"][name]["tokens_per_second"] for name in categories]
        positions = [i + (place - (len(methods) - 1) / 2) * width for i in range(len(categories))]
        bars = speeds.bar(positions, heights, width * 0.92, label=method)
        speeds.bar_label(bars, fmt="%.0f", fontsize=8)
        rates = summary["acceptance_rate_per_pos"]
        used = [i + 1 for i, rate in enumerate(rates) if rate > 0]
        if used:
            acceptance.plot(
                used, [rates[i - 1] for i in used], "o-", color=f"C{place}", label=method
            )
    speeds.set_xticks(range(len(categories)), categories, rotation=20 if len(categories) > 4 else 0)
    speeds.set_ylabel("tokens per second")
    speeds.legend()
    name = Path(report["model"]).name
    speeds.set_title(f"{name}, {report['dtype']}, {report['num_threads']} threads", fontsize=10)
    acceptance.set_xlabel("position in the draft")
    acceptance.set_ylabel("part of drafts accepted so far")
    acceptance.set_ylim(0, 1)
    acceptance.set_title("Acceptance by position", fontsize=10)
    if acceptance.lines:
        acceptance.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("plot", str(path), f"a picture file ({error})") from error
