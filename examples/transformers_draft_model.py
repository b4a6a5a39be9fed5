"""Speeds up a plain loop over a transformers model with a draft model; the text stays the same.

    python examples/transformers_draft_model.py TARGET DRAFT "Once upon a time" --max-tokens 60

TARGET and DRAFT are directories of transformers, with one tokenizer. The draft model proposes a few
tokens, the target computes the logits after all of them in one pass, and `forerun.kernels.verify`
says which are kept and which token follows. With sampling, both models share the noise of every
output index, so the text is again that of the target alone for the same seed.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from forerun.kernels import GREEDY, SamplingRule, sample, verify


class CachedModel:
    """A transformers model that computes each token of a growing text once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = DynamicCache()
        # The argument's older name was `past_key_values`.
        is_new = "cache" in inspect.signature(model.forward).parameters
        self.argument = "cache" if is_new else "past_key_values"

    def logits(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """The last `count` rows [count, vocab]; only tokens that are not cached are computed."""
        new = tokens[self.cache.get_seq_length() :]
        options = {self.argument: self.cache, "logits_to_keep": count}
        return self.model(new[None], **options).logits[0]

    def keep(self, length: int) -> None:
        """Forgets what was computed of tokens from index `length` on."""
        num_extra = self.cache.get_seq_length() - length
        if num_extra > 0:
            self.cache.crop(-num_extra)


def is_end(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Which of the tokens end a text of the model."""
    ends = model.generation_config.eos_token_id
    listed = [] if ends is None else [ends] if isinstance(ends, int) else ends
    return torch.isin(tokens, torch.tensor(listed, dtype=tokens.dtype, device=tokens.device))


@torch.inference_mode()
def generate(
    target: Any, prompt: torch.Tensor, max_tokens: int, rule: SamplingRule = GREEDY
) -> torch.Tensor:
    """The plain loop: prompt [n] and `max_tokens` more, or fewer at the end of the text."""
    model, tokens = CachedModel(target), prompt
    for i in range(max_tokens):
        tokens = torch.cat([tokens, sample(model.logits(tokens, 1), rule, i).tokens])
        if is_end(target, tokens[-1:]).any():
            break
    return tokens


@torch.inference_mode()
def generate_with_draft(
    target: Any,
    draft: Any,
    prompt: torch.Tensor,
    max_tokens: int,
    rule: SamplingRule = GREEDY,
    num_draft_tokens: int = 4,
) -> torch.Tensor:
    """The same tokens with fewer passes of the target."""
    model, drafter, tokens = CachedModel(target), CachedModel(draft), prompt
    while (num_emitted := len(tokens) - len(prompt)) < max_tokens:
        proposed = tokens
        for i in range(min(num_draft_tokens, max_tokens - num_emitted - 1)):
            row = drafter.logits(proposed, 1)
            proposed = torch.cat([proposed, sample(row, rule, num_emitted + i).tokens])
        drafted = proposed[len(tokens) :]

        logits = model.logits(proposed, len(drafted) + 1)
        emitted = verify(logits, [drafted], rule, num_emitted).tokens[0]
        emitted = emitted[emitted >= 0]
        if (ends := is_end(target, emitted).nonzero()).numel():
            return torch.cat([tokens, emitted[: int(ends[0]) + 1]])
        tokens = torch.cat([tokens, emitted])
        for cached in (model, drafter):
            cached.keep(len(tokens) - 1)
    return tokens


def timed(call: Callable[[], torch.Tensor], num_prompt: int) -> torch.Tensor:
    start = time.perf_counter()
    tokens = call()
    seconds = time.perf_counter() - start
    print(f"{(len(tokens) - num_prompt) / seconds:.1f} tokens/s")
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--num-draft-tokens", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(path).to(args.device).eval()
        for path in (args.target, args.draft)
    )
    prompt = tokenizer(args.prompt, return_tensors="pt").input_ids[0].to(args.device)
    rule = SamplingRule(temperature=args.temperature, seed=args.seed)
    print("target alone: ", end="")
    plain = timed(lambda: generate(target, prompt, args.max_tokens, rule), len(prompt))
    print("with the draft model: ", end="")
    tokens = timed(
        lambda: generate_with_draft(
            target, draft, prompt, args.max_tokens, rule, args.num_draft_tokens
        ),
        len(prompt),
    )
    print("same tokens" if torch.equal(plain, tokens) else "OTHER TOKENS")
    print(tokenizer.decode(tokens, skip_special_tokens=True))


if __name__ == "__main__":
    main()
