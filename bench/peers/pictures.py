"""Draws what run.py measured: plain decoding by context, prompts, and several chats at once.

python bench/peers/pictures.py results.json PICTURES_DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

TITLES = {
    "decode": ("Decoding", "tokens of context"),
    "prompt": ("Reading a prompt", "tokens of the prompt"),
    "chats": ("Several chats at once, all together", "chats"),
}


def draw(kind: str, rates: dict[str, dict[str, list[float]]], target: Path) -> bool:
    """One picture: a line for each engine. False where nothing was measured."""
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for engine, cases in rates.items():
        sizes = [int(case.split()[1]) for case in cases if case.split()[0] == kind]
        if not sizes:
            continue
        medians = [statistics.median(cases[f"{kind} {size}"]) for size in sizes]
        axes.plot([str(size) for size in sizes], medians, marker="o", label=engine)
    if not axes.lines:
        return False
    title, x = TITLES[kind]
    axes.set(title=title, xlabel=x, ylabel="tokens/s", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(target / f"peers_{kind}.svg")
    pyplot.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("pictures", type=Path)
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    rates = json.loads(arguments.results.read_text())["rates"]
    for kind in TITLES:
        if draw(kind, rates, arguments.pictures):
            print(arguments.pictures / f"peers_{kind}.svg")


if __name__ == "__main__":
    main()
