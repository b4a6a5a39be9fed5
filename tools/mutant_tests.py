"""Builds a changed source into a test binary and says how that fails, for surveys of changes."""

import os
import pathlib
import re
import signal
import subprocess

NOT_ENDED = "DOES NOT END"


class SurveyError(RuntimeError):
    """Tests could not be built or run, for a reason that says nothing about a change."""


def has_compile_error(printed: str, file: pathlib.Path) -> bool:
    """Whether the compiler refuses the file's text; "fatal" and "internal" errors are its own."""
    name = re.escape("/".join(file.parts[-2:]))
    return re.search(rf"(?:^|/){name}:\d+:(?:\d+:)? error: ", printed, re.MULTILINE) is not None


def builds(build: pathlib.Path, target: str, changed: pathlib.Path | None) -> bool:
    """Builds the target; False if the compiler refuses the changed file. Throws SurveyError."""
    ninja = subprocess.run(
        ["ninja", "-C", build, target],
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    if ninja.returncode == 0:
        return True
    printed = ninja.stdout + ninja.stderr
    if changed is not None and has_compile_error(printed, changed):
        return False
    raise SurveyError(f"{target} could not be built: {printed[-2000:]}")


def failure_in(binary: pathlib.Path, timeout_s: int) -> str:
    """The test of the binary that fails, or nothing. Throws SurveyError."""
    try:
        run = subprocess.run(
            [binary, "--gtest_brief=1", "--gtest_fail_fast"],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return NOT_ENDED
    if run.returncode in (-signal.SIGKILL, -signal.SIGTERM):
        raise SurveyError(f"{binary} was stopped by signal {-run.returncode}")
    if run.returncode == 0:
        return ""
    failed = re.search(r"\[  FAILED  \] ([^\s,]+)", run.stdout)
    return failed.group(1) if failed else f"exit code {run.returncode}"
