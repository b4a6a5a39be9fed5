"""Where models come from: directories, GGUF files through the cache, the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from gguf_files import llama_metadata, llama_tensors, write_gguf

from forerun.checkpoints import model_cache
from forerun.checkpoints.loading import resolve_model
from forerun.errors import CheckpointError, InvalidArgumentError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors())


def test_a_directory_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_gguf_file_is_converted_once(tiny_gguf: Path, cache: Path) -> None:
    first = resolve_model(tiny_gguf, progress=False)
    assert first.parent == cache
    assert (first / "model.safetensors").is_file()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(str(tiny_gguf), progress=False) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert os.listdir(cache) == [first.name]


def test_a_changed_gguf_file_is_converted_anew(tiny_gguf: Path, cache: Path) -> None:
    first = resolve_model(tiny_gguf, progress=False)
    write_gguf(tiny_gguf, llama_metadata(), llama_tensors(seed=1))
    second = resolve_model(tiny_gguf, progress=False)
    assert first != second
    ours, theirs = (d / "model.safetensors" for d in (first, second))
    assert ours.read_bytes() != theirs.read_bytes()


def test_two_processes_may_convert_the_same_file(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forerun.checkpoints.convert

    convert = forerun.checkpoints.convert.write_converted

    def overtaken(gguf: Path, target: Path, **options: bool) -> Path:
        convert(gguf, target, **options)
        return convert(gguf, target, **options)

    monkeypatch.setattr(forerun.checkpoints.convert, "write_converted", overtaken)
    assert (resolve_model(tiny_gguf) / "config.json").is_file()


def test_the_cache_is_in_the_home_directory_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORERUN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert model_cache.cache_directory() == Path("/home/someone/.cache/forerun")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert model_cache.cache_directory() == Path("/var/cache/forerun")


def test_a_hub_model_is_found_offline_where_it_was_downloaded(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert resolve_model("org/name") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json and \*\.safetensors"):
        resolve_model("org/name")


def test_only_the_needed_files_of_the_revision_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, Any]] = []
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")

    def download(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/name", revision="v2") == tmp_path
    files = {"allow_patterns": ["*.json", "*.safetensors", "*.jinja"], "ignore_patterns": ["*/*"]}
    assert calls == [(("org/name",), {"revision": "v2", **files})]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/no-such-model", "no such directory.*HF_HUB_OFFLINE is set"),
        ("./org/name", "no such directory or file"),
        ("mistyped", "no such directory or file"),
        ("/no/such/directory", "no such directory or file"),
        ("./missing.gguf", "no such directory or file"),
        ("missing.gguf", "no such directory or file"),
        ("a/b/c", "no such directory or file"),
        ("https://example.org/model", "no such directory or file"),
    ],
)
def test_a_missing_model_is_a_checkpoint_error(model: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        resolve_model(model)
    assert error.value.field == "model"
    assert error.value.value.startswith(f"{model}: ")


def test_directories_and_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a directory with config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(CheckpointError, match=r"a directory or a \.gguf file"):
        resolve_model(tmp_path / "weights.bin")


@pytest.mark.parametrize("model", [None, 3, "", b"bytes"])
def test_a_model_of_the_wrong_type_is_refused(model: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="model"):
        resolve_model(model)


def test_a_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="revision"):
        resolve_model(tmp_path, revision="main")
