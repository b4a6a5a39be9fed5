"""The committed stub of the extension is the one that its build generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).resolve().parents[2] / "python" / "forerun" / "_core.pyi"


def test_the_committed_stub_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pybind11_stubgen", "forerun._core", "-o"]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120, capture_output=True)
    generated = (tmp_path / "forerun" / "_core.pyi").read_text()
    assert generated == STUB.read_text(), "run: python -m pybind11_stubgen forerun._core -o python"
