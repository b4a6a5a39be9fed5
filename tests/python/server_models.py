"""A target that often writes reasoning and tool calls, and a drafter for it, to test the server.

The target of drafter_checkpoints mostly follows each token with a fixed successor. Here the tokens
after the end of a text have texts that make a script; a processor makes it more probable.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import drafter_checkpoints
import numpy as np
from drafter_checkpoints import Random, make_eagle3, make_target
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from forerun.logits_processors import AdapterLogitsProcessor
from forerun.sampling_params import SamplingParams

EOS = 1
# In the byte-level alphabet: a token may be a part of a character.
SCRIPT = (
    *("<think>", "Ċlet", "Ġme", "Ġsee", "Ã", "©", "Ġor", "Ġso", "Ċ</think>", "ĊĊ", "It", "Ġis"),
    *("Ġ", "ðŁ", "ĻĤ", "<tool_call>", 'Ċ{"name":Ġ"', "add", '",Ġ"argu', 'ments":Ġ', '{"a":Ġ'),
    *("1", "2", "}}", "Ċ", "</tool_call>", "Ġdone", ".", "ĠThen", "<|im_end|>"),
)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = (
    '{# Qwen3: <tool_call> "arguments" </think> #}'
    "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}"}\n</tool_call>{% endfor %}<|im_end|>{% endfor %}'
    "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is defined %}<think>{% endif %}"
)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
NAMES = [*dict.fromkeys([*SCRIPT, *MARKS, *LETTERS])]
VOCAB = len(NAMES)
_SEED = 2  # of a target whose successors of EOS do not soon come back to it


def write_model(folder: Path) -> tuple[Path, Path]:
    """Writes the target with its tokenizer, and an EAGLE-3 head; returns their directories."""
    with _larger_vocabulary():
        target = make_target(seed=_SEED)
        head = make_eagle3(target, Random(5), draft_vocab=VOCAB)
    directory = target.checkpoint.write(folder / "target")
    _write_tokenizer(directory, target.successor)
    return directory, head.write(folder / "head")


@contextmanager
def _larger_vocabulary() -> Iterator[None]:
    with (
        mock.patch.object(drafter_checkpoints, "VOCAB", VOCAB),
        mock.patch.dict(drafter_checkpoints.SIZES, vocab_size=VOCAB),
    ):
        yield


def _write_tokenizer(directory: Path, successor: np.ndarray) -> None:
    order = _script_ids(successor)
    order += sorted(set(range(VOCAB)) - set(order))
    texts = [SCRIPT[-1], *SCRIPT[:-1], *(name for name in NAMES if name not in SCRIPT)]
    tokenizer = Tokenizer(models.BPE(vocab=dict(zip(texts, order, strict=True)), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    tokenizer.add_special_tokens([AddedToken(SCRIPT[-1], special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SCRIPT[-1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def _script_ids(successor: np.ndarray) -> list[int]:
    """The tokens of the script, from its end on."""
    ids = [EOS]
    while len(ids) < len(SCRIPT):
        ids.append(int(successor[ids[-1]]))
    assert len(set(ids)) == len(SCRIPT), "the cycle of successors is too short"
    return ids


@functools.cache
def _successor() -> np.ndarray:
    with _larger_vocabulary():
        successor = make_target(seed=_SEED).successor
    successor[_script_ids(successor)[-1]] = EOS
    return successor


class FollowsScript(AdapterLogitsProcessor):
    """Adds `vllm_xargs["follow"]` to the logit of the script's next token.

    With "seconds" each token takes so long; after "fail_after" tokens it fails.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., object] | None:
        options = params.extra_args or {}
        if not options:
            return None
        successor = _successor()

        def follow(output_ids: list[int], logits: np.ndarray) -> np.ndarray:
            time.sleep(options.get("seconds", 0))
            if len(output_ids) >= options.get("fail_after", len(output_ids) + 1):
                raise RuntimeError("on purpose")
            last = output_ids[-1] if output_ids else EOS
            logits[successor[last]] += options.get("follow", 0)
            return logits

        return follow
