"""Caches that cannot be written: one line that names the variable, or a temporary directory."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from drafter_checkpoints import Random, make_eagle3, make_target
from gguf_files import llama_metadata, llama_tensors, write_gguf

from forerun.checkpoints import model_cache
from forerun.checkpoints.inspection import inspect
from forerun.checkpoints.loading import as_safetensors, resolve_model
from forerun.errors import CheckpointError, InvalidArgumentError


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "tiny.gguf", llama_metadata(), llama_tensors())


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_eagle3(make_target(), Random(3)).stored_as(file="head.pt")
    return made.write(tmp_path_factory.mktemp("pickled") / "drafter")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_TEMPORARY", {})
    return tmp_path / "cache"


def failing(cache: Path, number: int) -> Any:
    """Path.mkdir of a cache on a file system that fails."""
    mkdir = Path.mkdir

    def mkdir_elsewhere(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.is_relative_to(cache):
            raise OSError(number, os.strerror(number), str(path))
        mkdir(path, *args, **kwargs)

    return mkdir_elsewhere


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("kind", ["gguf", "pickled"])
def test_a_cache_that_may_only_be_read_is_done_without(
    number: int,
    kind: str,
    gguf: Path,
    pickled: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(cache, number))
    caplog.set_level(logging.WARNING, "forerun")

    def load() -> Path:
        if kind == "gguf":
            return resolve_model(gguf, progress=False)
        return as_safetensors(pickled)

    made = load()
    assert (made / "config.json").is_file()
    assert list(made.glob("*.safetensors"))
    assert not cache.exists()
    assert f"{cache} cannot be written: {os.strerror(number)}" in caplog.text
    assert "FORERUN_CACHE" in caplog.text
    assert load() == made


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_cache_is_named(
    number: int, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(cache, number))
    with pytest.raises(InvalidArgumentError, match=os.strerror(number)) as error:
        resolve_model(gguf, progress=False)
    assert (error.value.field, error.value.value) == ("FORERUN_CACHE", str(cache))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["a file", "in a file", "a link to nowhere", "a loop", "not empty"])
def test_a_cache_that_is_no_directory_is_named(
    how: str, pickled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how in ("a file", "in a file"):
        cache.write_text("")
    elif how == "a link to nowhere":
        cache.symlink_to(cache.parent / "nowhere" / "else")
    elif how == "a loop":
        cache.symlink_to(cache)
    else:
        half = as_safetensors(pickled)
        (half / "config.json").unlink()  # as if another program had made it
    if how == "in a file":
        monkeypatch.setenv("FORERUN_CACHE", str(cache / "inner"))
    with pytest.raises(InvalidArgumentError) as error:
        as_safetensors(pickled)
    assert error.value.field == "FORERUN_CACHE"
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_leaves_no_partial_file(gguf: Path, cache: Path) -> None:
    script = f"""
    import resource, signal
    from forerun.errors import InvalidArgumentError
    from forerun.checkpoints.loading import resolve_model
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        resolve_model({str(gguf)!r}, progress=False)
    except InvalidArgumentError as error:
        print(error.field)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "FORERUN_CACHE\n", done.stderr
    assert os.listdir(cache) == []
    assert resolve_model(gguf, progress=False).parent == cache


def test_a_temporary_model_is_deleted_with_its_process(pickled: Path, tmp_path: Path) -> None:
    script = f"""
    import os, tempfile
    from pathlib import Path
    from forerun.checkpoints import model_cache
    from forerun.checkpoints.loading import as_safetensors
    model_cache.cache_directory = lambda: None
    made = as_safetensors(Path({str(pickled)!r}))
    if os.fork() == 0:
        raise SystemExit
    os.wait()
    assert (made / "config.json").is_file()
    print(made)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert done.stdout.startswith(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_user_without_a_home_needs_none(
    pickled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("FORERUN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    caplog.set_level(logging.WARNING, "forerun")
    assert (as_safetensors(pickled) / "config.json").is_file()
    assert "no home directory" in caplog.text
    monkeypatch.setenv("FORERUN_CACHE", "~nobody-at-all/x")
    with pytest.raises(InvalidArgumentError, match="FORERUN_CACHE"):
        as_safetensors(pickled)


def test_the_error_names_both_directories_if_none_can_be_written(
    pickled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(Path("/"), errno.EROFS))
    with pytest.raises(InvalidArgumentError, match=r"Read-only.*; nor can") as error:
        as_safetensors(pickled)
    assert error.value.field == "FORERUN_CACHE"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, os.strerror(errno.EROFS), "/hub/models"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(),
        RuntimeError("two\nlines"),
    ],
)
def test_errors_of_the_hub_are_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="no such directory") as caught:
        resolve_model("org/name")
    assert "\n" not in str(caught.value)
    assert ("HF_HUB_CACHE" in str(caught.value)) == bool(getattr(error, "errno", None))


def test_unreadable_files_are_named(
    gguf: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for name, read, path in (
        ("pathlib.Path.iterdir", as_safetensors, pickled),
        ("pathlib.Path.open", as_safetensors, pickled),
        ("pathlib.Path.open", resolve_model, gguf),
        ("pathlib.Path.open", inspect, pickled),
        ("pathlib.Path.stat", inspect, gguf),
        ("pathlib.Path.stat", resolve_model, gguf),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, forbidden)
            with pytest.raises(CheckpointError, match=r"Permission denied|no file"):
                read(path)


def test_a_path_that_cannot_be_looked_up_is_named(tmp_path: Path) -> None:
    for model in (tmp_path / ("a" * 300), tmp_path / "loop" / "x"):
        if not (tmp_path / "loop").is_symlink():
            (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(CheckpointError, match="model: got"):
            resolve_model(model)
