"""Encoding, chat templates, and text that is the same whole and in pieces."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
from corpus import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.text import detokenizer
from forerun.text.detokenizer import Detokenizer, TokenBytes
from forerun.text.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 2 + 2?\n"},
    {"role": "assistant", "content": "The answer <b>is</b> "},
]


@functools.cache
def load(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(params=["smollm", "gemma"])
def model_dir(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(f"{request.param}_dir")
    return directory


def stream(table: list[bytes], pieces: list[list[int]], stops: tuple[str, ...] = ()) -> list[str]:
    decoder = Detokenizer(TokenBytes(table, table), stops)
    return [*(decoder.push(piece) for piece in pieces), decoder.finish()]


def test_ids_equal_those_of_transformers(model_dir: Path) -> None:
    reference = AutoTokenizer.from_pretrained(model_dir)
    ours = load(model_dir)
    for text in TEXTS:
        assert ours.encode(text) == reference(text)["input_ids"]
        plain = reference(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == plain


def test_text_equals_that_of_tokenizers_on_the_corpus(model_dir: Path) -> None:
    ours = load(model_dir)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == ours.backend.decode(ids)
        assert "".join(stream(ours.token_bytes.plain, [[token] for token in ids])) == ours.decode(
            ids, skip_special_tokens=True
        )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pieces_of_any_ids_add_up_to_their_whole_text(data: st.DataObject) -> None:
    for tokenizer in MODELS:
        size = tokenizer.backend.get_vocab_size()
        ids = data.draw(st.lists(st.integers(0, size - 1) | st.integers(0, 400), max_size=40))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
        bounds = [0, *cuts, len(ids)]
        pieces = [ids[a:b] for a, b in itertools.pairwise(bounds)]
        stops = tuple(data.draw(st.lists(st.text(min_size=1, max_size=3), max_size=3)))
        streamed = stream(tokenizer.token_bytes.plain, pieces, stops)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(streamed) == whole
        if "\ufffd" not in whole:
            assert whole == tokenizer.backend.decode(ids)


MODELS: list[Tokenizer] = []


@pytest.fixture(autouse=True, scope="module")
def _models(request: pytest.FixtureRequest) -> None:
    MODELS.append(load(request.getfixturevalue("smollm_dir")))
    MODELS.append(load(request.getfixturevalue("gemma_dir")))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=20))
def test_pieces_of_any_bytes_decode_as_the_whole(
    table: list[bytes],
) -> None:
    streamed = stream(table, [[index] for index in range(len(table))])
    assert "".join(streamed) == b"".join(table).decode(errors="replace")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20), st.data())
def test_valid_text_is_never_replaced_however_it_is_cut(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    table = [raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)])]
    assert "".join(stream(table, [[index] for index in range(len(table))])) == text


def test_a_character_spread_over_tokens_appears_once_whole() -> None:
    table = [bytes([byte]) for byte in "a🤗é".encode()]
    assert stream(table, [[i] for i in range(len(table))]) == ["a", *[""] * 3, "🤗", "", "é", ""]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"", "é".encode()]), max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_no_piece_goes_beyond_a_stop_string(table: list[bytes], stops: list[str]) -> None:
    decoder = Detokenizer(TokenBytes(table, table), stops)
    seen, text = "", b""
    for index, data in enumerate(table):
        text += data
        starts = [at for stop in stops if (at := text.find(stop.encode())) >= 0]
        if starts:
            assert seen + decoder.finish([index], min(starts)) == text[: min(starts)].decode()
            return
        seen += decoder.push([index])
    assert seen + decoder.finish() == text.decode()


def test_the_end_is_cut_to_the_bytes_that_the_engine_keeps() -> None:
    table = [b"one ", b"two STO", b"P three"]
    tables = TokenBytes(table, table)
    decoder = Detokenizer(tables, ["STOP"])
    assert [decoder.push([0]), decoder.push([1])] == ["one ", "two "]
    assert decoder.finish([2], num_text_bytes=8) == ""
    included = Detokenizer(tables, ["STOP"])
    pieces = [included.push([0]), included.push([1]), included.finish([2], num_text_bytes=12)]
    assert pieces == ["one ", "two ", "STOP"]


def test_special_tokens_are_silent_and_added_tokens_are_not(smollm_dir: Path) -> None:
    ours = load(smollm_dir)
    ids = ours.encode("<|im_start|>user\nhi<|im_end|>")
    assert ours.decode(ids, skip_special_tokens=True) == "user\nhi"
    assert ours.decode(ids) == "<|im_start|>user\nhi<|im_end|>"
    assert ours.decode([10**6]) == "", "ids that only padding has are silent"


def test_sentencepiece_keeps_its_leading_space(gemma_dir: Path) -> None:
    ours = load(gemma_dir)
    assert ours.decode(ours.encode(" yes", add_special_tokens=False)) == " yes"
    table = detokenizer.token_bytes(ours.backend).plain
    assert table[ours.backend.token_to_id("<0x0A>")] == b"\n"


@pytest.mark.parametrize("continued", [False, True])
def test_chats_render_as_in_transformers(smollm_dir: Path, continued: bool) -> None:
    reference = AutoTokenizer.from_pretrained(smollm_dir)
    for template in [None, TRIMMING, LOOPING]:
        for messages in (MESSAGES, MESSAGES[1:]):
            expected = reference.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
            assert expected == load(smollm_dir).render_chat(
                messages,
                template=template,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )


TRIMMING = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]"
    "{{ message['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
LOOPING = """
{%- for message in messages %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{% endgeneration %}
    {%- else %}
{{ message | tojson }}{{ message | tojson(indent=2) }}
    {%- endif %}
{% endfor %}
{%- set state = namespace(found=false) %}
{%- if add_generation_prompt %}{{ strftime_now('%Y')[:2] }}{{ state.found }}{% endif %}
"""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "a valid Jinja template"),
        ("{{ messages[0].content.missing.more }}", "chat_template"),
        ("{{ ''.__class__.__mro__ }}", "chat_template"),
        ("{% set _ = messages.append(1) %}", "chat_template"),
    ],
)
def test_template_errors_are_answers(smollm_dir: Path, template: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match="chat_template") as error:
        load(smollm_dir).render_chat(MESSAGES, template=template)
    assert message in str(error.value)


@pytest.mark.parametrize("messages", [[], "hi", ["hi"], [{"content": "x"}], None, {"role": "user"}])
def test_wrong_messages_are_refused(smollm_dir: Path, messages: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="messages"):
        load(smollm_dir).render_chat(messages)


def test_a_model_without_a_template_says_so(gemma_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="comes without one"):
        load(gemma_dir).render_chat(MESSAGES)


def test_missing_or_damaged_tokenizers_are_checkpoint_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
