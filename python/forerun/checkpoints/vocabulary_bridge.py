"""A draft model with a vocabulary of its own: which of its tokens are which of the target's.

Tokens with the same text are the same token. A token that only the target has is never drafted, and
is read as the drafter's longest token that its text ends with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forerun import _core
from forerun.checkpoints.inspection import Inspection
from forerun.errors import CheckpointError
from forerun.text.tokenizer import Tokenizer
from forerun.text.vocabulary import Vocabulary

_FIELD = "speculative_config.model"


def find_bridge(drafter: Inspection, target: Inspection) -> _core.VocabularyBridge | None:
    """How a draft model's vocabulary and its target's go together; None where they are the same.

    Raises:
        CheckpointError: the vocabularies differ, and have no token in common or no tokenizer.
    """
    sizes = drafter.vocab_size, target.vocab_size
    if None in sizes or drafter.path.resolve() == target.path.resolve():
        return None
    files = [found.path / "tokenizer.json" for found in (drafter, target)]
    missing = [file for file in files if not file.is_file()]
    if sizes[0] == sizes[1] and (missing or _same_bytes(*files)):
        return None
    if missing:
        raise CheckpointError(
            _FIELD,
            str(drafter.path),
            f"a drafter of {target.path}: vocab_size: the drafter is for {sizes[0]}, the target "
            f"has {sizes[1]}; which tokens both have is not known without {missing[0]}",
        )
    theirs, ours = (
        Vocabulary(Tokenizer(found.path), found.vocab_size or 0) for found in (drafter, target)
    )
    if theirs.token_bytes == ours.token_bytes:
        return None
    bridge = make_bridge(theirs, ours)
    if not bridge.shared_ids:
        raise CheckpointError(
            _FIELD, str(drafter.path), f"a drafter with at least one token of {target.path}"
        )
    return bridge


def make_bridge(drafter: Vocabulary, target: Vocabulary) -> _core.VocabularyBridge:
    """The drafter's id for each of the target's tokens, and which of them are the same token."""
    same: dict[int, int] = {}
    taken: set[int] = set()

    def match(token: int, other: int | None) -> None:
        if other is not None and token not in same and other not in taken:
            same[token] = other
            taken.add(other)

    # What is special to one may be text to the other, but only where nothing else has that text.
    kinds = ((False, False), (True, True), (False, True), (True, False))
    for target_kind, drafter_kind in kinds:
        theirs = drafter.ids_by_text(drafter_kind)
        for text, token in target.ids_by_text(target_kind).items():
            match(token, theirs.get(text))
    for name, token in target.role_ids.items():
        match(token, drafter.role_ids.get(name))
    endings = drafter.ids_by_text(special=False)
    draft_ids = [
        same[token] if token in same else _ending(text, endings)
        for token, text in enumerate(target.token_bytes)
    ]
    return _core.VocabularyBridge(draft_ids, sorted(same))


def _ending(text: bytes, tokens: Mapping[bytes, int]) -> int:
    found = (tokens.get(text[begin:]) for begin in range(len(text)))
    return next((token for token in found if token is not None), 0)


def _same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
