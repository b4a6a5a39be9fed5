"""Writes many texts at once with torch, for accelerators that the engine does not run on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from forerun.errors import InvalidArgumentError
from forerun.training.target import eos_token_ids, load_model
from forerun.training.writing import TurnEnd, WriteRequest, Written

# Texts of one allocation have room for as many tokens as a multiple of this.
_CAPACITY_STEP = 384
_MOST_SLOTS = 2048
_SHARE_OF_MEMORY = 0.5  # of what is free, for keys and values
_PREFILL_TOKENS = 32768  # with the padding, at once
_STRIDE = 16  # tokens between two looks at which texts have ended
_ATTENTION = "forerun_slots"


class TorchWriter:
    """A language model of transformers whose keys and values are in slots, one for each text.

    A step writes one token in every slot; slots of texts that have ended are filled with the next
    ones. On a GPU the step is a captured graph, so what it costs hardly depends on how small the
    model is. Texts differ in their last bits from what the engine would write.
    """

    def __init__(
        self,
        directory: Path,
        device: str,
        most_slots: int = _MOST_SLOTS,
    ) -> None:
        """Loads the model: in bfloat16, on a CPU in float32.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        from transformers import AttentionInterface

        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        AttentionInterface.register(_ATTENTION, _attend)
        dtype = torch.bfloat16 if self._is_cuda else torch.float32
        model = load_model(directory, dtype, attn_implementation=_ATTENTION)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._dtype = dtype
        # Rounded logits would tie, and the most probable token would not be the first of them.
        self._head: Tensor = model.get_output_embeddings().weight.float()
        config = model.config.get_text_config()
        config.forerun_writer = weakref.ref(self)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._num_layers: int = config.num_hidden_layers
        self._kv_heads: int = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None)
        self._head_dim: int = head_dim or config.hidden_size // config.num_attention_heads
        self._stop_token_ids = eos_token_ids(config)
        self._most_slots = most_slots
        self._slots: _Slots | None = None
        self._longest = 0  # of the texts for which the slots are
        # The slots of a prompt that is being read; None while tokens are written.
        self._prefilled: Tensor | None = None

    def write(self, requests: list[WriteRequest], seed: int, end: TurnEnd | None) -> list[Written]:
        """As Writer says; all draws follow from `seed`, and from how many slots there are."""
        if end is None:
            stop_token_ids = self._stop_token_ids
        else:
            stop_token_ids = [] if end.token_id is None else [end.token_id]
        torch.manual_seed(seed)
        by_capacity: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            need = len(request.prompt) + request.max_tokens
            by_capacity.setdefault(-(-need // _CAPACITY_STEP) * _CAPACITY_STEP, []).append(index)
        written: dict[int, Written] = {}
        for capacity, indices in sorted(by_capacity.items()):
            group = [requests[index] for index in indices]
            self._longest = max(len(r.prompt) + r.max_tokens for r in group)
            self._slots = self._make_slots(capacity, len(indices), stop_token_ids)
            written.update(self._write_all(self._slots, requests, indices))
            self._slots = None
        return [written[index] for index in range(len(requests))]

    def _make_slots(self, capacity: int, wanted: int, stop_token_ids: list[int]) -> _Slots:
        element = 2 if self._is_cuda else 4
        token_bytes = 2 * self._num_layers * self._kv_heads * self._head_dim * element
        most = self._most_slots
        if self._is_cuda:
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self._device)[0]
            most = min(most, int(free * _SHARE_OF_MEMORY) // (token_bytes * capacity))
        if most < 1:
            raise InvalidArgumentError("max_length", capacity, "texts for which there is memory")
        shape = (self._num_layers, min(most, wanted), self._kv_heads, capacity, self._head_dim)
        return _Slots(shape, self._dtype, self._head, stop_token_ids)

    @torch.no_grad()
    def _write_all(
        self, slots: _Slots, requests: list[WriteRequest], indices: list[int]
    ) -> Iterator[tuple[int, Written]]:
        waiting = indices[::-1]
        occupant = [-1] * slots.count
        step = self._capture(slots)
        while waiting or any(index >= 0 for index in occupant):
            free = [slot for slot, index in enumerate(occupant) if index < 0]
            for slot in free[: len(waiting)]:
                occupant[slot] = waiting.pop()
            fresh = [slot for slot in free if occupant[slot] >= 0]
            self._prefill(slots, [(slot, requests[occupant[slot]]) for slot in fresh])
            for _ in range(_STRIDE):
                step()
            for slot, text, is_finished in slots.take_ended(occupant):
                index = occupant[slot]
                occupant[slot] = -1
                yield index, Written(text[len(requests[index].prompt) :], is_finished)

    def _capture(self, slots: _Slots) -> Callable[[], None]:
        if not self._is_cuda:
            return lambda: self._step(slots)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # what is made once must not be captured
                self._step(slots)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(slots)
        replay: Callable[[], None] = graph.replay
        return replay

    def _step(self, slots: _Slots) -> None:
        hidden = self._run(slots.token[:, None], slots.position[:, None])[:, 0]
        slots.advance(self._sample(hidden, slots.temperature, slots.least_share))

    def _prefill(self, slots: _Slots, fresh: list[tuple[int, WriteRequest]]) -> None:
        """Reads prompts, those of like length together, and writes the first token after each."""
        fresh = sorted(fresh, key=lambda entry: len(entry[1].prompt))
        while fresh:
            count = 1
            while count < len(fresh):
                if (count + 1) * len(fresh[count][1].prompt) > _PREFILL_TOKENS:
                    break
                count += 1
            self._prefill_group(slots, fresh[:count])
            fresh = fresh[count:]

    def _prefill_group(self, slots: _Slots, group: list[tuple[int, WriteRequest]]) -> None:
        length = max(len(request.prompt) for _, request in group)
        prompts = np.zeros((len(group), length), np.int64)
        for row, (_, request) in enumerate(group):
            prompts[row, : len(request.prompt)] = request.prompt
        tokens = torch.from_numpy(prompts).to(self._device)
        indices = torch.tensor([slot for slot, _ in group], device=self._device)
        self._prefilled = indices
        positions = torch.arange(length, device=self._device).expand(len(group), -1)
        hidden = self._run(tokens, positions)
        self._prefilled = None
        slots.begin(indices, tokens, [request for _, request in group])
        last = hidden[torch.arange(len(group), device=self._device), slots.position[indices]]
        temperature, least = slots.temperature[indices], slots.least_share[indices]
        slots.advance(self._sample(last, temperature, least), indices)

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        base = self._model.base_model
        out = base(input_ids=tokens, position_ids=positions, use_cache=False)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _sample(self, hidden: Tensor, temperature: Tensor, least_share: Tensor) -> Tensor:
        """The most probable token, after noise where there is a temperature."""
        logits = hidden.float() @ self._head.T
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        temperature = temperature[:, None]
        floor = logits.amax(-1, keepdim=True) + temperature * least_share.log()[:, None]
        # Gumbel noise, less its sign; an exponential draw of 0 must not become infinite.
        noise = torch.empty_like(logits).exponential_().clamp_(min=1e-30).log_().mul_(temperature)
        return torch.where(logits < floor, float("-inf"), logits - noise).argmax(-1)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """What transformers calls for each layer: keeps keys and values, and reads the slots."""
        slots = self._slots
        assert slots is not None
        if (window := options.get("sliding_window")) is not None and window < self._longest:
            expected = f"texts of at most {window} tokens, the model's window, or device 'cpu'"
            raise InvalidArgumentError("max_length", f"texts of {self._longest}", expected)
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            expected = "cpu: this model's attention has caps or sinks"
            raise InvalidArgumentError("device", str(self._device), expected)
        keys, values = slots.keys[module.layer_idx], slots.values[module.layer_idx]
        if (indices := self._prefilled) is not None:
            keys[indices, :, : key.shape[2]] = key
            values[indices, :, : value.shape[2]] = value
            mixed = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        else:
            keys[slots.every, :, slots.position] = key[:, :, 0]
            values[slots.every, :, slots.position] = value[:, :, 0]
            # The queries that share a head of keys are taken for positions: none reads another.
            size, heads, _, width = query.shape
            grouped = query.view(size, self._kv_heads, heads // self._kv_heads, width)
            mask = (slots.positions <= slots.position[:, None])[:, None, None]
            mask = mask.expand(-1, -1, grouped.shape[2], -1)
            mixed = F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=mask, scale=scaling
            ).reshape(query.shape)
        return mixed.transpose(1, 2).contiguous(), None


def _attend(module: Any, *args: Any, **options: Any) -> tuple[Tensor, None]:
    """What transformers calls for every model of every writer."""
    writer: TorchWriter | None = module.config.forerun_writer()
    assert writer is not None
    return writer.attend(module, *args, **options)


class _Slots:
    """Texts that are being written, and their keys and values."""

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        dtype: torch.dtype,
        head: Tensor,
        stop_token_ids: list[int],
    ) -> None:
        """`shape`: layers, slots, heads, capacity, head size. All slots are empty."""
        device = head.device
        self.count, self.capacity = shape[1], shape[3]
        # Zeros: what comes after a text is read with a weight of zero.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.every = torch.arange(self.count, device=device)
        self.positions = torch.arange(self.capacity, device=device)
        self.text = torch.zeros(self.count, self.capacity, dtype=torch.long, device=device)
        self.token = torch.zeros(self.count, dtype=torch.long, device=device)
        # Of the token, which is the last known one and has no keys yet.
        self.position = torch.zeros(self.count, dtype=torch.long, device=device)
        self.last = torch.zeros(self.count, dtype=torch.long, device=device)
        self.is_active = torch.zeros(self.count, dtype=torch.bool, device=device)
        self.temperature = torch.zeros(self.count, device=device)
        self.least_share = torch.ones(self.count, device=device)
        self.is_stop = torch.zeros(head.shape[0], dtype=torch.bool, device=device)
        self.is_stop[torch.tensor(stop_token_ids, dtype=torch.long, device=device)] = True

    def begin(self, slots: Tensor, prompts: Tensor, requests: list[WriteRequest]) -> None:
        """Puts prompts, [len(slots), length] and padded at the end, into slots."""

        def column(values: list[Any]) -> Tensor:
            return torch.tensor(values, device=prompts.device)

        ends = column([len(r.prompt) - 1 for r in requests])
        self.text[slots, : prompts.shape[1]] = prompts
        self.position[slots] = ends
        self.last[slots] = ends + column([r.max_tokens for r in requests])
        self.is_active[slots] = True
        self.temperature[slots] = column([float(r.temperature) for r in requests])
        self.least_share[slots] = column([float(r.min_p) or 1e-30 for r in requests])

    def advance(self, drawn: Tensor, slots: Tensor | None = None) -> None:
        """Takes in the next tokens of all slots, or of some; ended texts stay as they are."""
        rows = self.every if slots is None else slots
        was_active = self.is_active[rows]
        here = self.position[rows] + was_active
        token = torch.where(was_active, drawn, self.token[rows])
        self.text[rows, here] = torch.where(was_active, token, self.text[rows, here])
        self.token[rows], self.position[rows] = token, here
        self.is_active[rows] = was_active & ~self.is_stop[token] & (here < self.last[rows])

    def take_ended(self, occupant: list[int]) -> list[tuple[int, list[int], bool]]:
        """Slot, text and whether a stop token ended it, of the occupied slots that have ended."""
        ended = (~self.is_active).cpu().numpy() & (np.array(occupant) >= 0)
        slots = np.flatnonzero(ended)
        where = torch.from_numpy(slots).to(self.text.device)
        texts, ends = self.text[where].cpu().numpy(), self.position[where].cpu().numpy()
        stopped = self.is_stop[self.token[where]].cpu().numpy()
        return [
            (int(slot), texts[row, : ends[row] + 1].tolist(), bool(stopped[row]))
            for row, slot in enumerate(slots)
        ]
