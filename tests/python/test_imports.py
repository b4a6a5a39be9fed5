"""What importing the package, and using one of its names, imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import forerun


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_every_public_name_is_there_and_listed() -> None:
    for name in forerun.__all__:
        assert getattr(forerun, name) is getattr(forerun, name)
    assert set(forerun.__all__) <= set(dir(forerun))
    assert sorted(forerun._MODULES) == sorted(forerun.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'forerun' has no attribute 'LML'"):
        forerun.LML  # type: ignore[attr-defined]  # noqa: B018


def test_a_star_import_has_every_public_name() -> None:
    assert run("from forerun import *; print(LLM.__name__, selftest.__name__)") == "LLM selftest\n"


def test_an_import_waits_for_nothing_that_llm_does_not_need() -> None:
    others = ["asyncio", "argparse", "ssl", "numpy", "tokenizers", "tqdm", "forerun.server"]
    script = f"""
import sys, forerun
assert [name for name in sys.modules if name.startswith("forerun.")] == []
forerun.LLM, forerun.SamplingParams
print([name for name in {others} if name in sys.modules])
"""
    assert run(script) == "[]\n"
