"""Shows what `forerun bench` measured: a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


GPU = "cuda"  # the instruction set that a GPU's engine names
HEADER = ("tokens/s", "speed-up", "mean acceptance length", "tokens per target pass", "same tokens")
LEGEND = """\
mean acceptance length: tokens from a pass of the target that verified a draft: the accepted draft
  tokens and one of the target's own; "-" if nothing was drafted
tokens per target pass: the same over all passes, also those without a draft"""


def columns(summary: dict[str, Any]) -> list[str]:
    """The cells under HEADER for one method."""
    speed_up = summary["speed_up"]
    return [
        f"{summary['tokens_per_second']:.1f}",
        "-" if speed_up is None else f"{speed_up:.2f}x",
        f"{summary['mean_acceptance_length']:.2f}" if summary["num_drafts"] else "-",
        f"{summary['tokens_per_target_pass']:.2f}",
        "yes" if summary["same_tokens"] else "NO",
    ]


def bench_table(report: dict[str, Any]) -> str:
    """The methods of a report, one line each, and one per category if there are several."""
    rows = []
    has_share = "share_of_roofline" in report["methods"][report["baseline"]]
    for method, summary in report["methods"].items():
        share = [f"{100 * summary['share_of_roofline']:.0f} %"] if has_share else []
        rows.append([method, *columns(summary), *share])
        categories = summary["by_category"]
        if len(categories) > 1:
            empty = [""] * has_share
            rows += [[f"  {name}", *columns(part), *empty] for name, part in categories.items()]
    header = ("method", *HEADER, *(("share of roofline",) if has_share else ()))
    lines = [
        table(header, rows),
        "",
        LEGEND,
        f"speed-up: over {report['baseline']}, in the same rounds",
    ]
    if has_share:
        lines.append(
            "share of roofline: of the speed at which reading the weights would be all that takes "
            "time"
        )
    return "\n".join(lines)


def draw(report: dict[str, Any], path: str | Path) -> None:
    """Writes a picture: speed in total and by category, and acceptance by position."""
    figure = new_figure(path)
    speeds, acceptance = figure.subplots(1, 2, width_ratios=[3, 2])
    methods = report["methods"]
    categories = list(next(iter(methods.values()))["by_category"])
    groups = ["all prompts", *(categories if len(categories) > 1 else [])]
    width = 0.8 / len(methods)
    for index, (method, summary) in enumerate(methods.items()):
        parts = [summary, *(summary["by_category"][name] for name in groups[1:])]
        heights = [part["tokens_per_second"] for part in parts]
        positions = [i + (index - (len(methods) - 1) / 2) * width for i in range(len(groups))]
        bars = speeds.bar(positions, heights, width * 0.92, label=method)
        speeds.bar_label(bars, fmt="%.0f", fontsize=8 if len(groups) * len(methods) < 25 else 6)
        rates = summary["acceptance_rate_per_drafted_pos"]
        used = [i + 1 for i, rate in enumerate(rates) if rate > 0]
        if used:
            acceptance.plot(
                used, [rates[i - 1] for i in used], "o-", color=f"C{index}", label=method
            )
    speeds.set_xticks(range(len(groups)), groups)
    if len(groups) > 4:
        speeds.tick_params(axis="x", rotation=20)
    speeds.set_ylabel("decoded tokens per second")
    speeds.margins(y=0.12)
    speeds.set_title("Speed", fontsize=10)
    acceptance.set_xlabel("position in the draft")
    acceptance.set_ylabel("accepted so far, of drafts that reach the position")
    acceptance.set_ylim(0, 1)
    longest = max([1, *(int(line.get_xdata()[-1]) for line in acceptance.lines)])
    acceptance.set_xticks(range(1, longest + 1, 1 + longest // 13))
    acceptance.set_xlim(0.5, longest + 0.5)
    acceptance.set_title("Acceptance by position", fontsize=10)
    if not acceptance.lines:
        acceptance.text(
            0.5, 0.5, "nothing was drafted", ha="center", transform=acceptance.transAxes
        )
    bars = speeds.get_legend_handles_labels()
    figure.legend(*bars, loc="outside lower center", ncols=min(len(methods), 6))
    figure.suptitle(
        f"{report['model_name']}: {formats(report['weight_bytes'])}, "
        f"{machine(report)}, {report['num_cases']} prompts"
    )
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("plot", str(path), f"a picture file ({error})") from error


def machine(report: Mapping[str, Any]) -> str:
    """Where the model ran: "2 threads, avx2", or "cuda"."""
    isa = report["machine"]["isa"]
    return GPU if isa == GPU else f"{report['num_threads']} threads, {isa}"


def formats(weight_bytes: Mapping[str, int]) -> str:
    """Of weights, by their bytes: "int8", or "int4 62 %, int8 38 %"."""
    total = sum(weight_bytes.values())
    ordered = sorted(weight_bytes.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return ordered[0][0]
    return ", ".join(f"{name} {100 * size / total:.0f} %" for name, size in ordered)


def new_figure(path: str | Path) -> Any:
    """An empty figure of matplotlib, for the picture at `path`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidArgumentError(
            "plot", str(path), "matplotlib, which is not installed: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
