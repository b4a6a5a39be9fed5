"""What the README and the page on embedding show works as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forerun.tools.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
TRACING = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
PAGES = [
    page.relative_to(ROOT)
    for folder in (".", "docs", "tests", "bench/heads/smollm2-135m-eagle3")
    for page in sorted((ROOT / folder).glob("*.md"))
]
MODEL = "models/SmolLM2-135M-Instruct"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


PYTHON = blocks(README, "python")
SHELL = [block for block in blocks(README + TRACING, "bash") if not block.startswith("make ")]


@pytest.fixture
def clone(smollm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like a clone after `make model`, and the current one."""
    (tmp_path / "models").mkdir()
    (tmp_path / MODEL).symlink_to(smollm_dir)
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(block: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    shown = capsys.readouterr().out.strip()
    assert shown
    for said in re.findall(r"print\(error\)\n +# (.*)", block):
        assert shown == said


def test_the_page_on_tracing_writes_a_trace(clone: Path) -> None:
    (block,) = blocks(TRACING, "python")
    exec(compile(block, "tracing.md", "exec"), {})
    (path,) = (clone / "traces").iterdir()
    assert re.fullmatch(r"run\.\d+\.trace\.json", path.name)


@pytest.mark.parametrize("block", SHELL, ids=range(len(SHELL)))
def test_shell_blocks_run(block: str, clone: Path) -> None:
    command = clone / "bin" / "forerun"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m forerun "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", block],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_every_snippet_uses_the_model_that_make_model_writes() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"MODEL ?= {MODEL}\n" in makefile
    for block in [*PYTHON, *SHELL]:
        assert MODEL in block
    assert "HuggingFaceTB" not in README


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:cpp|python|tests|tools|bench|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=str)
def test_each_page_begins_with_whom_it_is_for(page: Path) -> None:
    _, _, first, *_ = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert first.startswith("*For ")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", [README, EMBEDDING])
def test_commands_exist(page: str) -> None:
    for command in re.findall(r"(?:^|`)forerun ([a-z]+)", page, flags=re.MULTILINE):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"pip install '\.\[(\w+)\]'", README + EMBEDDING):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra
