"""What is timed of a model, how figures are written, and what they are to reach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Figure = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    context: int  # tokens before those that are decoded
    num_decoded: int
    rows: tuple[int, ...]  # of steps that are timed, num_steps of each in a round
    num_steps: int
    prompts: tuple[int, ...]
    num_rounds: int

    @property
    def num_known(self) -> int:
        """How many tokens are decoded plainly first."""
        return max(self.num_decoded, self.num_steps + max(self.rows))

    @property
    def max_len(self) -> int:
        """Of a request."""
        return max(*self.prompts, self.context + self.num_known) + 1

    def within(self, num_positions: int) -> Sizes:
        """The same for a model with so many positions: longer prompts are as long as it takes."""
        prompts = (min(num_tokens, num_positions - 1) for num_tokens in self.prompts)
        return replace(self, prompts=tuple(prompts))


FULL = Sizes(
    context=512,
    num_decoded=256,
    rows=(1, 5, 17, 64),
    num_steps=40,
    prompts=(512, 2048, 8192),
    num_rounds=5,
)
TINY = Sizes(context=8, num_decoded=10, rows=(1, 5), num_steps=3, prompts=(8, 40), num_rounds=1)

PLAIN = "plain decoding"
HOST = "host time of a step"


def step_by_one(rows: int) -> str:
    return f"step of {rows} rows, by one"


def prompt_rate(num_tokens: int) -> str:
    return f"prompt of {num_tokens}, rate"


@dataclass(frozen=True)
class Target:
    """A bound of a figure's value or of its share of the floor."""

    bound: float
    is_most: bool = False
    of_share: bool = False

    def is_met(self, figure: Figure) -> bool:
        value = figure["share" if self.of_share else "value"]
        return bool(value <= self.bound if self.is_most else value >= self.bound)

    def __str__(self) -> str:
        kind = " of the floor" if self.of_share else ""
        return f"{'at most' if self.is_most else 'at least'} {self.bound:g}{kind}"


HOST_TARGET = Target(100, is_most=True)
# By how a model's name begins.
TARGETS: dict[str, dict[str, Target]] = {
    "Llama-3.1-8B": {
        PLAIN: Target(0.80, of_share=True),
        step_by_one(5): Target(1.03, is_most=True),
        step_by_one(17): Target(1.10, is_most=True),
        step_by_one(64): Target(1.25, is_most=True),
        prompt_rate(2048): Target(300),
        prompt_rate(8192): Target(300),
        HOST: HOST_TARGET,
    },
    "SmolLM2-135M": {PLAIN: Target(1500), HOST: HOST_TARGET},
}
VERIFY_ROWS, VERIFY_US = 320, 100


def target_of(figure: Figure) -> Target | None:
    for name, targets in TARGETS.items():
        if figure["model"].startswith(name):
            return targets.get(figure["what"])
    return None


class Report:
    """Figures of one engine, each written at once, so that those before a failure are kept."""

    def __init__(self, engine: str, model: str, path: Path | None = None) -> None:
        self._names = {"engine": engine, "model": model}
        self._path = path
        self.problems: list[str] = []

    def add(self, what: str, value: float, unit: str, **more: Any) -> None:
        figure = {**self._names, "what": what, "value": float(f"{value:.4g}"), "unit": unit, **more}
        line = json.dumps(figure)
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def compare(self, what: str, got: Sequence[int], expected: Sequence[int]) -> None:
        """Ids with those of plain decoding, up to the shorter."""
        if any(a != b for a, b in zip(got, expected, strict=False)):
            self.problems.append(f"{what}: the ids are not those of plain decoding")


def read_figures(path: Path) -> list[Figure]:
    """The last one of each name."""
    if not path.exists():
        return []
    figures = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list({(f["engine"], f["model"], f["what"]): f for f in figures}.values())


def figure_lines(figures: Iterable[Figure]) -> list[str]:
    """Lines of a Markdown table: Forerun's figures, those of other engines beside them."""
    figures = list(figures)
    peers = list(dict.fromkeys(f["engine"] for f in figures if f["engine"] != "forerun"))
    values = {(f["engine"], f["model"], f["what"]): f["value"] for f in figures}
    header = ["model", "figure", "unit", "forerun", "of the floor", "target", *peers]
    lines = ["| " + " | ".join(header) + " |", "|---|---|---" + "|--:" * (len(header) - 3) + "|"]
    for figure in figures:
        if figure["engine"] != "forerun":
            continue
        model, what, target = figure["model"], figure["what"], target_of(figure)
        said = "" if target is None else f"{target}: {'met' if target.is_met(figure) else 'missed'}"
        of_peers = (values.get((peer, model, what), "") for peer in peers)
        if "tokens_per_step" in figure:
            what = f"{what}: {figure['tokens_per_step']} tokens a step"
        cells = [model, what, figure["unit"], figure["value"], figure.get("share", ""), said]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, *of_peers]) + " |")
    return lines


def call_lines(times: Iterable[Figure]) -> list[str]:
    """The same of the calls of forerun.kernels."""
    lines = [
        "| call | requests | vocabulary | us | floor us | target us | torch us |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in times:
        is_bound = row["rows"] == VERIFY_ROWS and row["case"].startswith("verify")
        cells = [row["case"], row["requests"], row["vocab"], row["us"], row["floor_us"]]
        cells += [VERIFY_US if is_bound else "", "" if row["torch_us"] is None else row["torch_us"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines
