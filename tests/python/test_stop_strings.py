"""Stop strings that name special tokens: whole texts and streams end at the same token."""

from __future__ import annotations

from pathlib import Path

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
