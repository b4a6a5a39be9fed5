"""How the Makefile decides about kernels in the package. Its Python only notes calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_GPU = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
DEFAULT = "AUTO" if HAS_GPU else "OFF"


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("pyproject.toml", ".venv/bin/python", ".venv/.build"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n')
        python.chmod(0o755)
        for name in ("bin/python", ".build"):  # in this order
            (folder / ".venv" / name).touch()

    def make(self, *words: str, **variables: str) -> list[str]:
        """The value of FORERUN_CUDA of each build of the package."""
        self.calls.unlink(missing_ok=True)
        without = {name: value for name, value in os.environ.items() if name != "CUDA"}
        subprocess.run(
            ["make", "--no-print-directory", ".venv/.package", *words],
            cwd=self.folder,
            env={**without, **variables},
            check=True,
            capture_output=True,
            text=True,
        )
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split("FORERUN_CUDA=")[1] for line in lines if "FORERUN_CUDA=" in line]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    return Project(tmp_path)


def test_a_given_value_is_that_of_the_package_until_another_is_given(project: Project) -> None:
    assert project.make() == [DEFAULT]
    assert project.make() == []
    assert project.make("CUDA=ON") == ["ON"]
    assert project.make("CUDA=ON") == []
    assert project.make() == []
    (project.folder / ".venv" / ".build").touch()  # as after a change of the sources
    assert project.make() == ["ON"]
    assert project.make(CUDA="OFF") == ["OFF"]
    assert project.make() == []
    assert project.make("CUDA=ON", CUDA="OFF") == ["ON"]


def test_the_environment_may_mean_something_else(project: Project) -> None:
    values = ("/usr/local/cuda", "12.8", "")
    assert [project.make(CUDA=value) for value in values] == [[DEFAULT], [], []]
    with pytest.raises(subprocess.CalledProcessError) as error:
        project.make("CUDA=maybe")
    assert "CUDA=maybe: valid are ON, OFF and AUTO" in error.value.stderr
