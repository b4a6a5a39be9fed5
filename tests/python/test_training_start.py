"""How a run begins: from another's weights (`forerun train --start`), or where it was stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_checkpoints import Variation, write_checkpoint  # noqa: E402
from training_runs import POSITIONS, small_options, trainer_of, write_data  # noqa: E402

from forerun.errors import CheckpointError, InvalidArgumentError  # noqa: E402
from forerun.training import TRAIN_METHODS, TrainOptions, train  # noqa: E402
from forerun.training.target import Target  # noqa: E402


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(write_checkpoint(Variation("llama", "llama"), tmp_path_factory.mktemp("target")))


@pytest.fixture
def options(target: Target, tmp_path: Path) -> Callable[..., TrainOptions]:
    data = write_data(tmp_path / "data.jsonl")

    def make(method: str, **changes: Any) -> TrainOptions:
        given = {"model": target.directory, "data": data, "out": tmp_path / "out"}
        return small_options(method, **{**given, **changes})

    return make


def test_a_run_starts_from_the_weights_of_another(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    first = trainer_of(options("eagle3"), target)
    first.train()
    file = tmp_path / "other.jsonl"
    file.write_text('{"prompt": [50], "answer": [52, 53]}\n' * 3)
    checkpoint = tmp_path / "out" / "checkpoint"
    weights = load_file(checkpoint / "model.safetensors")
    other = {"data": file, "out": tmp_path / "b"}
    for start in (tmp_path / "out", checkpoint):
        second = trainer_of(options("eagle3", num_positions=1, start=start, **other), target)
        assert (second.step, second.num_examples) == (0, 1)
        for name, tensor in second.head.tensors().items():
            assert torch.equal(tensor.to(weights[name].dtype), weights[name]), name


def test_a_head_of_the_targets_rows_takes_the_vocabulary_of_its_data(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    trainer_of(options("eagle3", share_head=True), target).train(3)
    file = tmp_path / "other.jsonl"
    file.write_text('{"prompt": [50], "answer": [101, 102, 103]}\n' * 3)
    other = {"data": file, "out": tmp_path / "b", "start": tmp_path / "out", "share_head": True}
    second = trainer_of(options("eagle3", **{**other, "draft_vocab_size": 9}), target)
    vocabulary = second.head.vocabulary
    assert vocabulary is not None
    assert len(vocabulary) == 9
    assert {101, 102, 103} <= set(vocabulary.tolist())
    fc = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")["fc.weight"]
    assert torch.equal(second.head.tensors()["fc.weight"].bfloat16(), fc)


@pytest.mark.parametrize(
    ("method", "first", "second", "problem"),
    [
        ("eagle3", {}, {"layer_ids": [0, 2]}, "eagle_aux_hidden_state_layer_ids"),
        ("eagle3", {}, {"norm_before_residual": True}, "norm_before_residual"),
        ("eagle3", {}, {"draft_vocab_size": 20}, "draft_vocab_size is 48"),
        ("eagle", {}, {"method": "eagle3"}, "d2t or token_map is missing"),
        ("eagle", {}, {"method": "mlp_speculator"}, "architectures is"),
        ("eagle3", {}, {"fc_norm": True}, "fc_norm"),
        ("eagle3", {}, {"draft_vocab_size": 7, "share_head": True}, "share_target_head"),
        ("eagle3", {"share_head": True}, {}, "lm_head.weight is missing"),
        ("medusa", {}, {"num_positions": POSITIONS - 1}, "num_heads"),
        ("medusa", {}, {"num_layers": 2}, "num_hidden_layers"),
        ("eagle", {}, {"intermediate_size": 20}, "intermediate_size"),
    ],
)
def test_a_start_of_another_shape_is_refused_by_name(
    method: str,
    first: dict[str, Any],
    second: dict[str, Any],
    problem: str,
    options: Callable[..., TrainOptions],
    target: Target,
    tmp_path: Path,
) -> None:
    trainer_of(options(method, **first), target).save()
    given = {"method": method, "out": tmp_path / "b", "start": tmp_path / "out", **second}
    changed = options(**given)
    with pytest.raises(InvalidArgumentError, match=re.escape(problem)) as error:
        trainer_of(changed, target)
    assert error.value.field == "start"


@pytest.mark.parametrize("method", TRAIN_METHODS)
def test_every_method_can_start_from_its_own(
    method: str, options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    first = trainer_of(options(method), target)
    first.train(2)
    second = trainer_of(options(method, out=tmp_path / "b", start=tmp_path / "out"), target)
    theirs, ours = first.head.tensors(), second.head.tensors()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.bfloat16(), theirs[name].bfloat16()), name


def test_a_start_of_a_larger_vocabulary_is_refused(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    trainer_of(options("eagle3"), target).save()
    file = tmp_path / "out" / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["d2t"][-1] += target.vocab_size
    save_file(tensors, file)
    with pytest.raises(InvalidArgumentError, match="below 131"):
        trainer_of(options("eagle3", out=tmp_path / "b", start=tmp_path / "out"), target)


@pytest.mark.parametrize("damage", ["weights", "config", "neither"])
def test_a_start_that_cannot_be_read_is_refused(
    damage: str, options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    trainer_of(options("eagle"), target).save()
    start = tmp_path / "out" / "checkpoint"
    if damage == "neither":
        with pytest.raises(InvalidArgumentError, match="start"):
            options("eagle", start=tmp_path)
        return
    (start / {"weights": "model.safetensors", "config": "config.json"}[damage]).write_text("{")
    with pytest.raises(CheckpointError, match="start"):
        trainer_of(options("eagle", out=tmp_path / "b", start=start), target)


@pytest.mark.parametrize("method", ["eagle3", "medusa", "draft_model"])
def test_a_resumed_run_ends_with_the_same_weights(
    method: str, options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    whole = trainer_of(options(method, steps=9, out=tmp_path / "whole"), target)
    whole.train()
    parts = options(method, steps=9, out=tmp_path / "parts")
    for count in (4, 1, None):
        trainer = trainer_of(parts, target)
        trainer.train(count)
    assert trainer.step == 9
    for name, tensor in whole.head.state_dict().items():
        assert torch.equal(tensor, trainer.head.state_dict()[name]), name
    assert whole.means == trainer.means


def test_another_runs_state_is_refused(
    options: Callable[..., TrainOptions], target: Target
) -> None:
    trainer_of(options("eagle3", steps=1), target).train()
    with pytest.raises(InvalidArgumentError, match="lr"):
        trainer_of(options("eagle3", lr=0.5), target)
    fresh = trainer_of(options("eagle3", lr=0.5, resume=False), target)
    assert fresh.step == 0


def test_a_state_that_cannot_be_read_is_refused(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    trainer_of(options("eagle3", steps=1), target).train()
    file = tmp_path / "out" / "state" / "state.pt"
    state = torch.load(file, weights_only=True)
    torch.save({n: value for n, value in state.items() if n != "vocabulary"}, file)
    with pytest.raises(InvalidArgumentError, match="without vocabulary"):
        trainer_of(options("eagle3", steps=2), target)
    del state["head"]["fc.weight"]
    torch.save(state, file)
    with pytest.raises(InvalidArgumentError, match=r"fc\.weight"):
        trainer_of(options("eagle3", steps=2), target)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidArgumentError, match=r"state\.pt"):
        trainer_of(options("eagle3", steps=2), target)


def test_the_log_is_of_one_run(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    log = tmp_path / "out" / "training_log.jsonl"
    trainer_of(options("eagle", steps=3), target).train()
    whole = log.read_text()
    with log.open("a") as file:
        file.write('{"step": 4, "loss": [1.0]}\n{"step": 5, "lo')
    trainer_of(options("eagle", steps=3), target)
    assert log.read_text() == whole
    trainer_of(options("eagle", steps=3, resume=False), target)
    assert log.read_text() == ""


def test_a_run_leaves_the_threads_arithmetic_as_it_was(
    options: Callable[..., TrainOptions],
) -> None:
    train(options("medusa", steps=2))
    assert float(torch.tensor([1e-40]) * 0.5) > 0, "denormal numbers are still flushed to zero"
