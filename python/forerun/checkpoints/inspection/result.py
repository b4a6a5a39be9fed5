"""What an inspection of a checkpoint returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Inspection:
    """What a directory holds.

    Attributes:
        method: "target" for a whole language model, else the drafting method.
        evidence: why.
        hidden_size: of the target: its own, or the one that a drafter was made for. None where
            neither tensors nor config tell.
        vocab_size: the target's; None likewise.
        options: what was resolved, by name.
        open_questions: what the checkpoint does not say, with what is assumed.
        mtp_tensor: a tensor of a layer for multi-token prediction; None: there is none.
        obstacle: why it does not run as a drafter; None: it runs.
    """

    path: Path
    method: str
    evidence: str
    num_parameters: int
    num_bytes: int
    hidden_size: int | None = None
    vocab_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    open_questions: list[str] = field(default_factory=list)
    mtp_tensor: str | None = None
    obstacle: str | None = None

    def __str__(self) -> str:
        kind = "a language model" if self.method == "target" else f"a drafter: {self.method}"
        lines = [f"{self.path}: {kind} ({self.evidence})"]
        size = f"{self.num_parameters / 1e6:.1f} million, {self.num_bytes / 1e6:.1f} MB"
        facts = {
            "parameters": size,
            "target hidden size": self.hidden_size,
            "target vocabulary": self.vocab_size,
            **self.options,
        }
        lines += [f"  {name}: {_show(value)}" for name, value in facts.items() if value is not None]
        lines += [f"  open: {question}" for question in self.open_questions]
        return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
