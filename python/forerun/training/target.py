"""The target in torch, and what drafters read of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.training.data import Example
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import read_json_object

_SHARD_BYTES = 1 << 30


class Target:
    """A frozen causal language model of transformers.

    It runs in float32 on a CPU and in bfloat16, as what is kept of it is rounded anyway, elsewhere.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        """Loads the model; any that transformers can.

        Raises:
            CheckpointError: transformers cannot.
        """
        is_cpu = torch.device(device).type == "cpu"
        model = load_model(directory, torch.float32 if is_cpu else torch.bfloat16)
        self._model = model.eval().requires_grad_(False).to(device)
        self.directory = directory
        self.device = torch.device(device)
        self.config = model.config.get_text_config()
        self.embedding: Tensor = model.get_input_embeddings().weight.data.float()
        self.lm_head: Tensor = model.get_output_embeddings().weight.data.float()
        self.final_norm: Tensor = model.base_model.norm.weight.data.float()
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.hidden_size: int = self.embedding.shape[1]
        self.vocab_size: int = self.lm_head.shape[0]
        self.num_layers: int = self.config.num_hidden_layers

    @property
    def rope_theta(self) -> float:
        """The base of the target's rotary embedding."""
        parameters = getattr(self.config, "rope_parameters", None) or {}
        parameters = parameters.get("full_attention", parameters)
        return float(parameters.get("rope_theta", 10000.0))

    def rotary_frequencies(self) -> Tensor:
        """The radians per position of the target's own rotary embedding, [head_dim / 2], scaled.

        Raises:
            CheckpointError: they depend on the text's length, or more than they is scaled.
        """
        rotary = self._model.base_model.rotary_emb
        kind = getattr(rotary, "rope_type", "default")
        if kind not in ("default", "linear", "llama3") or rotary.attention_scaling != 1.0:
            raise CheckpointError("rope_scaling", str(kind), "default, linear or llama3")
        frequencies: Tensor = rotary.inv_freq.float()
        return frequencies

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text."""
        return eos_token_ids(self.config)

    @torch.no_grad()
    def states(self, tokens: Tensor, layer_ids: list[int]) -> Tensor:
        """The residual stream before some layers and the final normed state, side by side.

        Args:
            tokens: [batch, length], padded at the end.
            layer_ids: k of the state after k layers, below the number of layers.

        Returns:
            [batch, length, (len(layer_ids) + 1) * hidden].
        """
        reads_states = bool(layer_ids)
        out = self._model.base_model(tokens, output_hidden_states=reads_states, use_cache=False)
        final = out.last_hidden_state
        return torch.cat([*(out.hidden_states[k] for k in layer_ids), final], -1)

    def logits(self, final: Tensor, rows: Tensor | None = None) -> Tensor:
        """The target's logits of final states, for all tokens or only those of `rows`."""
        logits = final @ (self.lm_head if rows is None else self.lm_head[rows]).T
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def eos_token_ids(config: Any) -> list[int]:
    """The ids that end a text, by a config of transformers."""
    value = config.eos_token_id
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def load_model(directory: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A causal language model of transformers.

    Args:
        directory: config.json and weights.
        dtype: of the weights.
        options: of transformers' from_pretrained.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    try:
        return _load(directory, {"dtype": dtype, **options})
    except Exception as error:  # of transformers, for any checkpoint
        pass_on_interrupt(error)
        raise CheckpointError("model", str(error), "a model for transformers") from error


def _load(directory: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    stored = read_json_object(directory / "config.json")
    if stored.get("model_type") != "mimo":
        return AutoModelForCausalLM.from_pretrained(directory, **options)
    # Which transformers does not know, and which is Qwen2 with layers that are not read here.
    config = Qwen2Config.from_dict({**stored, "model_type": "qwen2"})
    return Qwen2ForCausalLM.from_pretrained(directory, config=config, **options)


class StateStore:
    """The target's states of examples, in bfloat16: computed once and kept on disk.

    An example's states depend in their last bits on who shares its batch, so what a run computes
    first is what it uses ever after.
    """

    def __init__(
        self, target: Target, layer_ids: list[int], directory: Path | None, with_best: bool = False
    ) -> None:
        """With no directory, states are computed each time; `best` needs `with_best`."""
        self._target, self._layer_ids, self._directory = target, layer_ids, directory
        self._with_best = with_best
        self._best: dict[str, list[int]] = {}
        self._columns = torch.arange((len(layer_ids) + 1) * target.hidden_size)
        self._width = len(self._columns)
        self._offsets: dict[str, tuple[int, int]] = {}
        self._shard, self._end = 0, 0
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._open(directory)

    def _open(self, directory: Path) -> None:
        meta, index = directory / "meta.json", directory / "index.jsonl"
        try:
            stored = json.loads(meta.read_text()) if meta.is_file() else {}
        except ValueError:
            stored = {"meta.json": "damaged"}
        if not stored and not index.is_file():
            meta.write_text(json.dumps(self._about()))
        elif self._is_within(stored):
            self._adopt(stored)
        else:
            raise InvalidArgumentError(
                "states",
                f"{directory}, which keeps {stored}",
                "an empty directory, or one of the same model with all layers that this run reads",
            )
        if not index.is_file():
            return
        whole_lines = index.read_bytes().rpartition(b"\n")
        index.write_bytes(whole_lines[0] + whole_lines[1])
        for line in whole_lines[0].splitlines():
            key, shard, offset, rows, best = json.loads(line)
            self._best[key] = best
            self._offsets[key] = (shard, offset)
            self._shard, self._end = shard, offset + rows * self._width * 2

    def _about(self) -> dict[str, Any]:
        return {
            "model": str(self._target.directory.resolve()),
            "layer_ids": self._layer_ids,
            "width": self._width,
            "best": self._with_best,
        }

    def _is_within(self, stored: dict[str, Any]) -> bool:
        """Whether a store of other layers has all that this one needs."""
        return (
            stored.get("model") == self._about()["model"]
            and set(self._layer_ids) <= set(stored["layer_ids"])
            and (stored["best"] or not self._with_best)
        )

    def _adopt(self, stored: dict[str, Any]) -> None:
        """Keeps what the store keeps, and gives out the part that was asked for."""
        hidden = self._target.hidden_size
        ids: list[int] = stored["layer_ids"]
        parts = [ids.index(k) for k in self._layer_ids] + [len(ids)]
        self._columns = torch.cat([torch.arange(i * hidden, (i + 1) * hidden) for i in parts])
        self._layer_ids, self._width, self._with_best = ids, stored["width"], stored["best"]

    def get(self, examples: list[Example]) -> Tensor:
        """States [batch, longest, width] in float32, zeros after an example's end."""
        missing = [e for e in examples if e.key not in self._offsets]
        fresh = self._compute(missing) if missing else {}
        if self._directory is None:
            parts = [fresh[example.key].float() for example in examples]
            return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        states = torch.zeros(len(examples), max(map(len, examples)), len(self._columns))
        for row, example in enumerate(examples):
            found = fresh.get(example.key)
            found = self._read(example) if found is None else found
            states[row, : len(example)] = found[:, self._columns]
        return states.to(self._target.device)

    def best(self, examples: list[Example]) -> list[int]:
        """The target's most probable tokens after the answers' tokens but the last, in a row.

        Those of examples that `get` was asked for.
        """
        return [token for example in examples for token in self._best.get(example.key, [])]

    def _compute(self, examples: list[Example]) -> dict[str, Tensor]:
        tokens = torch.zeros(len(examples), max(map(len, examples)), dtype=torch.long)
        for row, example in enumerate(examples):
            tokens[row, : len(example)] = torch.tensor(example.tokens)
        states = self._target.states(tokens.to(self._target.device), self._layer_ids)
        rounded = states.to(torch.bfloat16)
        fresh = {e.key: rounded[row, : len(e)] for row, e in enumerate(examples)}
        for e in examples if self._with_best else []:
            answer = fresh[e.key][e.num_prompt_tokens : -1, -self._target.hidden_size :]
            logits = self._target.logits(answer.float())
            self._best[e.key] = logits.argmax(-1).tolist()
        if self._directory is not None:
            fresh = {key: states.cpu() for key, states in fresh.items()}
            self._write(self._directory, fresh)
        return fresh

    def _write(self, directory: Path, fresh: dict[str, Tensor]) -> None:
        offsets = []
        for key, states in fresh.items():
            if self._end >= _SHARD_BYTES:
                self._shard, self._end = self._shard + 1, 0
            file = directory / f"states-{self._shard:04}.bin"
            with file.open("r+b" if file.is_file() else "w+b") as shard:
                shard.seek(self._end)
                shard.write(states.contiguous().view(torch.int16).numpy().tobytes())
            self._offsets[key] = (self._shard, self._end)
            best = self._best.get(key, [])
            offsets.append([key, self._shard, self._end, len(states), best])
            self._end += states.numel() * 2
        # What the index names is in the shards: they were written first.
        with (directory / "index.jsonl").open("a") as index:
            index.write("".join(json.dumps(offset) + "\n" for offset in offsets))

    def _read(self, example: Example) -> Tensor:
        assert self._directory is not None
        shard, offset = self._offsets[example.key]
        shape = (len(example), self._width)
        file = self._directory / f"states-{shard:04}.bin"
        memory: Any = np.memmap(file, np.int16, "r", offset=offset, shape=shape)
        return torch.from_numpy(np.array(memory)).view(torch.bfloat16)
