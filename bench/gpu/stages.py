"""Stages of a run: commands with limits of time, what they printed, what came of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    group: str  # as it is asked for
    name: str
    status: str  # "ok", "failed" or "left out"
    seconds: float = 0.0
    detail: str = ""  # why it did not succeed


def _files(log: Path) -> tuple[Path, Path]:
    """Of what was printed, and of what was said of errors."""
    return log, log.with_suffix(".errors.log")


@dataclass
class Run:
    """All stages so far, and how long they may still take."""

    deadline: float
    logs: Path  # a directory
    group: str = "machine"  # of the stages that follow
    stages: list[Stage] = field(default_factory=list)

    def leave_out(self, name: str, reason: str) -> None:
        self._add(Stage(self.group, name, "left out", detail=reason))

    def fail(self, name: str, reason: str) -> None:
        self._add(Stage(self.group, name, "failed", detail=reason))

    def command(
        self,
        name: str,
        words: list[Any],
        env: dict[str, str] | None = None,
        max_seconds: float = float("inf"),
    ) -> str | None:
        """Runs a stage; returns what it printed, or None if it did not succeed."""
        left = min(self.deadline - time.monotonic(), max_seconds)
        if left <= 1:
            return self.fail(name, "no time was left")
        start = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / (re.sub(r"\W+", "_", name) + ".log")
        problem = self._execute([str(word) for word in words], env or {}, left, log)
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in _files(log)]
        stage = Stage(self.group, name, "ok", round(time.monotonic() - start, 1))
        if problem:
            ends = "".join(text[-2000:] for text in texts)
            stage.status, stage.detail = "failed", f"{problem}; {log}:\n{ends}"
        self._add(stage)
        return None if problem else texts[0]

    @staticmethod
    def _execute(words: list[str], env: dict[str, str], max_seconds: float, log: Path) -> str:
        """What went wrong."""
        printed, said = _files(log)
        with printed.open("wb") as out, said.open("wb") as errors:
            try:
                process = subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env={**os.environ, **env},
                    stdout=out,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                return str(error)
            try:
                status = process.wait(max_seconds)
            except subprocess.TimeoutExpired:
                return f"stopped after {max_seconds:.0f} s"
            finally:
                # What it started, and left, would keep the GPU's memory.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return f"exit status {status}" if status else ""

    def _add(self, stage: Stage) -> None:
        self.stages.append(stage)
        print(f"{stage.name}: {stage.status} ({stage.seconds} s) {stage.detail}", flush=True)
