"""Small random drafters and their targets, written in exactly the formats people publish.

Targets are nearly Markov chains - the next token is mostly a fixed successor of the last one - and
drafters know the successors, so that every drafter is sometimes right. Settings that are easily
mixed up (RoPE base, norm's epsilon, layer ids) differ between target and drafter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf
from typing import Any

import numpy as np
from checkpoint_files import Array, Checkpoint, Tensors

VOCAB, HIDDEN, INNER, NUM_LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 48, 80, 6, 4, 2, 12
CONTEXT = 0.42  # how much the target's layers add to the embedding


class Random:
    """Weights whose every element matters."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def matrix(self, outputs: int, inputs: int, scale: float = 1.0) -> Array:
        return self.rng.standard_normal((outputs, inputs)) * (scale / np.sqrt(inputs))

    def vector(self, size: int, scale: float = 0.2) -> Array:
        return self.rng.standard_normal(size) * scale

    def norm(self, size: int) -> Array:
        return 1.0 + self.vector(size)

    def layer(self, prefix: str, hidden: int, inputs: int | None = None, **extras: bool) -> Tensors:
        """A decoder layer without input norms. Rows mostly attend to rows that are like them."""
        inputs = inputs or hidden
        keys = self.matrix(KV_HEADS * HEAD_DIM, inputs, 1.5)
        values = self.matrix(KV_HEADS * HEAD_DIM, inputs, 1.2)
        per_head = np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS)
        rows = (per_head[:, None] * HEAD_DIM + np.arange(HEAD_DIM)).ravel()
        echo = values[rows, :hidden].T * (0.5 * inputs / hidden)
        tensors = {
            "self_attn.q_proj.weight": keys[rows] + self.matrix(HEADS * HEAD_DIM, inputs, 0.3),
            "self_attn.k_proj.weight": keys,
            "self_attn.v_proj.weight": values,
            "self_attn.o_proj.weight": echo + self.matrix(hidden, HEADS * HEAD_DIM, 0.3),
            "mlp.gate_proj.weight": self.matrix(INNER, hidden),
            "mlp.up_proj.weight": self.matrix(INNER, hidden),
            "mlp.down_proj.weight": self.matrix(hidden, INNER, 0.7),
            "post_attention_layernorm.weight": self.norm(hidden),
        }
        if extras.get("input_norm"):
            tensors["input_layernorm.weight"] = self.norm(hidden)
        if extras.get("qkv_bias"):
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                tensors[f"self_attn.{name}_proj.bias"] = self.vector(heads * HEAD_DIM)
        if extras.get("qk_norm"):
            tensors["self_attn.q_norm.weight"] = self.norm(HEAD_DIM) * 1.5
            tensors["self_attn.k_norm.weight"] = self.norm(HEAD_DIM)
        return {prefix + name: value for name, value in tensors.items()}


SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


@dataclass
class Target:
    """What the builders of drafters need to know of a target."""

    successor: Array
    embedding: Array
    lm_head: Array
    final_norm: Array
    checkpoint: Checkpoint

    def after(self, num_tokens: int) -> Array:
        """The tokens that most likely come `num_tokens` after each token."""
        tokens = np.arange(VOCAB)
        for _ in range(num_tokens):
            tokens = self.successor[tokens]
        return tokens


def make_target(family: str = "llama", seed: int = 1) -> Target:
    random = Random(seed)
    successor = random.rng.permutation(VOCAB)
    embedding = random.rng.standard_normal((VOCAB, HIDDEN))
    lm_head = random.matrix(VOCAB, HIDDEN, 0.8)
    lm_head[successor] += embedding * (2.0 / np.sqrt(HIDDEN))
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": lm_head}
    for index in range(NUM_LAYERS):
        layer = random.layer(
            f"model.layers.{index}.",
            HIDDEN,
            input_norm=True,
            qkv_bias=family.startswith("mimo"),
            qk_norm=family == "qwen3",
        )
        for name in layer:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                layer[name] = random.matrix(*layer[name].shape, 2.0 * CONTEXT)
        tensors |= layer
    final_norm = random.norm(HIDDEN)
    tensors["model.norm.weight"] = final_norm
    is_tied = family == "tied"
    if is_tied:
        del tensors["lm_head.weight"]
        lm_head = embedding
    architecture = {"qwen3": "Qwen3", "mimo": "MiMo", "mimo as qwen2": "MiMo"}.get(family, "Llama")
    config = {
        **SIZES,
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": "qwen2" if family == "mimo as qwen2" else architecture.lower(),
        "num_hidden_layers": NUM_LAYERS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": is_tied,
    }
    if family.startswith("mimo"):
        config |= {"attention_bias": True, "use_sliding_window": False, "sliding_window": 32768}
    return Target(successor, embedding, lm_head, final_norm, Checkpoint(config, tensors))


def add_mtp(target: Target, style: str, random: Random) -> None:
    """Adds a layer for multi-token prediction to the target's own checkpoint."""
    config = target.checkpoint.config
    is_mimo, is_qwen3 = (config["architectures"] == [f"{n}ForCausalLM"] for n in ("MiMo", "Qwen3"))
    layer = f"model.layers.{NUM_LAYERS}."
    names = {  # fusion, embedding's norm, hidden state's norm, final norm, decoder layer
        "mimo": [f"model.mtp_layers.0.{n}" for n in ("input_proj", "token_layernorm",
                 "hidden_layernorm", "final_layernorm", "")],
        "deepseek": [layer + n for n in ("eh_proj", "enorm", "hnorm", "shared_head.norm", "")],
        "qwen": ["mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm",
                 "mtp.layers.0."],
        "mimo_v2": [f"model.mtp.layers.0.{n}" for n in ("eh_proj", "enorm", "hnorm",
                    "final_layernorm", "")],
        "ernie": ["model.mtp_linear_proj.0", "model.mtp_emb_norm.0", "model.mtp_hidden_norm.0", "",
                  "model.mtp_block.0."],
    }[style.removesuffix("_copies")]  # fmt: skip
    fusion, embedding_norm, hidden_norm, final_norm, block = names
    parts = [np.eye(HIDDEN) * 1.2 + random.matrix(HIDDEN, HIDDEN, 0.5),
             random.matrix(HIDDEN, HIDDEN, 0.6)]  # fmt: skip
    tensors = random.layer(block, HIDDEN, input_norm=True, qkv_bias=is_mimo, qk_norm=is_qwen3)
    order = reversed(parts) if style == "mimo" else parts
    tensors[f"{fusion}.weight"] = np.concatenate(list(order), axis=1)
    tensors[f"{embedding_norm}.weight"] = random.norm(HIDDEN)
    tensors[f"{hidden_norm}.weight"] = random.norm(HIDDEN)
    if final_norm:
        tensors[f"{final_norm}.weight"] = random.norm(HIDDEN)
    if style == "deepseek_copies":
        tensors[f"{layer}embed_tokens.weight"] = target.embedding
        tensors[f"{layer}shared_head.head.weight"] = target.lm_head
    config["mtp_num_hidden_layers" if style == "qwen" else "num_nextn_predict_layers"] = 1
    target.checkpoint.tensors |= tensors


def make_eagle(target: Target, random: Random, **options: Any) -> Checkpoint:
    """EAGLE-1. The first layer has no input norm; there is no final norm and no head."""
    kv_heads = {} if options.get("has_kv_heads", True) else {"num_key_value_heads": HEADS}
    tensors = random.layer("layers.0.", HIDDEN, qkv_bias=options.get("qkv_bias", False))
    if kv_heads:
        for name in ("k_proj", "v_proj"):
            key = f"layers.0.self_attn.{name}.weight"
            tensors[key] = np.repeat(
                tensors[key].reshape(KV_HEADS, HEAD_DIM, -1), HEADS // KV_HEADS, axis=0
            ).reshape(HEADS * HEAD_DIM, -1) + random.matrix(HEADS * HEAD_DIM, HIDDEN, 0.2)
    own = 0.3 * np.diag(target.final_norm) + random.matrix(HIDDEN, HIDDEN, 0.1)
    tensors["fc.weight"] = np.concatenate([own, random.matrix(HIDDEN, HIDDEN, 0.2)], axis=1)
    if options.get("bias", False):
        tensors["fc.bias"] = random.vector(HIDDEN)
    if options.get("embedding"):
        tensors["embed_tokens.weight"] = target.embedding
    config = {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-2,
        "max_position_embeddings": 64,
    }
    if kv_heads:
        del config["num_key_value_heads"]
    if not options.get("bias", False):
        config["bias"] = False  # missing means that there is one
    if options.get("qkv_bias"):
        config["qkv_bias"] = True
    config |= options.get("config", {})
    if options.get("is_wrapped"):
        config = {"model_type": "eagle", "model": config, "architectures": ["EAGLEModel"]}
    return Checkpoint(config, tensors)


def make_eagle3(target: Target, random: Random, **options: Any) -> Checkpoint:
    """EAGLE-3 in the research format; `config` goes over its config.json."""
    hidden = options.get("hidden", HIDDEN)
    num_layers, num_aux = options.get("num_layers", 1), options.get("num_aux", 3)
    extras = {"qkv_bias": options.get("bias", False), "qk_norm": options.get("qk_norm", False)}
    tensors = random.layer("midlayer.", hidden, 2 * hidden, input_norm=True, **extras)
    tensors["midlayer.hidden_norm.weight"] = random.norm(hidden)
    for index in range(1, num_layers):
        tensors |= random.layer(f"layers.{index}.", hidden, input_norm=True, **extras)
    if options.get("has_fc", True):
        tensors["fc.weight"] = random.matrix(hidden, num_aux * HIDDEN, 0.3)
    if options.get("norm_before_fc"):
        tensors["input_norm.weight"] = random.norm(num_aux * HIDDEN)
    if options.get("fc_norm"):
        tensors |= {f"fc_norm.{i}.weight": random.norm(HIDDEN) for i in range(num_aux)}
    tensors["norm.weight"] = random.norm(hidden)
    kept = np.sort(random.rng.choice(VOCAB, options.get("draft_vocab", 40), replace=False))
    embedding, lm_head = target.embedding, target.lm_head
    if hidden != HIDDEN or options.get("embedding"):
        embedding = random.rng.standard_normal((VOCAB, hidden))
        lm_head = random.matrix(VOCAB, hidden, 0.5)
        lm_head[target.successor] += embedding * (2.0 / np.sqrt(hidden))
        tensors["embed_tokens.weight"] = embedding
    if options.get("has_head", True):
        tensors["lm_head.weight"] = lm_head[kept] + random.matrix(len(kept), hidden, 0.3)
    if len(kept) < VOCAB:
        tensors["d2t"] = (kept - np.arange(len(kept))).astype(np.int64)
        tensors["t2d"] = np.isin(np.arange(VOCAB), kept)
    config = {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": num_layers,
        "rms_norm_eps": 1e-3,
        "draft_vocab_size": len(kept),
        "max_position_embeddings": 64,
        **options.get("config", {}),
    }
    if extras["qkv_bias"]:
        config["attention_bias"] = True
    if hidden != HIDDEN:
        config["target_hidden_size"] = HIDDEN
    if len(kept) == VOCAB:
        del config["draft_vocab_size"]
    return Checkpoint(config, tensors)


def make_speculators(target: Target, random: Random, **options: Any) -> Checkpoint:
    """EAGLE-3 in the speculators format: shapes in transformer_layer_config."""
    outer = options.pop("outer", {})
    made = make_eagle3(target, random, **options)
    layer = {key: value for key, value in made.config.items() if key != "draft_vocab_size"}
    layer.pop("architectures")
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": 4,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    made.config = {
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": made.config.get("draft_vocab_size", VOCAB),
        "norm_before_fc": bool(options.get("norm_before_fc")),
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": None,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": "target", "architectures": ["LlamaForCausalLM"]},
        },
        **outer,
    }
    return made.renamed(lambda name: name.replace("midlayer.", "layers.0."))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.vectorize(erf)(x / np.sqrt(2.0)))


def make_mlp_speculator(target: Target, random: Random, **options: Any) -> Checkpoint:
    num, inner = options.get("n_predict", 3), options.get("inner", 40)
    is_tied = options.get("is_tied", False)
    tensors: Tensors = {}
    for index in range(1 if is_tied else num):
        embedding = random.rng.standard_normal((VOCAB, inner))
        state = gelu(embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True)))
        head = random.matrix(VOCAB, inner, 0.5)
        head[target.successor] += state * (2.5 / np.sqrt(inner))
        tensors[f"emb.{index}.weight"] = embedding
        tensors[f"head.{index}.weight"] = head
        tensors[f"ln.{index}.weight"] = random.norm(inner)
        tensors[f"ln.{index}.bias"] = random.vector(inner)
    for index in range(min(2, num) if is_tied else num):
        inputs = HIDDEN if index == 0 else inner
        tensors[f"proj.{index}.weight"] = random.matrix(inner, inputs, 0.6)
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "vocab_size": VOCAB,
        "emb_dim": HIDDEN,
        "inner_dim": 0 if inner == HIDDEN else inner,
        "n_predict": num,
        "top_k_tokens_per_head": [5, 4, 3, 2, 2][:num],
        "n_candidates": 5,
        "tie_weights": is_tied,
        "scale_input": options.get("scale_input", False),
        "torch_dtype": "float32",
    }
    if options.get("writes_all"):  # every head's tensors, though they are the same
        for name in [n for n in tensors if ".0." in n and not n.startswith("proj")]:
            tensors |= {name.replace(".0.", f".{i}."): tensors[name] for i in range(1, num)}
        tensors |= {f"proj.{i}.weight": tensors["proj.1.weight"] for i in range(2, num)}
    return Checkpoint(config, tensors)


def make_arctic_lstm(target: Target, random: Random, **options: Any) -> Checkpoint:
    inner, num = 40, options.get("n_predict", 3)
    tensors: Tensors = {}
    gates = ("forget", "input", "output", "cell")
    for gate in gates:
        if gate == "forget" or not options.get("ties_embeddings", True):
            tensors[f"{gate}_emb.0.weight"] = random.rng.standard_normal((VOCAB, inner))
        tensors[f"{gate}_proj.0.weight"] = random.matrix(inner, HIDDEN, 0.5)
        tensors[f"{gate}_proj.1.weight"] = random.matrix(inner, inner, 0.5)
    for name in ("cell", "state"):
        tensors[f"{name}_ln.0.weight"] = random.norm(inner)
        tensors[f"{name}_ln.0.bias"] = random.vector(inner)
    # What the embedding alone, through the gates, makes of the state.
    z = [tensors.get(f"{gate}_emb.0.weight", tensors["forget_emb.0.weight"]) for gate in gates]
    cell = gelu(z[3]) / (1.0 + np.exp(-z[1]))
    state = gelu(cell / np.sqrt((cell**2).mean(axis=1, keepdims=True))) / (1.0 + np.exp(-z[2]))
    head = random.matrix(VOCAB, inner, 0.5)
    head[target.successor] += state * (6.0 / np.sqrt(inner))
    tensors["head.0.weight"] = head
    config = {
        "architectures": ["ArcticLSTMSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "vocab_size": VOCAB,
        "input_hidden_dim": HIDDEN,
        "emb_dim": str(inner),
        "inner_dim": str(inner),
        "proj_dim": str(inner),
        "n_predict": num,
        "top_k_tokens_per_head": [1] * num,
        "n_candidates": 5,
        "tie_weights": True,
        "tie_lstm_embs": options.get("ties_embeddings", True),
        "scale_input": options.get("scale_input", True),
        "method": "sum_lstm",
        "torch_dtype": "float32",
    }
    return Checkpoint(config, tensors)


def make_medusa(target: Target, random: Random, **options: Any) -> Checkpoint:
    """Medusa under the names of its own code: {head}.{layer}.linear, {head}.{layers}.weight."""
    num_heads, num_layers = options.get("num_heads", 4), options.get("num_layers", 1)
    tensors: Tensors = {}
    for head in range(num_heads):
        for layer in range(num_layers):
            tensors[f"{head}.{layer}.linear.weight"] = random.matrix(HIDDEN, HIDDEN, 0.5)
            if options.get("bias", True):
                tensors[f"{head}.{layer}.linear.bias"] = random.vector(HIDDEN)
        rows = random.matrix(VOCAB, HIDDEN, 0.4)
        rows[target.after(head + 2)] += target.embedding * (2.0 / np.sqrt(HIDDEN))
        tensors[f"{head}.{num_layers}.weight"] = rows
    config = {
        "base_model_name_or_path": "target",
        "medusa_num_heads": num_heads,
        "medusa_num_layers": num_layers,
        "transformers_version": "4.34.1",
    }
    return Checkpoint(config, tensors)


def make_vllm_medusa(target: Target, random: Random, **options: Any) -> Checkpoint:
    """Medusa as vLLM stores it: blocks.{head}.layers.{layer}, lm_heads.{head} or one lm_head."""
    made = make_medusa(target, random, **options)
    num_heads = made.config["medusa_num_heads"]
    num_layers = made.config["medusa_num_layers"]
    kept = np.sort(random.rng.choice(VOCAB, options.get("draft_vocab", VOCAB), replace=False))
    tensors: Tensors = {}
    for name, values in made.tensors.items():
        head, layer, *rest = name.split(".")
        if rest[0] == "linear":
            tensors[f"blocks.{head}.layers.{layer}.{rest[1]}"] = values
        elif not options.get("shares_head"):
            tensors[f"lm_heads.{head}.weight"] = values[kept]
    if options.get("shares_head") == "own":
        tensors["lm_head.weight"] = target.lm_head[kept] + random.matrix(len(kept), HIDDEN, 0.3)
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "num_heads": num_heads,
        "num_hidden_layers": num_layers,
        "max_paths": 64,
        "topk": 10,
        "medusa_fc_bias": options.get("bias", True),
        "original_lm_head": bool(options.get("shares_head")),
        **options.get("config", {}),
    }
    if len(kept) < VOCAB:
        tensors["token_map"] = kept.astype(np.int64)
        config["truncated_vocab_size"] = len(kept)
    return Checkpoint(config, tensors)


def make_draft_model(target: Target, random: Random, **options: Any) -> Checkpoint:
    """A smaller Llama with the target's vocabulary."""
    hidden, num_layers = 32, 2
    embedding = random.rng.standard_normal((VOCAB, hidden))
    lm_head = random.matrix(VOCAB, hidden, 0.5)
    lm_head[target.successor] += embedding * (2.0 / np.sqrt(hidden))
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": random.norm(hidden)}
    for index in range(num_layers):
        tensors |= random.layer(f"model.layers.{index}.", hidden, input_norm=True)
    if not options.get("is_tied"):
        tensors["lm_head.weight"] = lm_head
    config = {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": num_layers,
        "rms_norm_eps": 1e-3,
        "rope_theta": 2000.0,
        "tie_word_embeddings": bool(options.get("is_tied")),
    }
    return Checkpoint(config, tensors)
