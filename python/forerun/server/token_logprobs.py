"""Log-probabilities as chats and completions report them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forerun.text.detokenizer import decode, join_bytes

if TYPE_CHECKING:
    from forerun.logprobs import FlatLogprobs
    from forerun.text.detokenizer import TokenBytes

_LEAST = -9999.0  # JSON has no infinity; vLLM reports this as well
_Row = tuple[int, float, int]  # token, logprob, rank


@dataclass(frozen=True)
class TokenNames:
    """How an answer names tokens.

    Attributes:
        as_ids: "token_id:N" in place of their text.
        skips_special: texts are without special tokens.
    """

    tables: TokenBytes
    as_ids: bool = False
    skips_special: bool = True

    def name(self, token: int) -> str:
        """A token's text, or its number."""
        return f"token_id:{token}" if self.as_ids else decode(self.tables.whole, [token])

    @property
    def shown(self) -> list[bytes]:
        """What each token adds to a text."""
        return self.tables.plain if self.skips_special else self.tables.whole

    def text(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return decode(self.shown, tokens)


def chat_logprobs(names: TokenNames, logprobs: FlatLogprobs, num_top: int) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat's choice."""

    def entry(row: _Row) -> dict[str, Any]:
        token, logprob, _ = row
        data = list(join_bytes(names.tables.whole, [token]))
        return {"token": names.name(token), "logprob": max(logprob, _LEAST), "bytes": data}

    found = []
    for position in range(len(logprobs)):
        rows: list[_Row] = logprobs.rows(position).tolist()
        by_rank = {row[2]: row for row in rows}  # the token itself may be among the top
        top = [by_rank[rank] for rank in sorted(by_rank)][:num_top]
        found.append({**entry(rows[0]), "top_logprobs": [entry(row) for row in top]})
    return found


def prompt_logprobs(logprobs: FlatLogprobs | None) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: by position, tokens with their log-probabilities."""
    if logprobs is None:
        return None

    def entries(position: Any) -> dict[str, Any] | None:
        if position is None:
            return None
        return {
            str(token): {
                "logprob": max(entry.logprob, _LEAST),
                "rank": entry.rank,
                "decoded_token": entry.decoded_token,
            }
            for token, entry in position.items()
        }

    return [entries(position) for position in logprobs]


class CompletionLogprobs:
    """The `logprobs` of a completion's choice, piece by piece.

    Args:
        offset: where the text of the first piece begins in the choice's text.
    """

    def __init__(self, names: TokenNames, offset: int = 0) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = offset

    def take(self, tokens: Sequence[int], logprobs: FlatLogprobs) -> dict[str, list[Any]]:
        """What the choice reports of more tokens."""
        names = self._names
        part: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [names.name(token) for token in tokens],
            "top_logprobs": [],
        }
        for token, entries in zip(tokens, logprobs, strict=True):
            part["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(join_bytes(names.shown, [token])))
            # Nothing predicts a prompt's first token.
            top = {names.name(each): max(e.logprob, _LEAST) for each, e in (entries or {}).items()}
            part["token_logprobs"].append(max(entries[token].logprob, _LEAST) if entries else None)
            part["top_logprobs"].append(top or None)
        return part
