"""Token ids -> text, one step at a time, without ever showing half a character.

Text is the concatenated bytes of the tokens. That differs from `tokenizers`' own decoding in three
intended ways: SentencePiece models keep their leading space, since output continues a prompt; an
added token stands for its content, letter by letter; and each invalid byte sequence becomes one
replacement character, also where `tokenizers` replaces the whole run of bytes around it.
"""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from forerun.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_TOKENS = 1 << 22
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(NamedTuple):
    """The bytes of each token, indexed by id; unused ids are empty."""

    plain: list[bytes]  # special tokens are empty
    whole: list[bytes]  # special tokens stand for their names


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The bytes and kinds of a tokenizer's tokens."""
    added = tokenizer.get_added_tokens_decoder()
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    to_bytes = _byte_level if _decoder_kind(tokenizer) == "ByteLevel" else _sentencepiece
    highest = max([*vocab.values(), *added], default=-1)
    if highest >= _MAX_TOKENS:
        raise CheckpointError(
            "tokenizer.json",
            f"the token id {highest}",
            f"ids below {_MAX_TOKENS}: no vocabulary is that large, and every id takes memory",
        )
    table = [b""] * (1 + highest)
    for token, index in vocab.items():
        if index not in added:
            table[index] = to_bytes(token)
    for index, entry in added.items():
        table[index] = entry.content.encode()
    plain = list(table)
    for index in special_token_ids(tokenizer):
        plain[index] = b""
    return TokenBytes(plain, table)


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids of special tokens."""
    added = tokenizer.get_added_tokens_decoder()
    return [index for index, entry in added.items() if entry.special]


def _decoder_kind(tokenizer: Tokenizer) -> str:
    import json

    def names(state: Any) -> list[str]:
        if state is None:
            return []
        if state["type"] == "Sequence":
            return [name for part in state["decoders"] for name in names(part)]
        return [str(state["type"])]

    decoder = tokenizer.decoder
    kinds = names(json.loads(decoder.__getstate__()) if decoder is not None else None)
    if "ByteLevel" in kinds:
        return "ByteLevel"
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return "SentencePiece"
    raise CheckpointError(
        "tokenizer.json: decoder", kinds, "ByteLevel, or the decoders of a SentencePiece model"
    )


def _byte_level_alphabet() -> dict[int, int]:
    """Code point -> byte. Printable bytes stand for themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    # A character that stands for no byte becomes one that latin-1 cannot write.
    alphabet = dict.fromkeys(others, 0xFFFF) | {byte: byte for byte in printable}
    return alphabet | {0x100 + index: byte for index, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    if token.startswith("<0x") and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()


class Detokenizer:
    """Turns the tokens of one request into pieces of text that add up to its whole text.

    A piece ends at a whole character, and before anything that may still become a stop string: in
    the text as it is shown, or in the text with the names of the special tokens that it omits.
    """

    def __init__(
        self, tables: TokenBytes, stops: Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._shown_table = tables.plain if skip_special_tokens else tables.whole
        self._named_table = tables.whole
        self._stops = [stop.encode() for stop in stops]
        self._longest_beginning = max(map(len, self._stops), default=1) - 1
        # What `_matches` found in the text as it is shown, and in that with the names.
        self._shown_matches = self._named_matches = (0,) * len(self._stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""  # what is not released
        # The last bytes with the names of omitted tokens, as far as a stop string may begin there.
        self._named = b""
        self._is_shown = b""  # [len(_named)]
        self._num_released = 0

    def copy(self) -> Detokenizer:
        """Another one, which has seen the same tokens."""
        other = copy.copy(self)
        other._decoder = copy.copy(self._decoder)
        return other

    def push(self, token_ids: Sequence[int]) -> str:
        """Appends tokens; returns the text that is now final."""
        shown = join_bytes(self._shown_table, token_ids)
        self._held += shown
        if not self._stops:
            return self._release(len(self._held))
        num_old = len(self._named)
        for token in token_ids:
            name = join_bytes(self._named_table, [token])
            self._named += name
            self._is_shown += bytes([bool(join_bytes(self._shown_table, [token]))]) * len(name)
        num_new = len(self._named) - num_old
        self._shown_matches = self._matches(self._held, self._shown_matches, len(shown))
        self._named_matches = self._matches(self._named, self._named_matches, num_new)
        num_shown = self._is_shown.count(1, len(self._named) - max(self._named_matches))
        keep = len(self._named) - self._longest_beginning
        self._named, self._is_shown = self._named[max(keep, 0) :], self._is_shown[max(keep, 0) :]
        return self._release(len(self._held) - max(num_shown, *self._shown_matches))

    def finish(self, token_ids: Sequence[int] = (), num_text_bytes: int = -1) -> str:
        """The rest of the text; the whole is cut to `num_text_bytes` unless that is negative."""
        self._held += join_bytes(self._shown_table, token_ids)
        end = len(self._held)
        if num_text_bytes >= 0:
            end = min(end, max(num_text_bytes - self._num_released, 0))
        return self._release(end, final=True)

    def _release(self, end: int, final: bool = False) -> str:
        chunk, self._held = self._held[:end], self._held[end:]
        self._num_released += len(chunk)
        return self._decoder.decode(chunk, final)

    def _matches(self, text: bytes, before: tuple[int, ...], num_new: int) -> tuple[int, ...]:
        """How many bytes of each stop string, but not all of them, the text ends with.

        Args:
            before: the same without the text's last `num_new` bytes.
        """
        # The rest of a match was one before. So each byte costs about two comparisons of a stop
        # string: what raises its match by one lets it be lowered by one, once.
        return tuple(
            _match(text, stop, min(len(stop) - 1, num + num_new))
            for stop, num in zip(self._stops, before, strict=True)
        )


def _match(text: bytes, stop: bytes, most: int) -> int:
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


def join_bytes(table: Sequence[bytes], token_ids: Sequence[int]) -> bytes:
    """The bytes of a sequence; ids beyond the table, which padded models have, are empty."""
    return b"".join(table[token] if token < len(table) else b"" for token in token_ids)


def decode(table: Sequence[bytes], token_ids: Sequence[int], num_text_bytes: int = -1) -> str:
    """The text of a sequence, cut to `num_text_bytes` unless that is negative."""
    data = join_bytes(table, token_ids)
    return (data if num_text_bytes < 0 else data[:num_text_bytes]).decode(errors="replace")
