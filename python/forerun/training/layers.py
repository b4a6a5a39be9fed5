"""A decoder layer that is trained on its own drafts: the training-time test of EAGLE-3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.batch import Batch
from forerun.training.heads import RmsNorm, linear
from forerun.training.target import Target

_FAR_BELOW = -1e9


class Attention(nn.Module):
    """Attention of drafts: a row reads the target-fed past up to its position, and its own draft.

    In decoding, the keys of positions 0..t come from the target's states, and later ones from
    the drafter's own predictions. `context` makes the former for whole sequences; `forward` goes
    one position along all drafts at once, and only rows that can be judged are computed.
    """

    def __init__(self, inputs: int, target: Target, bias: bool = False) -> None:
        """As many heads as the target has; `bias` is for queries, keys and values."""
        super().__init__()
        config = target.config
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None)
        self.head_dim: int = head_dim or target.hidden_size // self.num_heads
        kv_size = self.num_kv_heads * self.head_dim
        self.q_proj = linear(inputs, self.num_heads * self.head_dim, bias)
        self.k_proj = linear(inputs, kv_size, bias)
        self.v_proj = linear(inputs, kv_size, bias)
        self.o_proj = linear(self.num_heads * self.head_dim, target.hidden_size)
        half = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.frequencies = (1.0 / target.rope_theta**half).to(target.device)
        self._past: tuple[Tensor, Tensor, Tensor] | None = None
        self._own: list[tuple[Tensor, Tensor]] = []

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x is [positions, heads, head_dim]."""
        angles = (positions.float()[:, None] * self.frequencies)[:, None]
        cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def context(self, x: Tensor, batch: Batch) -> None:
        """Keys and values of the target-fed rows x, [batch, length, inputs]; forgets the last."""
        size, length, _ = x.shape
        positions = torch.arange(length, device=x.device).repeat(size)
        heads = (size * length, self.num_kv_heads, self.head_dim)
        key = self._rotate(self.k_proj(x).view(heads), positions)
        split = (size, length, self.num_kv_heads, self.head_dim)
        value = self.v_proj(x).view(split)
        row = torch.full((size * batch.most_rows,), -1, device=x.device)
        row[batch.slot] = batch.position
        future = torch.arange(length, device=x.device) > row.view(size, 1, 1, -1, 1)
        mask = torch.zeros(future.shape, device=x.device).masked_fill(future, _FAR_BELOW)
        # [batch, kv heads, length, head_dim]; the mask [batch, 1, 1, rows, length].
        self._past = key.view(split).transpose(1, 2), value.transpose(1, 2), mask
        self._own = []

    def _pad(self, x: Tensor, batch: Batch) -> Tensor:
        """[rows, heads, head_dim] -> [batch, heads, most_rows, head_dim]."""
        padded = x.new_zeros(batch.num_examples * batch.most_rows, *x.shape[1:])
        padded = padded.index_copy(0, batch.slot, x)
        return padded.view(batch.num_examples, batch.most_rows, *x.shape[1:]).transpose(1, 2)

    def forward(self, x: Tensor, batch: Batch, step: int) -> Tensor:
        """[rows, inputs] -> [rows, hidden]: position `step` of the drafts, called from 0 on."""
        assert self._past is not None
        past_key, past_value, mask = self._past
        positions = batch.position + step
        query = self.q_proj(x).view(-1, self.num_heads, self.head_dim)
        query = self._pad(self._rotate(query, positions), batch)
        if step > 0:
            kv = (-1, self.num_kv_heads, self.head_dim)
            key = self._rotate(self.k_proj(x).view(kv), positions)
            value = self.v_proj(x).view(kv)
            self._own.append((self._pad(key, batch)[:, :, None], self._pad(value, batch)))
        size, group = batch.num_examples, self.num_heads // self.num_kv_heads
        split = (size, self.num_kv_heads, group, batch.most_rows, self.head_dim)
        query = query.reshape(split) * self.head_dim**-0.5
        flat = (size, self.num_kv_heads, group * batch.most_rows, -1)
        scores = query.reshape(flat) @ past_key.transpose(-1, -2)
        scores = scores.view(*split[:4], -1) + mask
        if self._own:
            own = torch.stack([(query * key).sum(-1) for key, _ in self._own], -1)
            scores = torch.cat([scores, own], -1)
        weights = scores.softmax(-1)
        length = past_key.shape[2]
        mixed = (weights[..., :length].reshape(flat) @ past_value).view(split)
        for i, (_, value) in enumerate(self._own):
            mixed = mixed + weights[..., length + i, None] * value[:, :, None]
        rows = mixed.permute(0, 3, 1, 2, 4).reshape(size * batch.most_rows, -1)[batch.slot]
        result: Tensor = self.o_proj(rows)
        return result


class DraftLayer(nn.Module):
    """A Llama decoder layer without the norm before attention."""

    def __init__(self, inputs: int, target: Target, inner: int | None, bias: bool = False) -> None:
        """Attention reads `inputs` values; `inner` is the target's intermediate size by default."""
        super().__init__()
        hidden = target.hidden_size
        self.inner: int = inner or target.config.intermediate_size
        self.attention = Attention(inputs, target, bias)
        self.norm = RmsNorm(hidden, target.config.rms_norm_eps)
        self.gate, self.up = linear(hidden, self.inner), linear(hidden, self.inner)
        self.down = linear(self.inner, hidden)

    def forward(self, residual: Tensor, attention_input: Tensor, batch: Batch, step: int) -> Tensor:
        """The residual stream after the layer, [rows, hidden]."""
        middle = residual + self.attention(attention_input, batch, step)
        normed = self.norm(middle)
        result: Tensor = middle + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return result

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Llama's names."""
        tensors = {
            f"{prefix}mlp.gate_proj.weight": self.gate.weight,
            f"{prefix}mlp.up_proj.weight": self.up.weight,
            f"{prefix}mlp.down_proj.weight": self.down.weight,
            f"{prefix}post_attention_layernorm.weight": self.norm.weight,
        }
        for name, value in self.attention.named_parameters():
            tensors[f"{prefix}self_attn.{name}"] = value
        return tensors
