"""The tokenizer's methods, named, shaped and valued as those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import TEXTS
from tokenizer_files import token, write_tokenizer
from transformers import AutoTokenizer

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.text.tokenizer import Tokenizer

CONFIG = {
    "eos_token": "<e>",
    "pad_token": "<p>",
    "unk_token": "a",
    "added_tokens_decoder": {
        "256": token("<e>"),
        "257": token("<p>"),
        "258": token("<x>", special=False),
    },
}


@pytest.fixture(params=["bytes", "smollm", "gemma", "tiny"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, Any]:
    directory = (
        write_tokenizer(tmp_path, tokenizer_config=CONFIG)
        if request.param == "bytes"
        else request.getfixturevalue(f"{request.param}_dir")
    )
    return Tokenizer(directory), AutoTokenizer.from_pretrained(directory)


def test_every_value_is_that_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for name in (
        *("vocab_size", "name_or_path", "all_special_tokens", "all_special_ids"),
        *("model_max_length", "padding_side", "is_fast"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"):
        for name in (f"{role}_token", f"{role}_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
    ids = [0, 5, len(ours) - 1, len(ours) + 7, *ours.all_special_ids]
    tokens = theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids) == tokens
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    for skip in (False, True):
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
    names = [each for each in tokens if each] + ["no such token"]
    assert ours.convert_tokens_to_ids(names) == theirs.convert_tokens_to_ids(names)
    assert ours.convert_tokens_to_ids(names[0]) == theirs.convert_tokens_to_ids(names[0])


def test_calls_return_what_transformers_returns(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    texts = [*TEXTS[:4], "hi", ""]
    for options in (
        {},
        {"add_special_tokens": False},
        {"truncation": True, "max_length": 3},
        {"return_attention_mask": False},
        {"return_tensors": None, "return_token_type_ids": False},
    ):
        for text in ("hello you", "", texts, ["one"]):
            expected = dict(theirs(text, **options))
            assert ours(text, **options) == expected, options
    encoding = ours("hello")
    assert encoding.input_ids == encoding["input_ids"] == theirs("hello").input_ids
    assert ours.tokenize("hello you") == theirs.tokenize("hello you")
    assert ours.encode("hello") == theirs.encode("hello")
    if ours.pad_token is not None:
        for side in ("right", "left"):
            ours.padding_side = theirs.padding_side = side
            padded = dict(theirs(texts, padding=True))
            assert ours(texts, padding=True) == padded
    ours.model_max_length = theirs.model_max_length = 3
    assert ours(texts, truncation=True) == dict(theirs(texts, truncation=True))


def test_texts_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    rows = [theirs.encode(text) for text in TEXTS[:6]]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip_special_tokens=skip) == theirs.batch_decode(
            rows, skip_special_tokens=skip
        )
    assert ours.decode(5) == theirs.decode(5)
    tokens = [theirs.convert_ids_to_tokens(row) for row in rows]
    for each in [[], *tokens]:
        assert ours.convert_tokens_to_string(each) == theirs.convert_tokens_to_string(each)


class Unreadable:
    """Raises when it is compared, and when an attribute is looked up."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    def __getattr__(self, name: str) -> Any:
        raise ValueError("not to be read")


REFUSED: list[tuple[str, Callable[[Tokenizer], Any]]] = [
    ("return_tensors", lambda t: t("hi", return_tensors="pt")),
    ("return_offsets_mapping", lambda t: t("hi", return_offsets_mapping=True)),
    ("text_pair", lambda t: t("hi", text_pair="you")),
    ("text_pair", lambda t: t("hi", "you")),
    ("Tokenizer.__call__", lambda t: t("hi", None, None)),
    ("Tokenizer.encode", lambda t: t.encode("hi", "you")),
    ("Tokenizer.get_vocab", lambda t: t.get_vocab(True)),
    ("token_ids", lambda t: t.decode()),
    ("padding", lambda t: t("hi", padding="max_length")),
    ("max_length", lambda t: t("hi", truncation=True, max_length=0)),
    ("tokens", lambda t: t.convert_tokens_to_string("low")),
    ("tokens", lambda t: t.convert_tokens_to_string([None])),
    ("padding_side", lambda t: setattr(t, "padding_side", "top") or t(["hi"], padding=True)),
    ("text", lambda t: t(3)),
    ("text", lambda t: t(["fine", 3])),
    ("text", lambda t: t("\ud83d")),
    ("text", lambda t: t.encode(None)),
    ("tokens", lambda t: t.convert_tokens_to_ids([3])),
    ("tokens", lambda t: t.convert_tokens_to_ids(3)),
    ("ids", lambda t: t.convert_ids_to_tokens("5")),
    ("ids", lambda t: t.convert_ids_to_tokens(-1)),
    ("ids", lambda t: t.convert_ids_to_tokens(2**40)),
    ("token_ids", lambda t: t.decode([-1])),
    ("token_ids", lambda t: t.decode(["a"])),
    ("token_ids", lambda t: t.decode("abc")),
    ("token_ids", lambda t: t.batch_decode([3.5])),
    (
        "clean_up_tokenization_spaces",
        lambda t: t.decode([3], clean_up_tokenization_spaces=True),
    ),
    ("sequences", lambda t: t.batch_decode(3)),
    (
        "clean_up_tokenization_spaces",
        lambda t: t.decode([1], clean_up_tokenization_spaces=Unreadable()),
    ),
    ("token_ids", lambda t: t.decode(Unreadable())),
    ("ids", lambda t: t.convert_ids_to_tokens(Unreadable())),
    ("add_special_tokens", lambda t: t.encode("hi", add_special_tokens=[])),
    ("tokenizer_kwargs", lambda t: t.apply_chat_template(CHAT, tokenizer_kwargs=3)),
    ("tokenizer_kwargs key", lambda t: t.apply_chat_template(CHAT, tokenizer_kwargs={3: 1})),
    (
        "tokenizer_kwargs['text']",
        lambda t: t.apply_chat_template(CHAT, None, None, "{{ 1 }}", tokenizer_kwargs={"text": 1}),
    ),
    ("tools", lambda t: t.apply_chat_template(CHAT, chat_template="{{ 1 }}", tools=3)),
    ("tools[0]", lambda t: t.apply_chat_template(CHAT, chat_template="{{ 1 }}", tools=[3])),
    (
        "return_tensors",
        lambda t: t.apply_chat_template(CHAT, chat_template="{{ 1 }}", return_tensors="pt"),
    ),
    (
        "return_assistant_tokens_mask",
        lambda t: t.apply_chat_template(CHAT, return_assistant_tokens_mask=True),
    ),
]
CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("length", [77, 77.5, 1e30, None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_config_sets_the_length_and_the_side(tmp_path: Path, length: Any, side: str) -> None:
    config = {**CONFIG, "model_max_length": length, "padding_side": side}
    directory = write_tokenizer(tmp_path, tokenizer_config=config)
    ours, theirs = Tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.padding_side == theirs.padding_side == side
    assert ours.model_max_length == int(theirs.model_max_length)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("padding_side", "top"),
        ("padding_side", 3),
        ("padding_side", ["left"]),
        *[("model_max_length", value) for value in (0, -1, True, "512", [1], float("inf"))],
    ],
)
def test_a_config_with_a_wrong_length_or_side_is_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    directory = write_tokenizer(tmp_path, tokenizer_config={name: value})
    with pytest.raises(CheckpointError, match=name):
        Tokenizer(directory)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_of_ids_are_sequences(tmp_path: Path, array: Callable[[Any], Any]) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    ids = tokenizer.encode("low")
    assert tokenizer.decode(array(ids)) == "low"
    assert tokenizer.decode(array(ids[:1]), clean_up_tokenization_spaces=False) == "l"
    assert tokenizer.decode(array(ids[0])) == "l"
    assert tokenizer.batch_decode(array([ids, ids])) == ["low", "low"]
    assert tokenizer.convert_ids_to_tokens(array(ids)) == ["l", "o", "w"]
    assert tokenizer.convert_ids_to_tokens(array(ids[0])) == "l"


@pytest.mark.parametrize(("field", "call"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, field: str, call: Callable[[Tokenizer], Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call(Tokenizer(write_tokenizer(tmp_path)))
    assert caught.value.field == field


def test_only_names_of_roles_are_attributes(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="eos_tokens"):
        _ = Tokenizer(write_tokenizer(tmp_path)).eos_tokens
