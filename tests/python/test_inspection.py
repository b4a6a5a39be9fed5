"""Checkpoints of every format, detected by their content; and broken ones, which are refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from forerun.checkpoints.inspection import fit_problems, inspect, read_tensors
from forerun.errors import CheckpointError
from forerun.tools import cli

VOCAB, DRAFT_VOCAB, HIDDEN, INNER, HEAD_DIM = 50, 20, 8, 12, 4
Shapes = dict[str, tuple[int, ...]]


@dataclass
class Checkpoint:
    """Shapes and config of a small checkpoint; `edit` it to break it."""

    method: str
    shapes: Shapes
    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path, prefix: str = "", file: str = "model.safetensors") -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        tensors = {
            (name if name in ("lm_head.weight", "d2t", "t2d") else prefix + name): torch.zeros(
                shape, dtype=dtype_of(name)
            )
            for name, shape in self.shapes.items()
        }
        if file.endswith(".safetensors"):
            save_file(tensors, directory / file)
        else:
            torch.save(tensors, directory / file)
        return directory


def dtype_of(name: str) -> torch.dtype:
    return {"d2t": torch.int64, "t2d": torch.bool, "token_map": torch.int64}.get(
        name, torch.bfloat16
    )


def layer(prefix: str, inputs: int = HIDDEN) -> Shapes:
    return {
        f"{prefix}.self_attn.q_proj.weight": (2 * HEAD_DIM, inputs),
        f"{prefix}.self_attn.k_proj.weight": (HEAD_DIM, inputs),
        f"{prefix}.self_attn.v_proj.weight": (HEAD_DIM, inputs),
        f"{prefix}.self_attn.o_proj.weight": (HIDDEN, 2 * HEAD_DIM),
        f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
    }


def norms(prefix: str, *names: str) -> Shapes:
    return {f"{prefix}.{name}.weight": (HIDDEN,) for name in names}


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN}
LLAMA |= {"vocab_size": VOCAB, "num_hidden_layers": 1, "num_attention_heads": 2}


def target() -> Checkpoint:
    shapes = {"embed_tokens.weight": (VOCAB, HIDDEN), "norm.weight": (HIDDEN,)}
    shapes |= layer("layers.0") | norms("layers.0", "input_layernorm")
    return Checkpoint("target", shapes, LLAMA, {"tied embeddings": True})


def eagle3(name: str = "midlayer") -> Checkpoint:
    shapes = layer(name, 2 * HIDDEN) | norms(name, "input_layernorm", "hidden_norm")
    shapes |= {"fc.weight": (HIDDEN, 3 * HIDDEN), "norm.weight": (HIDDEN,)}
    shapes |= {"lm_head.weight": (DRAFT_VOCAB, HIDDEN), "d2t": (DRAFT_VOCAB,), "t2d": (VOCAB,)}
    config = LLAMA | {"draft_vocab_size": DRAFT_VOCAB}
    options = {"format": "research", "auxiliary hidden states": 3, "norm_before_residual": False}
    return Checkpoint("eagle3", shapes, config, options | {"draft vocabulary": DRAFT_VOCAB})


def specforge() -> Checkpoint:
    made = eagle3()
    made.config = made.config | {"architectures": ["LlamaForCausalLMEagle3"], "norm_output": True}
    made.shapes |= {f"fc_norm.{i}.weight": (HIDDEN,) for i in range(3)}
    made.options |= {"format": "SGLang or SpecForge", "norm_output": True, "fc_norm": True}
    return made


def speculators() -> Checkpoint:
    made = eagle3("layers.0")
    made.config = {
        "speculators_model_type": "eagle3",
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "transformer_layer_config": LLAMA | {"rope_theta": 500000.0},
    }
    made.options |= {"format": "speculators", "norm_before_residual": True}
    made.options |= {"rope_theta": 500000.0, "layer ids": [1, 2, 3]}
    return made


def two_layers() -> Checkpoint:
    made = eagle3("layers.0")
    made.shapes |= layer("layers.1") | norms("layers.1", "input_layernorm")
    made.shapes |= {f"layers.{i}.self_attn.q_norm.weight": (HEAD_DIM,) for i in range(2)}
    made.shapes |= {"input_norm.weight": (3 * HIDDEN,), "embed_tokens.weight": (VOCAB, HIDDEN)}
    made.options |= {"layers": 2, "q/k norms": True, "norm_before_fc": True, "own embedding": True}
    return made


def peagle() -> Checkpoint:
    made = eagle3()
    made.method = "peagle"
    made.shapes["mask_hidden"] = (1, 1, 3 * HIDDEN)
    return made


def eagle() -> Checkpoint:
    shapes = {"fc.weight": (HIDDEN, 2 * HIDDEN), "fc.bias": (HIDDEN,)} | layer("layers.0")
    return Checkpoint("eagle", shapes, LLAMA, {"fc bias": True, "rope_theta": 10000.0})


def wrapped_eagle() -> Checkpoint:
    made = eagle()
    del made.shapes["fc.bias"]
    made.config = {"model_type": "eagle", "model": LLAMA}
    made.options = {"fc bias": False}
    return made


def mlp_speculator(tied: bool = False) -> Checkpoint:
    shapes: Shapes = {"proj.0.weight": (INNER, HIDDEN)}
    for i in range(1 if tied else 3):
        shapes |= {f"emb.{i}.weight": (VOCAB, INNER), f"head.{i}.weight": (VOCAB, INNER)}
        shapes |= {f"ln.{i}.weight": (INNER,), f"ln.{i}.bias": (INNER,)}
    shapes |= {f"proj.{i}.weight": (INNER, INNER) for i in range(1, 2 if tied else 3)}
    config = {"model_type": "mlp_speculator", "architectures": ["MLPSpeculatorPreTrainedModel"]}
    config |= {"vocab_size": VOCAB, "emb_dim": HIDDEN, "inner_dim": INNER, "n_predict": 3}
    config |= {"tie_weights": tied, "scale_input": tied}
    options = {"tokens": 3, "inner size": INNER, "tied weights": tied, "scaled input": tied}
    return Checkpoint("mlp_speculator", shapes, config, options)


def arctic_lstm() -> Checkpoint:
    gates = [f"{gate}_proj" for gate in ("forget", "input", "output", "cell")]
    shapes: Shapes = {f"{gate}.0.weight": (INNER, HIDDEN) for gate in gates}
    shapes |= {f"{gate}.1.weight": (INNER, INNER) for gate in gates}
    shapes |= {"forget_emb.0.weight": (VOCAB, INNER), "head.0.weight": (VOCAB, INNER)}
    config = {"architectures": ["ArcticLSTMSpeculatorPreTrainedModel"], "n_predict": 3}
    config |= {"vocab_size": VOCAB, "input_hidden_dim": HIDDEN, "tie_weights": True}
    options = {"variant": "Arctic LSTM", "tokens": 3}
    return Checkpoint("mlp_speculator", shapes, config, options)


def medusa(blocks: int = 1) -> Checkpoint:
    shapes: Shapes = {}
    for i in range(4):
        shapes |= {f"{i}.{j}.linear.weight": (HIDDEN, HIDDEN) for j in range(blocks)}
        shapes |= {f"{i}.{j}.linear.bias": (HIDDEN,) for j in range(blocks)}
        shapes[f"{i}.{blocks}.weight"] = (VOCAB, HIDDEN)
    options = {"heads": 4, "residual blocks of a head": blocks, "bias": True}
    # The published config says two heads and the weights have five: the weights are right.
    return Checkpoint("medusa", shapes, {"medusa_num_heads": 2}, options)


def vllm_medusa() -> Checkpoint:
    shapes: Shapes = {f"blocks.{i}.layers.0.weight": (HIDDEN, HIDDEN) for i in range(3)}
    shapes |= {"lm_head.weight": (DRAFT_VOCAB, HIDDEN), "token_map": (DRAFT_VOCAB,)}
    config = {"model_type": "medusa", "hidden_size": HIDDEN, "vocab_size": VOCAB}
    options = {"format": "vLLM", "heads": 3, "bias": False, "shared output head": True}
    return Checkpoint("medusa", shapes, config, options | {"draft vocabulary": DRAFT_VOCAB})


def dflash() -> Checkpoint:
    shapes = layer("layers.0") | norms("layers.0", "input_layernorm")
    shapes |= {"fc.weight": (HIDDEN, 2 * HIDDEN), "hidden_norm.weight": (HIDDEN,)}
    return Checkpoint("dflash", shapes | {"norm.weight": (HIDDEN,)}, LLAMA)


FORMATS: dict[str, Callable[[], Checkpoint]] = {
    "target": target,
    "eagle3 research": eagle3,
    "eagle3 SpecForge": specforge,
    "eagle3 speculators": speculators,
    "eagle3 two layers": two_layers,
    "P-EAGLE": peagle,
    "eagle": eagle,
    "eagle wrapped": wrapped_eagle,
    "mlp_speculator": mlp_speculator,
    "mlp_speculator tied": lambda: mlp_speculator(tied=True),
    "mlp_speculator LSTM": arctic_lstm,
    "medusa": medusa,
    "medusa two blocks": lambda: medusa(blocks=2),
    "medusa vLLM": vllm_medusa,
    "dflash": dflash,
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_detected_from_tensors(
    name: str, prefix: str, file: str, tmp_path: Path
) -> None:
    made = FORMATS[name]()
    found = inspect(made.write(tmp_path, prefix, file))
    assert found.method == made.method
    assert found.hidden_size == HIDDEN
    assert found.vocab_size == VOCAB
    assert found.options | made.options == found.options
    assert found.num_parameters == sum(torch.zeros(shape).numel() for shape in made.shapes.values())
    assert str(tmp_path) in str(found)


def test_the_name_of_the_directory_does_not_matter(tmp_path: Path) -> None:
    assert inspect(eagle().write(tmp_path / "EAGLE3-medusa-dflash")).method == "eagle"


@pytest.mark.parametrize(
    "name", ["layers.1.eh_proj.weight", "mtp.fc.weight", "mtp_layers.0.input_proj.weight"]
)
def test_a_target_with_layers_for_mtp_can_serve_as_mtp(name: str, tmp_path: Path) -> None:
    made = target()
    made.shapes[name] = (HIDDEN, 2 * HIDDEN)
    found = inspect(made.write(tmp_path), "mtp")
    assert found.method == "target"
    assert found.options["layers for multi-token prediction"] == name
    assert found.options["norm_target_state"] is True
    assert "norm_target_state: yes" in str(found)
    for fields in ({"model_type": "mimo"}, {"architectures": ["MiMoForCausalLM"]}):
        made.config = made.config | fields
        assert inspect(made.write(tmp_path), "mtp").options["norm_target_state"] is False
    with pytest.raises(CheckpointError, match="method: got mtp; expected target"):
        inspect(target().write(tmp_path / "without"), "mtp")


def test_layer_ids_leave_a_question_open(tmp_path: Path) -> None:
    made = eagle3()
    for ids, taken, answer in (([1, 2, 3], [2, 3, 4], "leaves"), ([2, 3, 4], [2, 3, 4], "enters")):
        made.config = {**made.config, "eagle_aux_hidden_state_layer_ids": ids}
        found = inspect(made.write(tmp_path / answer))
        assert found.options["layers before each state"] == taken
        [question] = found.open_questions
        assert question.endswith(f"what {answer} it")
    found = inspect(speculators().write(tmp_path / "speculators"))
    assert found.options["layers before each state"] == [1, 2, 3]
    assert not found.open_questions
    [question] = inspect(eagle3().write(tmp_path / "absent")).open_questions
    assert "not given" in question


def test_inspect_reports_a_shared_output_matrix(tmp_path: Path) -> None:
    made = eagle3()
    del made.shapes["lm_head.weight"]
    options = inspect(made.write(tmp_path / "reduced")).options
    assert options["draft vocabulary"] == f"{DRAFT_VOCAB}, with the target's rows"
    del made.shapes["d2t"], made.config["draft_vocab_size"]
    options = inspect(made.write(tmp_path / "whole")).options
    assert options["draft vocabulary"] == "the target's, with its head"


def test_the_target_that_a_drafter_names_is_reported(tmp_path: Path) -> None:
    made = medusa()
    assert inspect(made.write(tmp_path / "unnamed")).options["made for"] is None
    made.config = {**made.config, "base_model_name_or_path": "someone/target"}
    assert inspect(made.write(tmp_path / "medusa")).options["made for"] == "someone/target"
    made = speculators()
    made.config["speculators_config"] = {"verifier": {"name_or_path": "other/target"}}
    assert "made for: other/target" in str(inspect(made.write(tmp_path / "speculators")))


@pytest.mark.parametrize(
    ("make", "flag"), [(eagle3, "attention_bias"), (wrapped_eagle, "bias")], ids=["eagle3", "eagle"]
)
def test_a_bias_that_only_the_config_has_is_a_question(
    make: Callable[[], Checkpoint], flag: str, tmp_path: Path
) -> None:
    made = make()
    asked = inspect(made.write(tmp_path / "without")).open_questions
    made.config = {**made.config, flag: True}
    [question] = set(inspect(made.write(tmp_path / "with")).open_questions) - set(asked)
    assert question.startswith(f"{flag} is true")


def test_a_drafter_of_another_target_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = target()
    other.config = other.config | {"vocab_size": VOCAB + 1}
    other.shapes["embed_tokens.weight"] = (VOCAB + 1, HIDDEN)
    model, stranger = target().write(tmp_path / "a"), other.write(tmp_path / "b")
    drafter = eagle3().write(tmp_path / "drafter")
    assert fit_problems(inspect(drafter), inspect(model)) == []
    [problem] = fit_problems(inspect(drafter), inspect(stranger))
    assert "50" in problem
    assert "51" in problem
    assert "no language model" in fit_problems(inspect(model), inspect(drafter))[0]
    assert cli.main(["inspect", str(drafter), "--target", str(model)]) == 0
    assert f"fits {model}" in capsys.readouterr().out
    assert cli.main(["inspect", str(drafter), "--target", str(stranger)]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert cli.main(["inspect", str(drafter), "--method", "medusa"]) == 2
    assert "method: got medusa; expected eagle3" in capsys.readouterr().err


def shaped(name: str, *shape: int) -> Callable[[Checkpoint], None]:
    return lambda made: made.shapes.update({name: shape})


def without(name: str) -> Callable[[Checkpoint], None]:
    return lambda made: made.shapes.pop(name) and None


def configured(**fields: Any) -> Callable[[Checkpoint], None]:
    def edit(made: Checkpoint) -> None:
        made.config = {**made.config, **fields}

    return edit


BROKEN: Mapping[str, tuple[Callable[[], Checkpoint], Callable[[Checkpoint], None], str]] = {
    "k_proj too wide": (eagle3, shaped("midlayer.self_attn.k_proj.weight", 4, 9), "k_proj"),
    "v_proj of other heads": (eagle, shaped("layers.0.self_attn.v_proj.weight", 8, 8), "v_proj"),
    "no down_proj": (eagle3, without("midlayer.mlp.down_proj.weight"), "down_proj.*no such"),
    "no final norm": (eagle3, without("norm.weight"), "norm.weight.*no such tensor"),
    "hidden size of the config": (eagle3, configured(hidden_size=9), "hidden_size: got 9"),
    "hidden size no number": (eagle, configured(hidden_size="8"), "a positive integer"),
    "fc for part of a layer": (eagle3, shaped("fc.weight", HIDDEN, 20), "fc.weight.*multiple"),
    "fc of another width": (eagle3, shaped("fc.weight", 7, 24), "fc.weight: got shape"),
    "layer ids of other number": (
        eagle3,
        configured(eagle_aux_hidden_state_layer_ids=[1, 2]),
        "3 ids",
    ),
    "draft vocabulary": (eagle3, configured(draft_vocab_size=21), "draft_vocab_size: got 21"),
    "no d2t": (eagle3, without("d2t"), "d2t: got no such tensor"),
    "d2t too short": (eagle3, shaped("d2t", 19), "d2t: got shape"),
    "t2d of another target": (eagle3, shaped("t2d", 51), "t2d: got shape"),
    "layer ids no list": (eagle3, configured(eagle_aux_hidden_state_layer_ids=2), "3 ids"),
    "rope_theta a word": (eagle, configured(rope_theta="big"), "rope_theta.*positive number"),
    "eagle_config no object": (eagle3, configured(eagle_config=[1]), "eagle_config.*an object"),
    "architectures no list": (eagle, configured(architectures=3), "architectures.*a list"),
    "speculators type a list": (
        speculators,
        configured(speculators_model_type=["eagle3"]),
        "speculators_model_type: got",
    ),
    "flag no bool": (eagle3, configured(norm_output="no"), "norm_output.*true or false"),
    "missing layer": (
        two_layers,
        lambda made: made.shapes.update(layer("layers.3")),
        r"numbers \[0, 1, 3\]",
    ),
    "config claims another": (eagle, configured(model_type="medusa"), "got model_type medusa"),
    "unknown speculators type": (
        speculators,
        configured(speculators_model_type="eagle9"),
        "speculators_model_type: got eagle9",
    ),
    "heads of different size": (
        mlp_speculator,
        shaped("head.2.weight", VOCAB, 11),
        "head.2.weight: got shape",
    ),
    "more tokens than heads": (mlp_speculator, configured(n_predict=5), "n_predict: got 5"),
    "vocabulary of the config": (mlp_speculator, configured(vocab_size=51), "vocab_size: got 51"),
    "emb_dim": (mlp_speculator, configured(emb_dim=9), "emb_dim: got 9"),
    "Medusa without a head's output": (medusa, without("2.1.weight"), "2.1.weight: got no such"),
    "Medusa block not square": (medusa, shaped("1.0.linear.weight", 8, 9), "1.0.linear"),
    "nothing known": (
        target,
        lambda made: made.shapes.pop("norm.weight") and None,
        "a language model or a drafter",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_ends_in_one_clear_error(case: str, tmp_path: Path) -> None:
    make, break_, message = BROKEN[case]
    made = make()
    break_(made)
    with pytest.raises(CheckpointError, match=message):
        inspect(made.write(tmp_path))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def corrupt(directory: Path, how: str) -> None:
    weights = directory / "model.safetensors"
    data = weights.read_bytes()
    if how == "cut":
        weights.write_bytes(data[:-1])
    elif how == "cut header":
        weights.write_bytes(data[:20])
    elif how == "no json":
        weights.write_bytes(data[:8] + b"\xff" + data[9:])
    elif how == "offsets":
        weights.write_bytes(data.replace(b'"data_offsets":[0,', b'"data_offsets":[1,'))
    elif how == "twice":
        weights.rename(directory / "one.safetensors")
        (directory / "other.safetensors").write_bytes(data)
    elif how == "index":
        weights.rename(directory / "shard.safetensors")
        entry = {"weight_map": {"lost.weight": "shard.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(entry))
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (directory / "config.json").unlink()
    elif how == "config a list":
        (directory / "config.json").write_text("[]")
    elif how in ("evil pickle", "half a zip", "a tensor alone"):
        weights.unlink()
        file = directory / "pytorch_model.bin"
        torch.save(Evil() if how == "evil pickle" else torch.zeros(2), file)
        if how == "half a zip":
            file.write_bytes(file.read_bytes()[:100])
    elif how == "a bare pickle":
        weights.unlink()
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@pytest.mark.parametrize(
    ("how", "message"),
    {
        "cut": "model.safetensors: got .* a whole safetensors file",
        "cut header": "a whole safetensors file",
        "no json": "model.safetensors: got .* a whole safetensors file",
        "offsets": "model.safetensors: got .* a whole safetensors file",
        "twice": "each tensor in one file",
        "index": "lost.weight in shard.safetensors",
        "no weights": "no weights",
        "no config": "a readable file",
        "config a list": "a JSON object",
        "evil pickle": "tensors and nothing else",
        "half a zip": "torch >= 1.6",
        "a tensor alone": "a state dict",
        "a bare pickle": "torch >= 1.6",
    }.items(),
)
def test_damaged_files_are_refused(
    how: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = eagle().write(tmp_path)
    corrupt(directory, how)
    with pytest.raises(CheckpointError, match=message):
        inspect(directory)
    assert capsys.readouterr().out == ""


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="path: got"):
        inspect(tmp_path / "nowhere")


def test_tensors_of_both_kinds_of_file_read_alike(tmp_path: Path) -> None:
    made = specforge()
    one = read_tensors(made.write(tmp_path / "a"))
    other = read_tensors(made.write(tmp_path / "b", file="pytorch_model.bin"))
    assert {name: (t.dtype, t.shape) for name, t in one.items()} == {
        name: (t.dtype, t.shape) for name, t in other.items()
    }
    assert one["d2t"].dtype == "I64"
    assert one["t2d"].dtype == "BOOL"


def test_real_checkpoints(smollm_dir: Path, gemma_dir: Path) -> None:
    small, gemma = inspect(smollm_dir), inspect(gemma_dir)
    assert (small.method, small.hidden_size, small.vocab_size) == ("target", 576, 49152)
    assert (gemma.method, gemma.hidden_size, gemma.vocab_size) == ("target", 640, 262144)
    assert small.num_parameters == 134515008
    # As a draft model, by the tokens that both have.
    assert fit_problems(small, gemma) == []
