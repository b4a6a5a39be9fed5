"""Which files of a directory are the model: one rule for the engine, `inspect` and drafters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_pickle, write_safetensors
from drafter_checkpoints import Random, add_mtp, make_eagle, make_eagle3, make_target
from safetensors import safe_open

from forerun import LLM, CheckpointError, SamplingParams
from forerun.checkpoints.inspection import inspect
from forerun.checkpoints.inspection.tensors import read_tensors
from forerun.checkpoints.loading import as_safetensors, resolve_model
from forerun.tools.selftest import selftest

STRAY = {"tok_embeddings.weight": np.ones((4, 4), np.float32)}
LOST = {"weight_map": {"lost.weight": "lost.bin"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target().checkpoint.write(tmp_path_factory.mktemp("files") / "target")


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_eagle(make_target(), Random(3)).write(tmp_path_factory.mktemp("files") / "drafter")


def add_original(directory: Path) -> None:
    write_safetensors(directory / "consolidated.safetensors", STRAY, "float32")


def add_adapter(directory: Path) -> None:
    write_safetensors(directory / "adapter_model.safetensors", STRAY, "float32")
    (directory / "adapter_model.safetensors.index.json").write_text("[")


def add_pickles(directory: Path) -> None:
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(LOST))
    (directory / "pytorch_model-00001-of-00002.bin").write_bytes(b"anything")


def add_damaged(directory: Path) -> None:
    (directory / "optimizer.safetensors").write_bytes(b"cut")


def into_shards(directory: Path) -> None:
    """The model in two shards, the second with a tensor that the index does not list."""
    whole = directory / "model.safetensors"
    with safe_open(whole, "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    names = list(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        stray = STRAY if file == "b.safetensors" else {}
        data = {name: tensors[name] for name in part} | stray
        write_safetensors(directory / file, data, "float32")
    weight_map = {name: file for file, part in parts.items() for name in part}
    whole.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()
    add_original(directory)


ADDITIONS = [add_original, add_adapter, add_pickles, add_damaged, into_shards]


def generate(target: Path, drafter: Path | None, method: str | None = None) -> list[int]:
    config: dict[str, Any] | None = {"model": drafter, "method": method}
    if drafter is None and method is None:
        config = None
    llm = LLM(target, speculative_config=config, skip_tokenizer_init=True)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    [output] = llm.generate([[1, 2, 3]], params, use_tqdm=False)
    return list(output.outputs[0].token_ids)


@pytest.mark.parametrize("add", ADDITIONS)
def test_files_beside_the_weights_change_nothing(
    add: Callable[[Path], None], target: Path, drafter: Path, tmp_path: Path
) -> None:
    expected = generate(target, None)
    model = Path(shutil.copytree(target, tmp_path / "model"))
    head = Path(shutil.copytree(drafter, tmp_path / "head"))
    add(model)
    assert generate(model, drafter) == expected
    assert generate(model, model, "draft_model") == expected
    add(head)
    assert generate(model, head) == expected
    for seen, clean in ((model, target), (head, drafter)):
        ours, theirs = (str(inspect(path)).replace(str(path), "") for path in (seen, clean))
        assert ours.splitlines()[0] == theirs.splitlines()[0]
        assert read_tensors(seen).keys() == read_tensors(clean).keys()
    report = selftest(
        model, head, prompts=[[1, 2, 3]], max_tokens=4, dtype="float32", num_threads=1
    )
    assert report.trials[0].same_tokens


def test_layers_for_prediction_are_found_beside_other_files(tmp_path: Path) -> None:
    made = make_target("mimo")
    add_mtp(made, "mimo", Random(1))
    model = made.checkpoint.write(tmp_path / "model")
    expected = generate(model, None)
    into_shards(model)
    add_adapter(model)
    assert generate(model, None, "mtp") == expected


def test_a_shard_without_what_its_index_says_is_refused(target: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(target, tmp_path / "model"))
    into_shards(model)
    index = model / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "lost.weight": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lost\.weight"):
        LLM(model, skip_tokenizer_init=True)
    with pytest.raises(CheckpointError, match=r"lost\.weight"):
        inspect(model)


def make_trainer_files(directory: Path) -> None:
    """What trainers write beside the weights, as transformers, accelerate and torch do."""
    import torch

    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), directory / "optimizer.bin")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    torch.save(schedule.state_dict(), directory / "scheduler.bin")
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, directory / "rng.pt")
    torch.save(torch.optim.SGD, directory / "training_args.bin")
    torch.save(torch.zeros(3), directory / "scaler.pt")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "eagle_head.pt", "model.bin"])
def test_trainers_files_are_not_taken_for_weights(file: str, target: Path, tmp_path: Path) -> None:
    made = make_eagle3(make_target(), Random(3)).stored_as(file=file)
    head = made.write(tmp_path / "head")
    expected = read_tensors(head)
    make_trainer_files(head)
    assert read_tensors(head) == expected
    assert inspect(head).method == "eagle3"
    assert generate(target, head) == generate(target, None)
    [written] = as_safetensors(head).glob("*.safetensors")
    assert written.name == f"{file}.safetensors"


def test_a_directory_of_a_trainer_without_weights_is_refused(tmp_path: Path) -> None:
    make_trainer_files(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tensors"):
        inspect(tmp_path)


def test_a_model_may_be_pickled_in_one_file_or_in_shards(target: Path, tmp_path: Path) -> None:
    expected = generate(target, None)
    with safe_open(target / "model.safetensors", "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    names = list(tensors)
    for parts in ([names], [names[::2], names[1::2]]):
        model = tmp_path / f"{len(parts)}"
        model.mkdir()
        shutil.copy(target / "config.json", model)
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
        make_trainer_files(model)
        weight_map = {}
        for index, part in enumerate(parts):
            file = f"pytorch_model-{index}.bin" if len(parts) > 1 else "pytorch_model.bin"
            write_pickle(model / file, {name: tensors[name] for name in part}, "float32")
            weight_map |= dict.fromkeys(part, file)
        if len(parts) > 1:
            text = json.dumps({"weight_map": weight_map})
            (model / "pytorch_model.bin.index.json").write_text(text)
        assert generate(model, None) == expected
        assert generate(model, model, "draft_model") == expected
        template = resolve_model(model) / "additional_chat_templates" / "tool_use.jinja"
        assert template.read_text() == "tools"


def test_a_drafter_given_as_a_model_is_named(drafter: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a drafter: eagle .*speculative_config") as error:
        LLM(drafter)
    assert error.value.field == "model"
