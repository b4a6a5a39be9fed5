"""Tokens that only the files beside tokenizer.json have, against transformers as the judge."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import token, write_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer

from forerun.errors import CheckpointError
from forerun.text.tokenizer import Tokenizer

TEXTS = ["a<t>b", "<e>", "hi <t> <e>you", "<t><t>  <e>", "x<e>y z<t>", "nothing", ""]
DECLARED = {"256": token("<t>")}
IN_FILE = [AddedToken("<t>", special=False, normalized=False)]

# Arguments of write_tokenizer.
CASES: dict[str, dict[str, Any]] = {
    "decoder": {"tokenizer_config": {"added_tokens_decoder": DECLARED}},
    "decoder, two in the order of ids": {
        "tokenizer_config": {"added_tokens_decoder": {"257": token("<e>"), **DECLARED}}
    },
    "decoder, not special": {
        "tokenizer_config": {"added_tokens_decoder": {"256": token("<t>", special=False)}}
    },
    "decoder, stripping": {
        "tokenizer_config": {
            "added_tokens_decoder": {"256": token("<t>", lstrip=True, rstrip=True)}
        }
    },
    "decoder, single word": {
        "tokenizer_config": {"added_tokens_decoder": {"256": token("<t>", single_word=True)}}
    },
    "decoder, minimal": {"tokenizer_config": {"added_tokens_decoder": {"256": {"content": "<t>"}}}},
    "decoder makes a token special": {
        "added": IN_FILE,
        "tokenizer_config": {"added_tokens_decoder": DECLARED},
    },
    "decoder makes a token text": {
        "added": [AddedToken("<t>", special=True, normalized=False)],
        "tokenizer_config": {
            "added_tokens_decoder": {"256": token("<t>", special=False, lstrip=True)}
        },
    },
    "decoder and a role": {
        "tokenizer_config": {
            "eos_token": "<t>",
            "added_tokens_decoder": {"256": token("<t>", special=False)},
        }
    },
    "added_tokens.json": {"tokenizer_config": {}, "added_tokens": {"<t>": 256}},
    "added_tokens.json and a role": {
        "tokenizer_config": {"eos_token": "<t>"},
        "added_tokens": {"<e>": 257, "<t>": 256},
    },
    "a role for a token of the file": {
        "added": IN_FILE,
        "tokenizer_config": {"eos_token": "<t>", "pad_token": "<t>"},
    },
    "a role for a token of the vocabulary": {"tokenizer_config": {"unk_token": "a"}},
    "a role for a token that nothing has": {"tokenizer_config": {"pad_token": "<e>"}},
    "a role with flags": {
        "tokenizer_config": {
            "eos_token": {"__type": "AddedToken", "content": "<e>", "lstrip": True}
        }
    },
    "special_tokens_map.json": {
        "tokenizer_config": {"eos_token": "<t>"},
        "special_tokens_map": {"eos_token": "<e>", "bos_token": token("<t>")},
    },
    "more special tokens": {
        "tokenizer_config": {"additional_special_tokens": ["<e>"], "image_token": "<t>"}
    },
    "named special tokens": {"tokenizer_config": {"extra_special_tokens": {"boi_token": "<e>"}}},
    "no config": {"added": IN_FILE},
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    directory = write_tokenizer(tmp_path, **CASES[name])
    reference = AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer(directory)
    assert ours.get_vocab() == reference.get_vocab()
    assert len(ours) == len(reference)
    theirs = reference.added_tokens_decoder
    added = ours.backend.get_added_tokens_decoder()
    assert {i: repr(each) for i, each in added.items()} == {i: repr(t) for i, t in theirs.items()}
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text)
        ids = ours.encode(text)
        # transformers omits a token that tokenizer.json calls special, whatever its own flag says.
        for skip in (False, True)[: 1 if "makes a token text" in name else 2]:
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)
    assert ours.special_tokens_map == {
        role: value
        for role, value in reference.special_tokens_map.items()
        if role.endswith("_token") and role in ("eos_token", "bos_token", "unk_token", "pad_token")
    }
    assert sorted(ours.all_special_ids) == sorted(reference.all_special_ids)
    for role in ("eos_token", "bos_token", "unk_token", "pad_token", "sep_token", "mask_token"):
        assert getattr(ours, role) == getattr(reference, role)
        assert getattr(ours, f"{role}_id") == getattr(reference, f"{role}_id")


def test_the_special_flag_of_the_config_counts(tmp_path: Path) -> None:
    for name, text in (("decoder makes a token text", "a<t>b"), ("decoder", "ab")):
        ours = Tokenizer(write_tokenizer(tmp_path / name, **CASES[name]))
        assert ours.decode(ours.encode("a<t>b"), skip_special_tokens=True) == text


def test_another_id_than_the_declared_one_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id is that of transformers, which takes the next free one."""
    directory = write_tokenizer(
        tmp_path, tokenizer_config={"added_tokens_decoder": {"300": token("<t>")}}
    )
    with caplog.at_level(logging.WARNING, logger="forerun"):
        ours = Tokenizer(directory)
    assert ours.encode("<t>") == AutoTokenizer.from_pretrained(directory).encode("<t>") == [256]
    assert "'<t>' has the id 256, not 300" in caplog.text


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"},
    ],
)
def test_a_text_that_cannot_be_encoded_is_the_tokenizers_error(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "model": model}))
    with pytest.raises(CheckpointError, match="a tokenizer that encodes"):
        Tokenizer(tmp_path).encode("xyz")


@pytest.mark.parametrize("index", [2**22, 2**31, 2**32 - 1])
def test_an_id_beyond_any_vocabulary_is_refused(tmp_path: Path, index: int) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"]["xyz"] = index
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=f"the token id {index}"):
        _ = Tokenizer(tmp_path).token_bytes


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("tokenizer_config", {"bos_token": {}}, "bos_token: content"),
        ("tokenizer_config", {"bos_token": 3}, "bos_token"),
        ("tokenizer_config", {"eos_token": ["</s>"]}, "eos_token"),
        ("tokenizer_config", {"eos_token": ""}, "eos_token: content"),
        ("tokenizer_config", {"eos_token": {"content": "x", "lstrip": 1}}, "eos_token: lstrip"),
        ("tokenizer_config", {"additional_special_tokens": 3}, "additional_special_tokens"),
        ("tokenizer_config", {"additional_special_tokens": [3]}, "additional_special_tokens[0]"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": token("<t>")}}, "added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"-1": token("<t>")}}, "added_tokens_"),
        ("tokenizer_config", {"added_tokens_decoder": {"256": "<t>"}}, "added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"256": {}}}, "['256']: content"),
        ("tokenizer_config", {"added_tokens_decoder": {"256": token("")}}, "['256']: content"),
        ("tokenizer_config", {"added_tokens_decoder": {"2": token("t", special=2)}}, "special"),
        ("special_tokens_map", {"pad_token": {"content": None}}, "pad_token: content"),
        ("special_tokens_map", [], "special_tokens_map.json"),
        ("added_tokens", {"<t>": "256"}, "added_tokens.json"),
        ("added_tokens", {"<t>": True}, "added_tokens.json"),
        ("added_tokens", {"<t>": -1}, "added_tokens.json"),
        ("added_tokens", {"": 256}, "added_tokens.json"),
        ("added_tokens", 3, "added_tokens.json"),
    ],
)
def test_wrong_types_are_errors_that_name_the_key(
    tmp_path: Path, file: str, content: Any, field: str
) -> None:
    directory = write_tokenizer(tmp_path, **{file: content})
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(directory)
    assert field in caught.value.field
    assert file in caught.value.field
