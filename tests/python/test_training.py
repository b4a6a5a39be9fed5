"""`forerun train` on a tiny target: what is learned, what is written, and that it can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.nn.functional as F  # noqa: E402
from drafter_checkpoints import HIDDEN, VOCAB, make_target  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from forerun import LLM, InvalidArgumentError, SamplingParams  # noqa: E402
from forerun.cli import main  # noqa: E402
from forerun.inspection import inspect  # noqa: E402
from forerun.training.data import Example, draft_vocabulary, load_examples  # noqa: E402
from forerun.training.layers import Attention  # noqa: E402
from forerun.training.loop import Trainer, make_head  # noqa: E402
from forerun.training.options import TRAIN_METHODS, TrainOptions  # noqa: E402
from forerun.training.target import FeatureCache, Target, make_batch  # noqa: E402


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that mostly says the same token behind a token: something to learn."""
    return make_target("llama").checkpoint.write(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def data(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the target says greedily to 60 prompts."""
    llm = LLM(target, skip_tokenizer_init=True)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, VOCAB, rng.integers(3, 9)).tolist() for _ in range(60)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    with file.open("w") as out:
        for prompt, output in zip(prompts, llm.generate(prompts, params, use_tqdm=False),
                                  strict=True):  # fmt: skip
            answer = output.outputs[0].token_ids
            out.write(json.dumps({"prompt": prompt, "answer": list(answer)}) + "\n")
    return file


def options_of(target: Path, data: Path, out: Path, method: str, **changes: Any) -> TrainOptions:
    usual: dict[str, Any] = {
        "num_steps": 2,
        "batch_tokens": 400,
        "minutes": 1000.0,
        "lr": 1e-2,
        "draft_vocab_size": 40,
    }
    return TrainOptions(method=method, model=target, out=out, data=data, **(usual | changes))


def make_trainer(options: TrainOptions) -> Trainer:
    options.out.mkdir(parents=True, exist_ok=True)
    examples = load_examples(options)
    loaded = Target(options.model)
    head = make_head(loaded, options, [e for e in examples if not e.is_held_out])
    cache = FeatureCache(options.out / "features.f16", loaded, head.layer_ids)
    return Trainer(head, cache.load(examples), options)


@pytest.mark.parametrize("method", TRAIN_METHODS)
def test_a_head_learns_is_detected_and_drafts(
    method: str, target: Path, data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(options_of(target, data, tmp_path, method))
    before = trainer.head.guesses(make_batch(trainer.train[:20], 2))
    trainer.run(max_steps=40)
    after = trainer.head.guesses(make_batch(trainer.train[:20], 2))
    assert sum(g.loss.item() for g in after) < 0.8 * sum(g.loss.item() for g in before)

    checkpoint = tmp_path / "checkpoint"
    found = inspect(checkpoint)
    assert found.method == ("target" if method == "mtp" else method)
    served = checkpoint if method == "mtp" else target
    config = {"method": "mtp"} if method == "mtp" else {"model": str(checkpoint)}
    config["num_speculative_tokens"] = 2
    prompts = [json.loads(line)["prompt"] for line in data.read_text().splitlines()][:20]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    plain = LLM(served, skip_tokenizer_init=True, dtype="float32")
    llm = LLM(served, skip_tokenizer_init=True, dtype="float32",
              speculative_config={**config, "adaptive": False})  # fmt: skip
    expected = [o.outputs[0].token_ids for o in plain.generate(prompts, params, use_tqdm=False)]
    got = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
    assert got == expected
    spec = llm.metrics().spec_decode
    # In the engine as in training: of these very texts, the first guess is right as often.
    rate = spec.num_accepted_tokens_per_pos[0] / spec.num_drafts
    assert rate > 0.25
    assert abs(rate - after[0].accuracy) < 0.25


@pytest.mark.parametrize("method", ["eagle3", "mlp_speculator"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    method: str, target: Path, data: Path, tmp_path: Path
) -> None:
    def clock(trainer: Trainer) -> Trainer:
        # The learning rate follows the clock; here time stands still.
        trainer._learning_rate = lambda: 1e-3  # type: ignore[method-assign]
        return trainer

    whole = clock(make_trainer(options_of(target, data, tmp_path / "whole", method)))
    whole.run(max_steps=8)
    clock(make_trainer(options_of(target, data, tmp_path / "parts", method))).run(max_steps=5)
    rest = clock(make_trainer(options_of(target, data, tmp_path / "parts", method)))
    assert rest.step == 5
    rest.run(max_steps=3)
    first = load_file(tmp_path / "whole/checkpoint/model.safetensors")
    second = load_file(tmp_path / "parts/checkpoint/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_run_does_not_go_on_from_a_state(target: Path, data: Path, tmp_path: Path) -> None:
    make_trainer(options_of(target, data, tmp_path, "medusa")).run(max_steps=1)
    with pytest.raises(InvalidArgumentError, match="another run's state"):
        make_trainer(options_of(target, data, tmp_path, "medusa", seed=1))


def test_the_training_time_test_sees_what_drafting_sees(target: Path) -> None:
    """Attention at step i of row t against one softmax over exactly the rows it may see."""
    torch.manual_seed(0)
    attention = Attention(HIDDEN, Target(target))
    steps = [torch.randn(1, 7, HIDDEN) for _ in range(3)]
    out = [attention(x, i) for i, x in enumerate(steps)]
    heads, kv_heads, dim = attention.num_heads, attention.num_kv_heads, attention.head_dim

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        return attention._rotate(x.reshape(-1, 1, dim), position)[:, 0]

    for step, x in enumerate(steps):
        for t in range(7):
            seen = [(steps[0][0, s], s) for s in range(t + 1)]
            seen += [(steps[i][0, t], t + i) for i in range(1, step + 1)]
            query = turn(attention.q_proj(x[0, t]), t + step)
            keys = torch.stack([turn(attention.k_proj(row), p) for row, p in seen])
            values = torch.stack([attention.v_proj(row).reshape(kv_heads, dim) for row, _ in seen])
            keys = keys.repeat_interleave(heads // kv_heads, 1)
            values = values.repeat_interleave(heads // kv_heads, 1)
            weights = F.softmax((query * keys).sum(-1) * dim**-0.5, 0)
            expected = attention.o_proj((weights[..., None] * values).sum(0).reshape(-1))
            torch.testing.assert_close(out[step][0, t], expected, rtol=1e-4, atol=1e-5)


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(1, 45),
)
def test_the_draft_vocabulary_has_the_most_frequent_tokens(
    answers: list[list[int]], size: int
) -> None:
    examples = [Example((7, *answer), 1) for answer in answers]
    chosen = draft_vocabulary(examples, size, [3])
    assert chosen == sorted(set(chosen))
    assert len(chosen) == size
    assert 3 in chosen
    flat = [token for answer in answers for token in answer]
    least = min((flat.count(t) for t in chosen if t != 3), default=0)
    assert all(flat.count(t) <= least for t in range(41) if t not in chosen and size > 1)


def test_rows_and_states_stand_for_the_same_token(target: Path, data: Path, tmp_path: Path) -> None:
    """The row of t at step i guesses x[t + 2 + i], which follows the state of t + 1 + i."""
    trainer = make_trainer(options_of(target, data, tmp_path, "medusa"))
    batch = make_batch(trainer.train[:5], 2)
    for step in range(2):
        rows, states = batch.rows(step)
        assert torch.equal(states - rows, torch.full_like(rows, 1 + step))
        for state in states.tolist():
            index, position = divmod(state, batch.length)
            begin, end = batch.answers[index]
            assert begin <= position + 1 < end


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "ngram"), ("minutes", 0), ("num_steps", 0), ("data", "nowhere.jsonl"),
     ("model", "nowhere"), ("lr", -1.0), ("max_length", 3)],
)  # fmt: skip
def test_wrong_options_are_named(field: str, value: Any, target: Path, tmp_path: Path) -> None:
    given = {"method": "eagle3", "model": target, "out": tmp_path}
    given[field] = Path(value) if field in ("data", "model") else value
    with pytest.raises(InvalidArgumentError, match=field):
        TrainOptions(**given)


def test_the_command_trains(target: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["train", "eagle3", "--model", str(target), "--out", str(tmp_path / "head")]
    arguments += ["--data", str(data), "--minutes", "0.02", "--num-steps", "2", "--layer-ids"]
    arguments += ["0,2,3", "--draft-vocab-size", "20", "--no-share-head", "--batch-tokens", "300"]
    assert main(arguments) == 0
    assert "steps" in capsys.readouterr().out
    config = json.loads((tmp_path / "head/checkpoint/config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 2, 3]
    tensors = load_file(tmp_path / "head/checkpoint/model.safetensors")
    assert tensors["lm_head.weight"].shape == (20, HIDDEN)
    assert (tmp_path / "head/learning_curves.png").stat().st_size > 1000
