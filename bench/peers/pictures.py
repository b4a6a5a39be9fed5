"""Draws what run.py measured, and what drafters save by category.

    python bench/peers/pictures.py results.json PICTURES_DIR [--grid STATE]

Decoding by context, prompts, a step by the number of chats, and their tokens/s. STATE is a --state
file of bench/drafter_grid.py: speeds beside plain decoding, of one greedy chat of each category;
a second plain engine, named "again", is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

# By the kind of case: title, horizontal and vertical axis.
TITLES = {
    "decode": ("Decoding", "tokens of context", "tokens/s"),
    "prompt": ("Reading a prompt", "tokens of the prompt", "tokens/s"),
    "step": ("A step of several chats at once", "chats", "ms"),
    "chats": ("Several chats at once, all together", "chats", "tokens/s"),
}
PEERS = ("llama.cpp", "ik_llama", "OpenVINO", "transformers")  # their lines are dashed


def draw(kind: str, rates: dict[str, dict[str, list[float]]], target: Path) -> None:
    """One picture: a line for each engine. None where nothing was measured."""
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for engine, cases in rates.items():
        sizes = [int(case.split()[1]) for case in cases if case.split()[0] == kind]
        if not sizes:
            continue
        medians = [statistics.median(cases[f"{kind} {size}"]) for size in sizes]
        style = "--" if engine.startswith(PEERS) else "-"
        axes.plot([str(size) for size in sizes], medians, style, marker="o", label=engine)
    if not axes.lines:
        pyplot.close(figure)
        return
    title, x, y = TITLES[kind]
    axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    save(figure, target / f"peers_{kind}.svg")


def draw_grid(state: dict[str, dict[str, list[list[float]]]], target: Path) -> None:
    """Bars of a category's methods: speed after the prompt, beside plain decoding."""
    cells = {cell.removesuffix(", 1, 0"): state[cell] for cell in state if cell.endswith(", 1, 0")}
    if not cells:
        raise SystemExit("--grid: no cell of batch 1 and temperature 0")
    methods = [name for name in next(iter(cells.values())) if name not in ("plain", "again")]
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        offsets = [i + (index - (len(methods) - 1) / 2) * width for i in range(len(cells))]
        speeds = [
            seconds_after(cell, "plain") / seconds_after(cell, method) for cell in cells.values()
        ]
        axes.bar(offsets, speeds, width, label=method)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(cells)), cells, rotation=30, ha="right")
    axes.set(title="Decoding with drafts, by category", ylabel="times plain decoding")
    axes.legend(fontsize="small")
    save(figure, target / "peers_speculation.svg")


def seconds_after(cell: dict[str, list[list[float]]], engine: str) -> float:
    """Of all rounds, without the prompts."""
    return sum(after for _, after in cell[engine])


def save(figure: pyplot.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--grid", type=Path, metavar="STATE")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    rates = json.loads(arguments.results.read_text())["rates"]
    for kind in TITLES:
        draw(kind, rates, arguments.pictures)
    if arguments.grid:
        draw_grid(json.loads(arguments.grid.read_text()), arguments.pictures)


if __name__ == "__main__":
    main()
