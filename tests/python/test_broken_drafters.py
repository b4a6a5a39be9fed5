"""Broken drafters: each ends in one error that names what is wrong, before anything runs."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Checkpoint
from drafter_checkpoints import HIDDEN, VOCAB, Random, add_mtp, make_target
from drafter_rows import ROWS, Row

from forerun import LLM, CheckpointError, InvalidArgumentError

Edit = Callable[[Checkpoint], None]


@functools.cache
def target_directory(folder: Path) -> Path:
    return make_target().checkpoint.write(folder / "target")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return target_directory(tmp_path_factory.getbasetemp())


def drafter(name: str) -> Checkpoint:
    row = next(row for row in ROWS if row.name == name)
    assert row.make is not None
    return row.make(make_target(row.family), Random(3))


def configured(**fields: Any) -> Edit:
    return lambda made: made.config.update(fields)


def without(name: str) -> Edit:
    return lambda made: made.tensors.pop(name) is None


def shaped(name: str, *shape: int) -> Edit:
    return lambda made: made.tensors.update({name: np.zeros(shape)})


def holding(name: str, values: Any) -> Edit:
    return lambda made: made.tensors.update({name: np.asarray(values)})


def changed(name: str, index: int, value: int) -> Edit:
    def edit(made: Checkpoint) -> None:
        made.tensors[name] = made.tensors[name].copy()
        made.tensors[name][index] = value

    return edit


def nothing(made: Checkpoint) -> None:
    pass


@dataclass
class Broken:
    """A drafter of the table with one thing wrong, and what its error says."""

    row: str
    edit: Edit
    message: str
    config: dict[str, Any] = field(default_factory=dict)


E3, E1, MED, VMED = "eagle3 plain", "eagle plain", "medusa research", "medusa vllm bias"
MLP, LSTM, LM = "mlp_speculator untied", "mlp_speculator arctic sum_lstm", "draft_model"
IDS = "eagle_aux_hidden_state_layer_ids"
LAYER = "midlayer.self_attn"
MARKOV = {"markov_head.markov_w1.weight": (VOCAB, 4), "markov_head.markov_w2.weight": (VOCAB, 4)}


def other_hidden(made: Checkpoint) -> None:
    """A head of a target of twice the width."""
    made.config["target_hidden_size"] = 2 * HIDDEN
    made.tensors["fc.weight"] = np.zeros((HIDDEN, 6 * HIDDEN))


def into_dflash(made: Checkpoint) -> None:
    for name in ("hidden_norm", "input_layernorm"):
        made.tensors[f"layers.0.{name}.weight"] = np.zeros(HIDDEN)
    made.tensors["hidden_norm.weight"] = made.tensors.pop("layers.0.hidden_norm.weight")


def into_dspark(made: Checkpoint) -> None:
    into_dflash(made)
    made.tensors |= {name: np.zeros(shape) for name, shape in MARKOV.items()}


def in_sequences(made: Checkpoint) -> None:
    made.renamed(lambda name: re.sub(r"^(emb|proj|ln)\.(\d)\.", r"\1.\2.0.", name))


BROKEN: dict[str, Broken] = {
    # Shapes and missing tensors.
    "keys too wide": Broken(E3, shaped(f"{LAYER}.k_proj.weight", 24, 95), r"k_proj.* 96\]"),
    "values of other heads": Broken(E1, shaped("layers.0.self_attn.v_proj.weight", 12, 48), "v_pr"),
    "fc for part of a layer": Broken(E3, shaped("fc.weight", 48, 100), "multiple.* 48"),
    "fc of nothing": Broken(E3, shaped("fc.weight", 48, 0), "fc.weight: got 0 inputs"),
    "fc of another width": Broken(E3, shaped("fc.weight", 47, 144), "fc.weight"),
    "head of another width": Broken(E3, shaped("lm_head.weight", 40, 47), "lm_head.weight"),
    "no down_proj": Broken(E3, without("midlayer.mlp.down_proj.weight"), "down_proj"),
    "no final norm": Broken(E3, without("norm.weight"), "norm.weight"),
    "no fc": Broken(E1, without("fc.weight"), "a drafter of a known format"),
    "no map of a reduced vocabulary": Broken(E3, without("d2t"), "d2t.*40"),
    "a norm of nothing": Broken(E3, shaped("fc_norm.0.weight", HIDDEN), "fc_norm.1.weight"),
    "a norm that is missing": Broken(E3, configured(norm_before_fc=True), "input_norm.weight"),
    "norms that are missing": Broken(E3, configured(fc_norm=True), r"fc_norm\.0\.weight"),
    "a tensor too many": Broken(E3, shaped("surprise.weight", 2, 2), "surprise.weight"),
    "Medusa block not square": Broken(MED, shaped("1.0.linear.weight", 48, 47), "1.0.linear"),
    "Medusa head without output": Broken(MED, without("2.1.weight"), "2.1.weight"),
    "Medusa tensor too many": Broken(MED, shaped("9.9.weight", 2, 2), "numbers"),
    "Medusa block without a bias": Broken(MED, without("1.0.linear.bias"), "1.0.linear.bias"),
    "Medusa block with one of its own": Broken(
        "medusa research without bias", shaped("2.0.linear.bias", HIDDEN), "2.0.linear.bias"
    ),
    "Medusa biases that are missing": Broken(
        "medusa vllm no bias", configured(medusa_fc_bias=True), "blocks.0.layers.0.bias"
    ),
    "accelerator without a norm": Broken(MLP, without("ln.1.bias"), "ln.1.bias"),
    "accelerator's head of another size": Broken(MLP, shaped("head.1.weight", 64, 39), "head.1"),
    "accelerator's embedding of another": Broken(MLP, shaped("emb.2.weight", 63, 40), "emb.2"),
    "LSTM without a gate": Broken(LSTM, without("cell_proj.1.weight"), "cell_proj.1"),
    "draft model without a layer": Broken(LM, without("model.layers.1.mlp.up_proj.weight"), "up_p"),
    # What is made for another target.
    "another hidden size": Broken(E3, other_hidden, "hidden_size: the drafter is for 96.* 48"),
    "another vocabulary": Broken(E3, configured(vocab_size=65), "65|t2d"),
    "another vocabulary, eagle": Broken(E1, configured(vocab_size=65), "is for 65.* 64"),
    "draft model of another vocabulary": Broken(
        "draft_model tied",
        lambda made: (
            made.config.update(vocab_size=63)
            or made.tensors.update({"model.embed_tokens.weight": np.zeros((63, 32))})
        ),
        "vocab_size: the drafter is for 63, the target has 64",
    ),
    "Medusa heads of more tokens": Broken(
        "medusa vllm one lm_head", shaped("lm_head.weight", 65, HIDDEN), "is for 65.* 64"
    ),
    "layers the target lacks": Broken(E3, configured(**{IDS: [2, 3, 7]}), "numbers from 0 to 6"),
    "an auxiliary state too few": Broken(E3, configured(**{IDS: [2, 3]}), "3 ids"),
    "layers given that are not there": Broken(
        E3, nothing, "numbers from 0 to 6", {"aux_hidden_state_layer_ids": [0, 1, 9]}
    ),
    # Values of tensors.
    "map beyond the vocabulary": Broken(E3, changed("d2t", 39, 60), "d2t.* for draft token 39"),
    "map below zero": Broken(E3, changed("d2t", 0, -1), "d2t.* for draft token 0"),
    "map of floats": Broken(E3, holding("d2t", np.zeros(40)), "d2t"),
    "map of Medusa beyond": Broken("medusa vllm token_map", changed("token_map", 3, 64), "token_m"),
    # Values of the config.
    "hidden_size a word": Broken(E3, configured(hidden_size="48"), "hidden_size.*integer"),
    "heads that do not fit": Broken(E3, configured(num_attention_heads=5), "num_attention_heads"),
    "no heads": Broken(E3, configured(num_attention_heads=0), "num_attention_heads"),
    "key heads that do not fit": Broken(E3, configured(num_key_value_heads=3), "num_key_value"),
    "rope_theta below zero": Broken(E1, configured(rope_theta=-1.0), "rope_theta.*positive"),
    "epsilon a word": Broken(E3, configured(rms_norm_eps="small"), "rms_norm_eps"),
    "unknown activation": Broken(E3, configured(hidden_act="swish9"), "hidden_act"),
    "unknown scaling": Broken(E3, configured(rope_scaling={"rope_type": "x", "factor": 2}), "rope"),
    "flag no bool": Broken(E3, configured(norm_before_residual="yes"), "norm_before_residual"),
    "logit_scale zero": Broken(E3, configured(logit_scale=0), "logit_scale"),
    "draft vocabulary": Broken(E3, configured(draft_vocab_size=41), "draft_vocab_size.*40"),
    "number of layers": Broken(E3, configured(num_hidden_layers=2), "num_hidden_layers"),
    "more tokens than heads": Broken(MLP, configured(n_predict=5), "n_predict"),
    "more tokens than there are numbers": Broken(LSTM, configured(n_predict=2**40), "n_predict"),
    "proposed tokens a word": Broken(
        "eagle3 speculators plain",
        configured(speculators_config={"proposal_methods": [{"speculative_tokens": "4"}]}),
        'speculative_tokens: got "4"',
    ),
    # Formats that are not run, and contradictions.
    "P-EAGLE": Broken(E3, shaped("mask_hidden", 1, 1, 3 * HIDDEN), "P-EAGLE"),
    "DFlash": Broken(E1, into_dflash, "DFlash"),
    "DSpark": Broken(E1, into_dspark, "DSpark"),
    "Arctic sequences": Broken(MLP, in_sequences, "an Arctic speculator with sequences"),
    "PARD": Broken(LM, configured(pard_token=63), "PARD"),
    "EAGLE9": Broken(E3, configured(speculators_model_type="eagle9"), "eagle9"),
    "config of Medusa": Broken(E1, configured(model_type="medusa"), "eagle, as the tensors are"),
    "Medusa, they say": Broken(E3, nothing, "got medusa.* eagle3", {"method": "medusa"}),
    "a draft model, they say": Broken(E1, nothing, "expected eagle", {"method": "draft_model"}),
    "MTP, they say": Broken(LM, nothing, "method: got mtp", {"method": "mtp"}),
    "more tokens than Medusa has": Broken(
        MED, nothing, "at most 4", {"num_speculative_tokens": 5}
    ),
    "a deeper tree than Medusa has": Broken(
        MED, nothing, "draft_tree_depth.*at most 4", {"draft_tree_width": 2, "draft_tree_depth": 5}
    ),
    "a deeper hybrid than Medusa has": Broken(
        MED, nothing, "draft_tree_depth.*at most 4", {"method": "hybrid", "draft_tree_depth": 5}
    ),
    "an option of mtp": Broken(
        E3, nothing, "norm_target_state.*eagle3", {"norm_target_state": True}
    ),
    "an option of eagle3": Broken(VMED, nothing, "norm_output.*medusa", {"norm_output": True}),
}  # fmt: skip


def load(target: Path, model: Any, **config: Any) -> LLM:
    config = {"model": model, **config}
    return LLM(target, speculative_config=config, skip_tokenizer_init=True)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_drafter_ends_in_one_clear_error(case: str, target: Path, tmp_path: Path) -> None:
    broken = BROKEN[case]
    made = drafter(broken.row)
    broken.edit(made)
    directory = made.write(tmp_path)
    with pytest.raises(InvalidArgumentError, match=broken.message) as error:
        load(target, directory, **broken.config)
    assert error.value.field
    assert error.value.value
    assert error.value.expected
    assert str(error.value).count("\n") == 0
    if not broken.config:
        assert isinstance(error.value, CheckpointError)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def damage(directory: Path, how: str) -> None:
    weights = directory / "model.safetensors"
    pickled = directory / "pytorch_model.bin"
    file = weights if weights.exists() else pickled
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[:-1])
    elif how == "half":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no JSON":
        file.write_bytes(data[:8] + b"\xff" + data[9:])
    elif how == "twice":
        file.rename(directory / f"one{file.suffix}")
        (directory / f"other{file.suffix}").write_bytes(data)
    elif how == "no weights":
        file.unlink()
    elif how == "no config":
        (directory / "config.json").unlink()
    elif how == "config cut":
        (directory / "config.json").write_text('{"model_type": ')
    elif how == "config a list":
        (directory / "config.json").write_text("[]")
    elif how == "index":
        file.rename(directory / "shard.safetensors")
        entry = {"weight_map": {"lost.weight": "shard.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(entry))
    elif how == "evil":
        import torch

        torch.save(Evil(), file)
    elif how == "a byte of data":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("cut", "", "a whole safetensors file"),
        ("half", "", "a whole safetensors file"),
        ("empty", "", "a whole safetensors file"),
        ("no JSON", "", "a whole safetensors file"),
        ("twice", "", "each tensor in one file"),
        ("no weights", "", "a .safetensors, .bin or .pt file"),
        ("no config", "", "a directory with config.json"),
        ("config cut", "", "config.json: got .*expected JSON"),
        ("config a list", "", "a JSON object"),
        ("index", "", "lost.weight in shard.safetensors"),
        ("half", " bin", "torch >= 1.6"),
        ("empty", " bin", "torch >= 1.6"),
        ("twice", " bin", "each tensor in one file"),
        ("evil", " bin", "tensors and nothing else"),
        ("a byte of data", " bin", "a damaged file"),
    ],
)
def test_damaged_files_are_refused(
    how: str,
    kind: str,
    message: str,
    target: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    made = drafter("eagle plain")
    if kind:
        made.file = "pytorch_model.bin"
    damage(made.write(tmp_path / "drafter"), how)
    with pytest.raises(CheckpointError, match=message):
        load(target, tmp_path / "drafter")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.glob("cache/*"))


def test_a_drafter_that_is_not_there_is_named(target: Path, tmp_path: Path) -> None:
    field = r"speculative_config\.model: got "
    with pytest.raises(CheckpointError, match=field + ".*nowhere"):
        load(target, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=field + ".*a directory or a .gguf file"):
        load(target, tmp_path / "file")
    with pytest.raises(InvalidArgumentError, match="revision: got main"):
        load(target, target, revision="main")


HEADS = [row for row in ROWS if row.make is not None and row.method != "draft_model"]


@pytest.mark.parametrize("row", HEADS, ids=[row.name for row in HEADS])
def test_a_drafter_is_not_taken_for_a_model(row: Row, tmp_path: Path) -> None:
    target, made = row.write(tmp_path)
    message = r"a drafter: .*a language model; drafters are given as"
    for given in (None, {"model": target}):
        with pytest.raises(CheckpointError, match=message):
            LLM(made, speculative_config=given, skip_tokenizer_init=True)


def test_a_target_without_layers_for_mtp_is_told(target: Path) -> None:
    with pytest.raises(CheckpointError, match="method: got mtp; expected a target with layers"):
        load(target, None, method="deepseek_mtp")


@pytest.mark.parametrize(
    ("row", "edit", "message"),
    [
        ("mtp mimo", without("model.mtp_layers.0.token_layernorm.weight"), "token_layernorm"),
        ("mtp mimo", shaped("model.mtp_layers.0.input_proj.weight", 48, 95), "input_proj"),
        ("mtp qwen", without("mtp.layers.0.mlp.up_proj.weight"), "up_proj"),
    ],
)
def test_broken_layers_for_mtp_are_refused(
    row: str, edit: Edit, message: str, tmp_path: Path
) -> None:
    found = next(entry for entry in ROWS if entry.name == row)
    made = make_target(found.family)
    assert found.mtp is not None
    add_mtp(made, found.mtp, Random(1))
    edit(made.checkpoint)
    directory = made.checkpoint.write(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(directory, None, method="mtp")


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5", "ernie4_5_moe", "longcat_flash"]
)
def test_a_target_with_layers_for_mtp_that_cannot_run_is_named(family: str, tmp_path: Path) -> None:
    made = make_target()
    add_mtp(made, "deepseek", Random(1))
    made.checkpoint.config["model_type"] = family
    directory = made.checkpoint.write(tmp_path)
    with pytest.raises(CheckpointError, match=family):
        load(directory, None, method="mtp")
