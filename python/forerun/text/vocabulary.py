"""The tokens of a model, whose number may differ from its tokenizer's."""

from __future__ import annotations

from forerun.text.tokenizer import Tokenizer

# Tokens of one role are the same under any name.
_ROLES = ("eos_token", "bos_token")


class Vocabulary:
    """The tokens that a model knows.

    Attributes:
        token_bytes: [size]; empty for ids without a token.
        special: ids of special tokens.
        role_ids: ids by the name of their role.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """`size` is the model's, which may differ from the tokenizer's."""
        whole = tokenizer.token_bytes.whole[:size]
        self.token_bytes = whole + [b""] * (size - len(whole))
        self.special = frozenset(i for i in tokenizer.special_token_ids if i < size)
        ids = {
            name: tokenizer.backend.token_to_id(tokenizer.special_tokens_map[name])
            for name in _ROLES
            if name in tokenizer.special_tokens_map
        }
        self.role_ids = {name: i for name, i in ids.items() if i is not None and i < size}

    def ids_by_text(self, special: bool) -> dict[bytes, int]:
        """Of two tokens with one text, as a SentencePiece model's letters and bytes, the last."""
        return {
            text: i
            for i, text in enumerate(self.token_bytes)
            if text and (i in self.special) == special
        }
