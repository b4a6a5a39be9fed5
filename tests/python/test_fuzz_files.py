"""Damaged files of every kind end in errors of Forerun's own: no crash, no hang, no other error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from file_fuzzer import fuzz


def test_some_damaged_files(tmp_path: Path) -> None:
    assert fuzz(0, 120, tmp_path / "findings") == [], (tmp_path / "findings").read_text()


@pytest.mark.long
def test_a_great_many_damaged_files(tmp_path: Path) -> None:
    cases = int(os.environ.get("FORERUN_FUZZ_CASES", "10000"))
    assert fuzz(1000, cases, tmp_path / "findings") == [], (tmp_path / "findings").read_text()
