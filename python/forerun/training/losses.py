"""Cross-entropy over a vocabulary without keeping logits: they are made and used in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of a chunk. Accelerators are not filled by few: there it is a gigabyte of logits.
_CHUNK = 512
_USUAL_LOGITS = 1 << 28


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss of hidden @ output.T against distributions or labels, with the gradients made ahead.

    The gradient of the logits is softmax - truth, so both gradients come from the one pass that
    makes the loss, and no logits outlive their chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, output: Tensor, truth: Tensor, rows: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_output = ctx.needs_input_grad[:2]
        loss = hidden.new_zeros(())
        best = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_output = torch.zeros_like(output) if needs_output else None
        size = _CHUNK
        if hidden.device.type != "cpu":
            size = max(_CHUNK, _USUAL_LOGITS // len(output))
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            logits = hidden[part] @ output.T
            best[part] = logits.argmax(-1)
            total = torch.logsumexp(logits, -1)
            target = truth[rows[part]]
            weight = weights[part]
            if target.dim() == 1:
                chosen = logits.gather(1, target[:, None])[:, 0]
            else:
                chosen = (target * logits).sum(-1)
            loss += ((total - chosen) * weight).sum()
            if grad_hidden is None:
                continue
            delta = logits.sub_(total[:, None]).exp_()
            if target.dim() == 1:
                delta[torch.arange(len(target), device=target.device), target] -= 1
            else:
                delta -= target
            delta *= weight[:, None]
            grad_hidden[part] = delta @ output
            if grad_output is not None:
                grad_output.addmm_(delta.T, hidden[part])
        ctx.save_for_backward(grad_hidden, grad_output)
        ctx.mark_non_differentiable(best)
        return loss, best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_output = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale,
            None if grad_output is None else grad_output * scale,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, output: Tensor, truth: Tensor, rows: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_r weights[r] · H(truth[rows[r]], softmax(hidden[r] @ output.T)), and each row's argmax.

    Args:
        hidden: [rows, hidden].
        output: [vocabulary, hidden].
        truth: distributions [any, vocabulary], or labels [any].
        rows: [rows], into truth.
        weights: [rows].
    """
    if not torch.is_grad_enabled():
        hidden, output = hidden.detach(), output.detach()
    apply: Any = _LinearCrossEntropy.apply
    result: tuple[Tensor, Tensor] = apply(hidden, output, truth, rows, weights)
    return result
