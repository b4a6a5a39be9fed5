"""Prompts that the target is to answer, read from JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.util.json_files import parse_json

if TYPE_CHECKING:
    from forerun.text.tokenizer import Tokenizer


def read_prompts(
    file: Path, tokenizer: Tokenizer | None, most_tokens: int, vocab_size: int | None = None
) -> list[list[int]]:
    """Token ids of the prompts of a file; those of more than `most_tokens` are left out.

    A line has "prompt": a user's words, which the chat template is put around, or token ids, which
    are taken as they are; or "turns", of which the first counts; or "messages" up to a user's.

    Raises:
        CheckpointError: a line that is none of that, or has ids that are not below `vocab_size`.
        InvalidArgumentError: no prompt is short enough.
    """
    prompts: list[list[int]] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        entry = parse_json(line, where, "a JSON object")
        ids = _ids_of(entry, tokenizer, where)
        if vocab_size is not None and ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise CheckpointError(where, str(line[:80]), f"token ids below {vocab_size}")
        if 0 < len(ids) <= most_tokens:
            prompts.append(ids)
    if not prompts:
        raise InvalidArgumentError("prompts", str(file), f"prompts of at most {most_tokens} tokens")
    return prompts


def _ids_of(entry: Any, tokenizer: Tokenizer | None, where: str) -> list[int]:
    match entry:
        case {"prompt": list() as ids} if all(type(token) is int for token in ids):
            return ids
        case {"prompt": str() as text} | {"turns": [str() as text, *_]}:
            messages: list[Any] = [{"role": "user", "content": text}]
        case {"messages": [*_, {"role": "user"}] as messages}:
            pass
        case _:
            raise CheckpointError(
                where, str(entry)[:80], "'prompt' (a text or token ids), 'turns' or 'messages'"
            )
    if tokenizer is None:
        raise CheckpointError(where, str(entry)[:80], "token ids: the model has no tokenizer.json")
    if tokenizer.chat_template is None and len(messages) == 1:
        return tokenizer.encode(str(messages[0]["content"]))
    try:
        text = tokenizer.render_chat(messages)
    except InvalidArgumentError as error:
        raise CheckpointError(where, str(error), "messages for the model's template") from error
    return tokenizer.encode(text, add_special_tokens=False)
