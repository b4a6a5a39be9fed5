"""`forerun train` on tiny targets: what it computes, learns, writes, and goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from draft_oracle import DraftOracle  # noqa: E402
from model_reference import rope_frequencies  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_checkpoints import (  # noqa: E402
    LLAMA3_ROPE,
    SIZES,
    YARN_ROPE,
    Variation,
    write_checkpoint,
)
from training_runs import (  # noqa: E402
    DRAFT_VOCAB,
    POSITIONS,
    small_options,
    trainer_of,
    write_data,
)

from forerun.checkpoints.inspection import fit_problems, inspect  # noqa: E402
from forerun.errors import CheckpointError, InvalidArgumentError  # noqa: E402
from forerun.tools import cli  # noqa: E402
from forerun.training import TRAIN_METHODS, TrainOptions, layer_heads  # noqa: E402
from forerun.training.batch import make_batch  # noqa: E402
from forerun.training.data import Corpus, Example, draft_vocabulary  # noqa: E402
from forerun.training.factory import make_head  # noqa: E402
from forerun.training.losses import linear_cross_entropy  # noqa: E402
from forerun.training.target import StateStore, Target  # noqa: E402

VOCAB, HIDDEN, LAYERS = SIZES["vocab_size"], SIZES["hidden_size"], SIZES["num_hidden_layers"]
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}
INNER, HEAD_DIM = SIZES["intermediate_size"], SIZES["head_dim"]
Q_SIZE, KV_SIZE = SIZES["num_attention_heads"] * HEAD_DIM, SIZES["num_key_value_heads"] * HEAD_DIM


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(Variation("llama", "llama"), tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def target(directory: Path) -> Target:
    return Target(directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture
def options(directory: Path, data: Path, tmp_path: Path) -> Callable[..., TrainOptions]:
    def make(method: str, **changes: Any) -> TrainOptions:
        given = {"model": directory, "data": data, "out": tmp_path / "out"}
        return small_options(method, **{**given, **changes})

    return make


def read_lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def examples_of(options: TrainOptions) -> list[Example]:
    assert options.data is not None
    corpus = Corpus(options, options.data, VOCAB)
    return corpus.train(corpus.refresh())


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("eagle3", {}),
        ("eagle3", {"fc_norm": True, "norm_before_residual": True, "layer_ids": [0, 2]}),
        ("eagle", {}),
        ("mtp", {}),
    ],
)
def test_training_on_own_drafts_is_drafting_token_by_token(
    method: str,
    changes: dict[str, Any],
    options: Callable[..., TrainOptions],
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = options(method, **changes)
    torch.manual_seed(7)
    vocabulary = list(range(2, 2 + DRAFT_VOCAB)) if method == "eagle3" else None
    head = make_head(target, asked, vocabulary)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    seen: list[Any] = []

    def spy(read: Any, *rest: Any) -> Any:
        seen.append(read.detach().numpy())
        return linear_cross_entropy(read, *rest)

    monkeypatch.setattr(layer_heads, "linear_cross_entropy", spy)
    store = StateStore(target, list(head.layer_ids), None, head.needs_best)
    batch = make_batch(examples_of(asked)[:4], store, POSITIONS)
    head.predictions(batch)

    weights = {name: t.detach().double().numpy() for name, t in head.tensors().items()}
    weights["model.norm.weight"] = target.final_norm.double().numpy()
    config = {"rope_theta": target.rope_theta, **head.config()}
    oracle = DraftOracle(weights, config, target.embedding.double().numpy())
    for row in range(len(batch.position)):
        example, position = int(batch.example[row]), int(batch.position[row])
        states = batch.states[example].double().numpy()
        expected = oracle.draft(batch.tokens[example].tolist(), states, position, POSITIONS)
        for step in range(min(POSITIONS, int(batch.remaining[row]))):
            np.testing.assert_allclose(seen[step][row], expected[step], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("method", TRAIN_METHODS)
def test_a_small_corpus_is_learned(
    method: str, options: Callable[..., TrainOptions], target: Target
) -> None:
    trainer = trainer_of(options(method, steps=61), target)
    examples = examples_of(trainer.options)
    batch = make_batch(examples, trainer._store, trainer.head.num_positions)

    def loss() -> list[float]:
        with torch.no_grad():
            return [float(prediction.loss) for prediction in trainer.head.predictions(batch)]

    before = loss()
    trainer.train()
    after = loss()
    # Losses against a distribution cannot fall below its entropy.
    assert all(new < old for new, old in zip(after, before, strict=True))
    assert sum(after) < 0.97 * sum(before)
    assert trainer.step == 61
    log = read_lines(trainer.options.out / "training_log.jsonl")
    assert {1, 21, 41, 61} <= {entry["step"] for entry in log}
    assert log[-1]["held_out"]["chain_length"] >= 1
    assert (trainer.options.out / "learning_curves.png").stat().st_size > 1000


def layer_shapes(prefix: str, inputs: int) -> dict[str, list[int]]:
    return {
        f"{prefix}self_attn.q_proj.weight": [Q_SIZE, inputs],
        f"{prefix}self_attn.k_proj.weight": [KV_SIZE, inputs],
        f"{prefix}self_attn.v_proj.weight": [KV_SIZE, inputs],
        f"{prefix}self_attn.o_proj.weight": [HIDDEN, Q_SIZE],
        f"{prefix}mlp.gate_proj.weight": [INNER, HIDDEN],
        f"{prefix}mlp.up_proj.weight": [INNER, HIDDEN],
        f"{prefix}mlp.down_proj.weight": [HIDDEN, INNER],
        f"{prefix}post_attention_layernorm.weight": [HIDDEN],
    }


EAGLE3 = {
    "fc.weight": [HIDDEN, 3 * HIDDEN],
    "norm.weight": [HIDDEN],
    "lm_head.weight": [DRAFT_VOCAB, HIDDEN],
    "d2t": [DRAFT_VOCAB],
    "t2d": [VOCAB],
    "midlayer.input_layernorm.weight": [HIDDEN],
    "midlayer.hidden_norm.weight": [HIDDEN],
    **layer_shapes("midlayer.", 2 * HIDDEN),
}
MLP = {
    "speculator.emb.0.weight": [VOCAB, HIDDEN],
    "speculator.proj.0.weight": [HIDDEN, HIDDEN],
    "speculator.proj.1.weight": [HIDDEN, HIDDEN],
    "speculator.ln.0.weight": [HIDDEN],
    "speculator.ln.0.bias": [HIDDEN],
    "speculator.head.0.weight": [VOCAB, HIDDEN],
}
BLOCKS = {f"blocks.{i}.layers.0.weight": [HIDDEN, HIDDEN] for i in range(POSITIONS)}
MTP = {
    f"model.mtp_layers.0.{name}": shape
    for name, shape in {
        "input_proj.weight": [HIDDEN, 2 * HIDDEN],
        **{
            f"{norm}layernorm.weight": [HIDDEN]
            for norm in ("token_", "hidden_", "final_", "input_")
        },
        **layer_shapes("", HIDDEN),
        "self_attn.q_proj.bias": [Q_SIZE],
        "self_attn.k_proj.bias": [KV_SIZE],
        "self_attn.v_proj.bias": [KV_SIZE],
    }.items()
}


@pytest.mark.parametrize(
    ("method", "changes", "shapes"),
    [
        ("eagle3", {}, EAGLE3),
        (
            "eagle3",
            {"share_head": True, "fc_norm": True},
            {n: s for n, s in EAGLE3.items() if n != "lm_head.weight"}
            | {f"fc_norm.{i}.weight": [HIDDEN] for i in range(3)},
        ),
        ("eagle", {}, {"fc.weight": [HIDDEN, 2 * HIDDEN], **layer_shapes("layers.0.", HIDDEN)}),
        ("mlp_speculator", {}, MLP),
        (
            "medusa",
            {},
            BLOCKS | {f"lm_heads.{i}.weight": [VOCAB, HIDDEN] for i in range(POSITIONS)},
        ),
        ("medusa", {"freeze_head": True}, BLOCKS | {"lm_head.weight": [VOCAB, HIDDEN]}),
        (
            "medusa",
            {"draft_vocab_size": DRAFT_VOCAB, "share_head": True},
            BLOCKS | {"token_map": [DRAFT_VOCAB]},
        ),
    ],
)
def test_a_head_has_the_published_names_and_shapes(
    method: str,
    changes: dict[str, Any],
    shapes: dict[str, list[int]],
    options: Callable[..., TrainOptions],
    target: Target,
) -> None:
    trainer = trainer_of(options(method, steps=1, **changes), target)
    trainer.train()
    checkpoint = trainer.options.out / "checkpoint"
    tensors = load_file(checkpoint / "model.safetensors")
    assert {name: list(t.shape) for name, t in tensors.items()} == shapes
    for name, tensor in tensors.items():
        special = {"d2t": torch.int64, "t2d": torch.bool, "token_map": torch.int64}
        assert tensor.dtype == special.get(name, torch.bfloat16)
    found = inspect(checkpoint, method)
    assert found.method == method
    assert fit_problems(found, inspect(trainer.options.model)) == []


def test_a_loss_compares_the_frequent_tokens_and_others_by_chance(
    options: Callable[..., TrainOptions], target: Target
) -> None:
    trainer = trainer_of(
        options("mlp_speculator", freeze_head=True, loss_vocab_size=60, batch_tokens=40), target
    )
    first, second = (trainer._next_batch() for _ in range(2))
    seen = []
    for batch in (first, second, first):
        ids = trainer.head._compared(batch).tolist()
        assert len(set(ids)) == len(ids) == 60
        assert set(batch.tokens.flatten().tolist()) <= set(ids)
        seen.append(ids)
    frequent = draft_vocabulary(
        trainer._corpus.train(trainer.num_examples), 45, VOCAB, target.eos_token_ids
    )
    assert all(set(frequent) <= set(ids) for ids in seen)
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]
    with torch.no_grad():
        assert trainer.head._compared(first) is None
    before = sum(prediction.loss.item() for prediction in trainer.head.predictions(first))
    trainer.train()
    assert sum(prediction.loss.item() for prediction in trainer.head.predictions(first)) < before


def test_a_layer_for_multi_token_prediction_is_added_to_a_copy_and_trained_on(
    options: Callable[..., TrainOptions], target: Target, tmp_path: Path
) -> None:
    trainer = trainer_of(options("mtp", steps=2), target)
    trainer.train()
    checkpoint = trainer.options.out / "checkpoint"
    tensors = load_file(checkpoint / "model.safetensors")
    layer = {name: list(t.shape) for name, t in tensors.items() if "mtp_layers" in name}
    assert layer == MTP
    original = load_file(trainer.options.model / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in original.items())
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "mimo"

    # The copy says what the target says, and its layer is where the next run starts.
    copy = Target(checkpoint)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(copy.states(ids, [1]), target.states(ids, [1]))
    again = options("mtp", model=checkpoint, out=tmp_path / "again")
    start = trainer_of(again, copy).head.tensors()
    for name in MTP:
        assert torch.equal(start[name].to(torch.bfloat16), tensors[name])


def test_a_layer_for_multi_token_prediction_turns_as_its_target_does(
    options: Callable[..., TrainOptions], tmp_path: Path
) -> None:
    for name, rope in {"llama3": LLAMA3_ROPE, "linear": LINEAR_ROPE, "yarn": YARN_ROPE}.items():
        variation = Variation(name, "llama", {"rope_parameters": rope})
        directory = write_checkpoint(variation, tmp_path)
        target = Target(directory)
        if name == "yarn":
            with pytest.raises(CheckpointError, match="rope_scaling"):
                make_head(target, options("mtp", model=directory), None)
            continue
        head: Any = make_head(target, options("mtp", model=directory), None)
        expected = rope_frequencies(json.loads((directory / "config.json").read_text()), HEAD_DIM)
        assert head.layer.attention.frequencies.numpy() == pytest.approx(expected, rel=1e-6)


def test_a_draft_model_is_a_model(options: Callable[..., TrainOptions], target: Target) -> None:
    trainer = trainer_of(
        options("draft_model", steps=2, num_layers=2, hidden_size=24, intermediate_size=32), target
    )
    trainer.train()
    checkpoint = trainer.options.out / "checkpoint"
    assert inspect(checkpoint, "draft_model").method == "target"
    again = Target(checkpoint)
    assert (again.vocab_size, again.hidden_size, again.num_layers) == (VOCAB, 24, 2)
    batch = make_batch(examples_of(trainer.options), trainer._store, 1)
    states = again.states(batch.tokens[:, : batch.length], [])
    best = again.logits(states)[batch.example, batch.position + 1].argmax(-1)
    ours = trainer.head.predictions(batch)[0].tokens
    assert (best == ours).float().mean() > 0.8  # the file is rounded


def test_the_positions_trained_for_grow(
    options: Callable[..., TrainOptions], target: Target
) -> None:
    trainer = trainer_of(options("eagle3", growth=0.75), target)
    counts = []
    for _ in range(12):
        trainer.train(1)
        counts.append(len(trainer.means["accuracy"]))
    assert counts == [1] * 3 + [2] * 3 + [3] * 6
    acceptance = trainer.finish()
    assert acceptance is not None
    assert len(acceptance.accuracy) == POSITIONS


def test_methods_share_the_states_of_the_one_that_reads_most(
    target: Target, data: Path, tmp_path: Path, options: Callable[..., TrainOptions]
) -> None:
    corpus = Corpus(options("eagle3"), data, VOCAB)
    corpus.refresh()
    examples = corpus.train(4)
    most = StateStore(target, [0, 1], tmp_path, with_best=True)
    states = most.get(examples)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    final = StateStore(target, [], tmp_path)
    assert torch.equal(final.get(examples), states[..., -HIDDEN:])
    second = StateStore(target, [1], tmp_path, with_best=True)
    assert torch.equal(second.get(examples), states[..., HIDDEN:])
    assert second.best(examples) == most.best(examples)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files
    more = corpus.train(8)
    added = second.get(more)
    assert torch.equal(StateStore(target, [0, 1], tmp_path, True).get(more)[..., HIDDEN:], added)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError, match="states"):
        StateStore(target, [0, 2], tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_an_epoch_takes_in_what_the_data_has_gained(
    options: Callable[..., TrainOptions], target: Target, data: Path, tmp_path: Path
) -> None:
    growing = tmp_path / "growing.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    growing.write_text("".join(lines[:5]) + lines[5][:7])  # the last line is half written
    trainer = trainer_of(options("eagle", data=growing, held_out=0.0, epochs=2), target)
    assert trainer.num_examples == 5
    while trainer.epoch < 1:
        trainer.train(1)
        growing.write_text("".join(lines))
    assert trainer.num_examples == len(lines)
    assert sum(map(len, trainer._batches)) == len(lines)


def write_tokenizer(directory: Path, template: bool) -> None:
    """A token per letter; 1 begins a text, 2 ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [chr(ord("!") + i) for i in range(VOCAB - 41)]
    names = ["<unk>", "<s>", "</s>", *letters]
    names += [f"<unused{i}>" for i in range(VOCAB - len(names))]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if template:
        config["chat_template"] = (
            "{% for m in messages %}<s>{{ m['role'][0] }}:{{ m['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<s>a:{% endif %}"
        )
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def test_texts_and_messages_become_token_ids(
    options: Callable[..., TrainOptions], directory: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((directory / "config.json").read_text())
    write_tokenizer(model, template=True)
    file = tmp_path / "texts.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    entries = [{"prompt": "ab", "answer": "cd"}, {"prompt": [5], "answer": [6, 7]}]
    file.write_text("".join(json.dumps(e) + "\n" for e in [*entries, {"messages": turns}]))
    corpus = Corpus(options("eagle", model=model, data=file, held_out=0.0), file, VOCAB)
    first, second, third = corpus.train(corpus.refresh())

    def ids(text: str) -> tuple[int, ...]:
        return tuple(ord(letter) - ord("!") + 3 for letter in text)

    assert (first.tokens, first.num_prompt_tokens) == (ids("abcd"), 2)
    assert (second.tokens, second.num_prompt_tokens) == ((5, 6, 7), 1)
    prompt = (1, *ids("u:hi"), 2, 1, *ids("a:"))
    assert third.tokens == (*prompt, *ids("yes"), 2)
    assert third.num_prompt_tokens == len(prompt)


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"prompt": [1]}', '{"prompt": [1], "answer": ["a", "b"]}',
     '{"prompt": [1], "answer": [1, 5000]}', '{"messages": [{"role": "user", "content": "a"}]}'],
)  # fmt: skip
def test_a_bad_line_of_data_is_named(
    line: str, options: Callable[..., TrainOptions], tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": [1], "answer": [2, 3]}\n' + line + "\n")
    with pytest.raises(CheckpointError, match=r"bad\.jsonl:2"):
        Corpus(options("eagle", data=file), file, VOCAB).refresh()


@pytest.mark.parametrize(
    ("method", "changes", "name"),
    [
        ("eagle", {"draft_vocab_size": 5}, "draft_vocab_size"),
        ("medusa", {"loss_vocab_size": 50}, "loss_vocab_size"),
        ("mlp_speculator", {"loss_vocab_size": 50}, "loss_vocab_size"),
        ("draft_model", {"num_positions": 2}, "num_positions"),
        ("eagle3", {"lr": 0.0}, "lr"),
        ("eagle3", {"held_out": 1.0}, "held_out"),
        ("eagle3", {"share_head": True, "freeze_head": False}, "freeze_head"),
        ("eagle3", {"data": Path("/nowhere.jsonl")}, "data"),
        ("medusa", {"states": "states", "cache": False}, "states"),
        ("eagle3", {"growth": 1.0}, "growth"),
        ("eagle3", {"layer_ids": [0, LAYERS]}, "layer_ids"),
        ("eagle3", {"layer_ids": [0, -1]}, "layer_ids"),
        ("eagle3", {"layer_ids": []}, "layer_ids"),
        ("eagle3", {"layer_ids": [1, 0]}, "layer_ids"),
        ("eagle3", {"start": "/nowhere"}, "start"),
        ("draft_model", {"growth": 0.5}, "growth"),
        ("hydra", {}, "method"),
    ],
)
def test_wrong_options_are_refused_by_name(
    method: str, changes: dict[str, Any], name: str, options: Callable[..., TrainOptions]
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        options(method, **changes)
    assert error.value.field == name


@pytest.mark.parametrize("template", [True, False])
def test_the_command_trains_on_what_the_target_writes(
    template: bool, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((directory / name).read_bytes())
    write_tokenizer(model, template)
    out = tmp_path / "out"
    command = ["train", "eagle3", "--model", str(model), "--out", str(out), "--num-examples", "20"]
    command += ["--max-length", "40", "--steps", "2", "--draft-vocab-size", "40"]
    assert cli.main([*command, "--held-out", "0.3"]) == 0
    written = read_lines(out / "data.jsonl")
    assert len(written) == 20
    for entry in written:
        assert len(entry["prompt"]) + len(entry["answer"]) <= 40
        assert not template or entry["prompt"][-3:-1] == [1, ord("a") - ord("!") + 3]
    assert inspect(out / "checkpoint").method == "eagle3"
    assert "held-out" in capsys.readouterr().out
    assert set(json.loads((out / "acceptance.json").read_text())) >= {"accuracy", "chain_length"}
