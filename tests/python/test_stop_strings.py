"""Stop strings that name special tokens: whole texts and streams end at the same token."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun import LLM, SamplingParams
from forerun.text.detokenizer import Detokenizer, TokenBytes
from forerun.text.tokenizer import Tokenizer

WORDS = st.text("ab<", max_size=3)


def first_stop(pieces: list[tuple[str, bool]], stops: list[str]) -> int | None:
    """Where the shown text ends when a stop string ends in the last piece."""
    found = []
    for with_names in (False, True):
        # Bytes that are shown, one each, and whole names.
        atoms: list[tuple[str, bool]] = []
        num_old = 0
        for name, is_shown in pieces:
            num_old = len(atoms)
            if is_shown:
                atoms += [(letter, True) for letter in name]
            elif with_names and name:
                atoms.append((name, False))
        for begin in range(len(atoms)):
            for end in range(max(begin, num_old), len(atoms)):
                if "".join(name for name, _ in atoms[begin : end + 1]) in stops:
                    found.append(sum(is_shown for _, is_shown in atoms[:begin]))
    return min(found, default=None)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(WORDS, min_size=3, max_size=3),
    st.lists(WORDS, min_size=2, max_size=2),
    st.lists(st.tuples(WORDS, st.integers(0, 2), WORDS), min_size=1, max_size=2),
    st.lists(st.integers(0, 4), max_size=14),
)
def test_no_piece_goes_beyond_a_stop_string(
    words: list[str], names: list[str], parts: list[tuple[str, int, str]], ids: list[int]
) -> None:
    special = [f"<{name}>" for name in names]
    stops = [before + [*special, ""][which] + after for before, which, after in parts]
    stops = [stop for stop in stops if stop] or ["a"]
    whole = [text.encode() for text in [*words, *special]]
    decoder = Detokenizer(TokenBytes([*whole[:3], b"", b""], whole), stops)
    pieces: list[tuple[str, bool]] = []
    seen, text = "", ""
    for token in ids:
        pieces.append((whole[token].decode(), token < 3))
        text += pieces[-1][0] if token < 3 else ""
        cut = first_stop(pieces, stops)
        if cut is not None:
            assert seen + decoder.finish([token], cut) == text[:cut]
            return
        seen += decoder.push([token])
        assert text.startswith(seen)
    assert seen + decoder.finish() == text


def longest_beginning(text: bytes, stops: list[bytes]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    return max(n for stop in stops for n in range(len(stop)) if n == 0 or text.endswith(stop[:n]))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), min_size=5, max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=20),
)
def test_what_may_begin_a_stop_string_is_held_and_no_more(
    words: list[str], parts: list[str], repeats: list[int], pushes: list[list[int]]
) -> None:
    whole = [text.encode() for text in words]
    plain = [*whole[:3], b"", b""]
    stops = [part * count for part, count in zip(parts, repeats, strict=False)]
    encoded = [stop.encode() for stop in stops]
    decoder = Detokenizer(TokenBytes(plain, whole), stops)
    shown = named = b""
    marks: list[bool] = []  # of the bytes of `named`: whether they are shown
    num_released = 0
    for ids in pushes:
        for token in ids:
            shown += plain[token]
            named += whole[token]
            marks += [bool(plain[token])] * len(whole[token])
        num_named = longest_beginning(named, encoded)
        num_held = sum(marks[len(marks) - num_named :])
        num_held = max(num_held, longest_beginning(shown, encoded))
        other = decoder.copy()
        for each in (decoder, other):
            assert each.push(ids).encode() == shown[num_released : len(shown) - num_held]
        num_released = len(shown) - num_held


@pytest.mark.parametrize("piece", ["a", "aaab", "ab" * 20, "b" + "a" * 300])
def test_a_long_stop_string_is_compared_a_few_times_for_each_byte(piece: str) -> None:
    table = [piece.encode()]
    decoder = Detokenizer(TokenBytes(table, table), ["a" * 2000 + "b", "ab" * 1000])
    num_comparisons = 0

    def count(frame: FrameType, event: str, called: object) -> None:
        nonlocal num_comparisons
        num_comparisons += event == "c_call" and getattr(called, "__name__", "") == "endswith"

    num_tokens = 4000 // len(piece)
    sys.setprofile(count)
    try:
        for _ in range(num_tokens):
            decoder.push([0])
    finally:
        sys.setprofile(None)
    # Each byte at most twice, for two stop strings, in the text with names and that without.
    assert 0 < num_comparisons <= 8 * num_tokens * len(piece)


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, max_model_len=64)


def write(llm: LLM, text: str, **options: object) -> tuple[str, str, object]:
    """What comes of a text that the model is made to write, whole and streamed."""
    ids = llm.get_tokenizer().encode(text, add_special_tokens=False)

    def force(output: list[int], logits: object) -> object:
        logits[:] = -100.0  # type: ignore[index]
        logits[ids[min(len(output), len(ids) - 1)]] = 100.0  # type: ignore[index]
        return logits

    params = SamplingParams(
        temperature=0,
        max_tokens=len(ids),
        logits_processors=[force],  # type: ignore[list-item]
        **options,  # type: ignore[arg-type]
    )
    [output] = llm.generate("x", params, use_tqdm=False)
    streamed = "".join(delta.text for delta in llm.stream("x", params))
    completion = output.outputs[0]
    assert streamed == completion.text
    assert completion.finish_reason is not None
    return completion.text, completion.finish_reason, completion.stop_reason


def special_token(tokenizer: Tokenizer) -> str:
    return tokenizer.special_tokens_map["bos_token"]


def test_special_tokens_stop_by_their_names(llm: LLM) -> None:
    mark = special_token(llm.get_tokenizer())
    text = f"a dog{mark}low"
    for stop in (mark, f"dog{mark}", f"{mark}low", f"g{mark}l"):
        cut = text[: text.index(stop)]
        assert write(llm, text, stop=[stop]) == (cut.replace(mark, ""), "stop", stop)
        shown = write(llm, text, stop=[stop], skip_special_tokens=False)
        assert shown == (cut, "stop", stop)
        included = write(llm, text, stop=stop, include_stop_str_in_output=True)
        assert included[0] == text[: text.index(stop) + len(stop)].replace(mark, "")


def test_parts_of_names_do_not_stop_and_omitted_tokens_do_not_hide_a_stop(llm: LLM) -> None:
    mark = special_token(llm.get_tokenizer())
    text = f"a dog{mark}low"
    for stop in (mark[:-1], mark[1:], f"g{mark[:2]}"):
        assert write(llm, text, stop=[stop]) == ("a doglow", "length", None)
    assert write(llm, text, stop=["glow"]) == ("a do", "stop", "glow")
    assert write(llm, text, stop=["never", "low"], min_tokens=1)[1:] == ("stop", "low")
