"""Traces of the engine's steps, as LLM.start_profile and stop_profile write them."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.util.checks import Problems, check_choice, check_dict, check_path, check_str
from forerun.vllm_fields import field_problems

_log = logging.getLogger("forerun")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def profile_directory(field: str, value: Any) -> Path | None:
    """The directory that a `profiler_config` names; None where it asks for no profiler.

    Raises InvalidArgumentError that lists everything that is wrong.
    """
    given = check_dict(field, value, "a dict of ProfilerConfig's fields")
    problems = Problems()
    problems.errors.extend(field_problems("ProfilerConfig", given))
    profiler, path = given.get("profiler"), given.get("torch_profiler_dir", "")
    directory = None
    with problems:
        if profiler is not None:
            check_choice("profiler", profiler, ("torch",))
            directory = check_path("torch_profiler_dir", path, "a directory for the traces")
            if "://" in str(path):
                raise InvalidArgumentError("torch_profiler_dir", path, "a local directory")
        elif path != "":
            raise InvalidArgumentError(
                "torch_profiler_dir", path, "'' without a profiler, or profiler='torch'"
            )
    problems.raise_all()
    return None if directory is None else directory.absolute()


class Profiler:
    """Starts and stops the traces of one engine.

    Args:
        turn: what a thread enters to have the engine for itself.
        config: LLM's `profiler_config`.
    """

    def __init__(self, engine: _core.Engine, turn: _core.Turns, config: Any) -> None:
        self._engine = engine
        self._turn = turn
        self._directory = profile_directory("profiler_config", config or {})

    def start(self, prefix: str | None) -> None:
        """Begins a trace, unless one is being written."""
        path = _trace_path(self._directory, prefix)
        with self._turn:
            is_new = self._engine.start_trace(str(path))
        if is_new:
            _log.info("start_profile: the trace is %s", path)
        else:
            _log.warning("start_profile is ignored: a trace is being written already")

    def stop(self) -> None:
        """Ends the trace that is being written, if there is one."""
        with self._turn:
            self._engine.stop_trace()


def _trace_path(directory: Path | None, prefix: str | None) -> Path:
    """A new file for a trace; makes the directory."""
    if directory is None:
        raise InvalidArgumentError(
            "profiler_config",
            None,
            "{'profiler': 'torch', 'torch_profiler_dir': a directory for the traces}",
        )
    if prefix is not None and not _PREFIX.fullmatch(check_str("profile_prefix", prefix)):
        raise InvalidArgumentError(
            "profile_prefix",
            prefix,
            "1 to 128 letters, digits, '.', '_' or '-', the first a letter or a digit",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            "torch_profiler_dir",
            str(directory),
            f"a directory that can be written: {error.strerror}",
        ) from None
    return directory / f"{prefix or 'forerun'}.{time.time_ns()}.trace.json"
