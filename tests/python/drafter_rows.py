"""The table of drafters: method x format x option. Every row is one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from checkpoint_files import Checkpoint
from drafter_checkpoints import (
    HIDDEN,
    Random,
    Target,
    add_mtp,
    make_arctic_lstm,
    make_draft_model,
    make_eagle,
    make_eagle3,
    make_medusa,
    make_mlp_speculator,
    make_speculators,
    make_target,
    make_vllm_medusa,
)


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the table of formats: a drafter, its target, and what the user says of it."""

    name: str
    method: str
    make: Callable[[Target, Random], Checkpoint] | None = None  # none: inside the target's own
    family: str = "llama"
    mtp: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of SpeculativeOptions
    num_tokens: int = 4

    @property
    def is_pickle(self) -> bool:
        return self.name.split()[-1].endswith((".bin", ".pt"))

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Writes both; returns the target's directory and the drafter's, if it has one."""
        target = make_target(self.family)
        random = Random(sum(map(ord, self.name)))
        if self.mtp is not None:
            add_mtp(target, self.mtp, random)
        made = self.family if self.mtp is None else self.name
        directory = target.checkpoint.write(folder / f"target {made}")
        if self.make is None:
            return directory, None
        return directory, self.make(target, random).write(folder / self.name)


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GIVEN_IDS = "eagle_aux_hidden_state_layer_ids"
HEAD_AND_MAPS = ("lm_head.weight", "d2t", "t2d")


def eagle(name: str, **options: Any) -> Row:
    return Row(f"eagle {name}", "eagle", partial(make_eagle, **options))


def eagle3(name: str, config: dict[str, Any] | None = None, **options: Any) -> Row:
    said = options.pop("said", {})
    make = partial(make_eagle3, config=config or {}, **options)
    return Row(f"eagle3 {name}", "eagle3", make, options=said)


def speculators(name: str, config: dict[str, Any] | None = None, **options: Any) -> Row:
    make = partial(make_speculators, config=config or {}, **options)
    return Row(f"eagle3 speculators {name}", "eagle3", make)


def specforge(target: Target, random: Random, **config: Any) -> Checkpoint:
    made = make_eagle3(target, random, fc_norm=bool(config.get("fc_norm")), config=config)
    made.config["architectures"] = ["LlamaForCausalLMEagle3"]
    return made


def stored(row: Row, prefix: str = "", kept: tuple[str, ...] = (), **how: Any) -> Row:
    """The same drafter in other files, or under other names."""
    make = row.make
    assert make is not None

    def make_stored(target: Target, random: Random) -> Checkpoint:
        return make(target, random).prefixed(prefix, *kept).stored_as(**how)

    told = [prefix, *(str(value) for value in how.values())]
    name = " ".join([row.name, *filter(None, told)])
    return Row(name, row.method, make_stored, row.family, num_tokens=row.num_tokens)


def mlp(name: str, num_tokens: int = 3, **options: Any) -> Row:
    make = partial(make_mlp_speculator, **options)
    return Row(f"mlp_speculator {name}", "mlp_speculator", make, num_tokens=num_tokens)


def arctic(name: str, num_tokens: int = 3, **options: Any) -> Row:
    make = partial(make_arctic_lstm, **options)
    return Row(f"mlp_speculator arctic {name}", "mlp_speculator", make, num_tokens=num_tokens)


def medusa(name: str, **options: Any) -> Row:
    return Row(f"medusa {name}", "medusa", partial(make_medusa, **options))


def vllm_medusa(name: str, **options: Any) -> Row:
    return Row(f"medusa vllm {name}", "medusa", partial(make_vllm_medusa, **options))


def sliding(**more: Any) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"]
    return {"layer_types": kinds, "sliding_window": 7, "use_sliding_window": True, **more}


def another_target(target: Target, random: Random, family: str) -> Checkpoint:
    """A target as a draft model: it has the same successors."""
    return make_target(family).checkpoint


def wrong_number_of_heads(target: Target, random: Random) -> Checkpoint:
    made = make_medusa(target, random)
    made.config["medusa_num_heads"] = 2
    return made


def numbers_as_lists(target: Target, random: Random) -> Checkpoint:
    made = make_arctic_lstm(target, random)
    for key in ("emb_dim", "inner_dim", "proj_dim"):
        made.config[key] = [int(made.config[key])]
    return made


def default_epsilon(target: Target, random: Random) -> Checkpoint:
    made = make_speculators(target, random)
    for key in ("rms_norm_eps", "hidden_act", "tie_word_embeddings"):
        del made.config["transformer_layer_config"][key]
    return made


def with_frequencies(target: Target, random: Random) -> Checkpoint:
    made = make_eagle(target, random)
    made.tensors["layers.0.self_attn.rotary_emb.inv_freq"] = random.vector(6)
    return made


NULLS = dict.fromkeys(("head_dim", "rope_scaling", "sliding_window", "layer_types", GIVEN_IDS,
                       "eagle_config", "target_hidden_size"))  # fmt: skip

ROWS = [
    Row("draft_model", "draft_model", make_draft_model),
    Row("draft_model tied", "draft_model", partial(make_draft_model, is_tied=True)),
    Row("draft_model qwen3", "draft_model", partial(another_target, family="qwen3")),
    Row("draft_model the target itself", "draft_model", partial(another_target, family="llama")),
    eagle("plain"),
    Row("eagle of a tied target", "eagle", make_eagle, family="tied"),
    Row("eagle with frequencies", "eagle", with_frequencies),
    eagle("bias", bias=True),
    eagle("bias, own embedding", bias=True, embedding=True),
    eagle("rope_theta", config={"rope_theta": 3000.0}),
    eagle("rope_scaling", config={"rope_theta": 3000.0, "rope_scaling": LLAMA3_SCALING}),
    eagle("hidden_act", config={"hidden_act": "gelu"}),
    eagle("no kv heads in config", has_kv_heads=False),
    eagle("qkv_bias", qkv_bias=True),
    eagle("wrapped", is_wrapped=True, bias=True),
    stored(eagle("prefix"), "model."),
    stored(eagle("dtype"), dtype="float16"),
    stored(eagle("bin"), file="pytorch_model.bin"),
    eagle3("plain"),
    eagle3("rope_theta", {"rope_theta": 3000.0}),
    eagle3("rope_scaling", {"rope_theta": 3000.0, "rope_scaling": LLAMA3_SCALING}),
    eagle3("rope_parameters", {"rope_parameters": {**LLAMA3_SCALING, "rope_theta": 3000.0}}),
    eagle3("whole vocabulary", draft_vocab=64),
    eagle3("no lm_head", draft_vocab=64, has_head=False),
    eagle3("no lm_head, reduced vocabulary", has_head=False),
    eagle3("own embedding", embedding=True),
    eagle3("narrower", hidden=36),
    eagle3("attention_bias", bias=True),
    eagle3("norm_before_fc", {"norm_before_fc": True}, norm_before_fc=True),
    eagle3("eagle_config", {"eagle_config": {"norm_before_fc": True, GIVEN_IDS: [0, 2, 5]}},
           norm_before_fc=True),
    eagle3("fc_norm", {"fc_norm": True}, fc_norm=True),
    eagle3("norm_output", {"norm_output": True}),
    eagle3("norm_output overruled", {"norm_output": True}, said={"norm_output": False}),
    eagle3("norm_before_residual", {"norm_before_residual": True}),
    eagle3("norm_before_residual overruled", said={"norm_before_residual": True}),
    eagle3("two layers", num_layers=2),
    eagle3("q and k norms", {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
           qk_norm=True),
    eagle3("sliding window", sliding(), num_layers=2),
    eagle3("ids of entered layers", {GIVEN_IDS: [0, 4, 6]}),
    eagle3("ids of left layers", {GIVEN_IDS: [1, 2, 4]}),
    eagle3("ids overruled", {GIVEN_IDS: [1, 2, 4]}, said={"aux_hidden_state_layer_ids": [1, 2, 4]}),
    eagle3("five auxiliary states", {GIVEN_IDS: [0, 2, 3, 4, 6]}, num_aux=5),
    eagle3("one auxiliary state as wide as the drafter", {GIVEN_IDS: [4]}, num_aux=1),
    eagle3("no auxiliary states", {"eagle_config": {"use_aux_hidden_state": False}}, has_fc=False),
    eagle3("logit_scale", {"logit_scale": 0.4}),
    stored(eagle3("prefix"), "model.", HEAD_AND_MAPS),
    stored(eagle3("prefix of all but the head"), "model.", HEAD_AND_MAPS[:1]),
    eagle3("nulls", NULLS),
    Row("eagle3 no lm_head, tied target", "eagle3", partial(make_eagle3, has_head=False),
        family="tied"),
    Row("eagle3 of qwen3", "eagle3", make_eagle3, family="qwen3"),
    Row("eagle3 speculators default epsilon", "eagle3", default_epsilon),
    speculators("ids that begin with 1", outer={GIVEN_IDS: [1, 3, 5]}),
    stored(eagle3("prefix of a larger model"), "language_model.model."),
    stored(eagle3("files"), num_files=3),
    stored(eagle3("dtype"), dtype="bfloat16"),
    stored(eagle3("bin"), dtype="float16", file="pytorch_model.bin"),
    Row("eagle3 specforge", "eagle3", specforge),
    Row("eagle3 specforge 3.1", "eagle3", partial(specforge, fc_norm=True, norm_output=True)),
    speculators("plain"),
    speculators("rope_theta", {"rope_theta": 3000.0}, embedding=True),
    speculators("without norm_before_residual", outer={"norm_before_residual": False}),
    speculators("q and k norms", {"model_type": "qwen3"}, qk_norm=True),
    speculators("norms", norm_before_fc=True,
                outer={"norm_output": True, GIVEN_IDS: [2, 3, 5]}),
    mlp("untied"),
    mlp("inner as wide as the target", inner=HIDDEN),
    mlp("scale_input", scale_input=True),
    mlp("tied", is_tied=True, scale_input=True, n_predict=4, num_tokens=4),
    mlp("tied, all written", is_tied=True, writes_all=True, n_predict=4, num_tokens=4),
    mlp("fewer than n_predict", n_predict=5, num_tokens=2),
    stored(mlp("prefix"), "speculator."),
    arctic("sum_lstm"),
    arctic("unscaled input", scale_input=False, n_predict=4, num_tokens=4),
    arctic("own embeddings", ties_embeddings=False),
    Row("mlp_speculator arctic lists", "mlp_speculator", numbers_as_lists, num_tokens=3),
    medusa("research"),
    Row("medusa wrong number of heads", "medusa", wrong_number_of_heads),
    Row("medusa of a tied target", "medusa", partial(make_vllm_medusa, shares_head="target"),
        family="tied"),
    medusa("research without bias", bias=False),
    medusa("research, two layers", num_layers=2),
    stored(medusa("research"), file="medusa_lm_head.safetensors"),
    stored(medusa("research"), file="medusa_lm_head.pt"),
    vllm_medusa("bias", num_layers=2),
    vllm_medusa("no bias", bias=False),
    vllm_medusa("one lm_head", shares_head="own"),
    vllm_medusa("target's lm_head", shares_head="target"),
    vllm_medusa("token_map", draft_vocab=40),
    vllm_medusa("logit_scale", config={"logit_scale": 0.4}),
    stored(vllm_medusa("prefix"), "medusa_heads."),
    Row("mtp mimo", "mtp", family="mimo", mtp="mimo"),
    Row("mtp mimo called qwen2", "mtp", family="mimo as qwen2", mtp="mimo"),
    Row("mtp mimo, normed state", "mtp", family="mimo", mtp="mimo",
        options={"norm_target_state": True}),
    Row("mtp qwen, state before the norm", "mtp", family="qwen3", mtp="qwen",
        options={"norm_target_state": False}),
    Row("mtp deepseek", "mtp", mtp="deepseek"),
    Row("mtp deepseek with copies", "mtp", family="qwen3", mtp="deepseek_copies"),
    Row("mtp deepseek, tied target", "mtp", family="tied", mtp="deepseek"),
    Row("mtp qwen", "mtp", family="qwen3", mtp="qwen"),
    Row("mtp qwen names in a llama", "mtp", mtp="qwen"),
    Row("mtp mimo v2 names", "mtp", mtp="mimo_v2"),
    Row("mtp ernie names", "mtp", mtp="ernie"),
]  # fmt: skip
