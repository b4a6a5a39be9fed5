"""What writes examples: torch in slots, against transformers; and prompts from a file."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_checkpoints import SIZES, Variation, write_checkpoint  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from forerun.errors import CheckpointError, InvalidArgumentError  # noqa: E402
from forerun.training import TrainOptions, generate, torch_writer  # noqa: E402
from forerun.training.prompts import read_prompts  # noqa: E402
from forerun.training.torch_writer import TorchWriter  # noqa: E402
from forerun.training.writing import EngineWriter, TurnEnd, WriteRequest, Written  # noqa: E402

VOCAB, EOS = SIZES["vocab_size"], SIZES["eos_token_id"]
FAMILIES = [
    Variation("llama", "llama"),
    Variation("qwen3", "qwen3"),
    Variation("multi_query", "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
]


def random_prompts(count: int, longest: int, seed: int = 3) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, longest))] for _ in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda v: v.name)
def test_greedy_texts_are_those_of_transformers(
    family: Variation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_checkpoint(family, tmp_path)
    # Several capacities, groups of prompts that are read together, and slots that are filled again.
    monkeypatch.setattr(torch_writer, "_CAPACITY_STEP", 24)
    monkeypatch.setattr(torch_writer, "_PREFILL_TOKENS", 40)
    prompts = random_prompts(23, 30)
    lengths = [1 + index % 37 for index in range(len(prompts))]
    requests = [
        WriteRequest(p, 0.0, 0.02, n, seed=0) for p, n in zip(prompts, lengths, strict=True)
    ]
    texts = TorchWriter(directory, "cpu", most_slots=4).write(requests, 0, TurnEnd())
    # A token that comes often ends the texts from here on.
    end = Counter(token for text in texts for token in text.token_ids).most_common(1)[0][0]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": [EOS, end]}))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    written = TorchWriter(directory, "cpu", most_slots=4).write(requests, 0, None)
    for prompt, length, text in zip(prompts, lengths, written, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=[EOS, end],
        )[0, len(prompt) :].tolist()
        assert text.token_ids == expected
        assert text.is_finished == (expected[-1] in (EOS, end))
    assert 0 < sum(text.is_finished for text in written) < len(written)


def test_draws_follow_the_filtered_distribution(tmp_path: Path) -> None:
    directory = write_checkpoint(FAMILIES[0], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt, temperature, min_p, count = [5, 9, 77], 0.8, 0.05, 6000
    logits = model(torch.tensor([prompt])).logits[0, -1].double() / temperature
    probabilities = logits.softmax(-1)
    probabilities[probabilities < min_p * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    writer = TorchWriter(directory, "cpu", most_slots=500)
    requests = [WriteRequest(prompt, temperature, min_p, 1, seed=0)] * count
    counts = Counter(text.token_ids[0] for text in writer.write(requests, 11, None))
    kept = np.flatnonzero(probabilities.detach().numpy())
    assert len(kept) > 3
    assert set(counts) <= set(kept.tolist())
    seen = np.array([counts[int(token)] for token in kept])
    expected = probabilities.detach().numpy()[kept] * count
    degrees = len(kept) - 1
    # Five deviations of chi-square above its mean.
    assert ((seen - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5


def test_the_same_seed_writes_the_same_texts(tmp_path: Path) -> None:
    directory = write_checkpoint(FAMILIES[0], tmp_path)
    requests = [WriteRequest(p, 1.0, 0.0, 20, seed=0) for p in random_prompts(9, 12)]
    writer = TorchWriter(directory, "cpu", most_slots=3)
    first, again, other = (writer.write(requests, seed, None) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    # Draws of one text do not repeat those of another.
    twins = writer.write([requests[0]] * 8, 1, None)
    assert len({tuple(text.token_ids) for text in twins}) > 1


def test_an_end_of_turn_replaces_the_models_own(tmp_path: Path) -> None:
    directory = write_checkpoint(FAMILIES[0], tmp_path)
    requests = [WriteRequest(p, 1.0, 0.0, 40, seed=0) for p in random_prompts(30, 12)]
    writer = TorchWriter(directory, "cpu")
    for text in writer.write(requests, 5, TurnEnd()):
        assert len(text.token_ids) == 40
        assert not text.is_finished
    texts = writer.write(requests, 5, TurnEnd(token_id=50))
    assert any(text.is_finished for text in texts)
    for text in texts:
        assert text.is_finished == (text.token_ids[-1] == 50)
        assert 50 not in text.token_ids[:-1]


def test_a_window_that_texts_outgrow_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(Variation("mistral", "mistral", {"sliding_window": 8}), tmp_path)
    writer = TorchWriter(directory, "cpu")
    with pytest.raises(InvalidArgumentError, match=r"max_length: got texts of 9; .* at most 8"):
        writer.write([WriteRequest([3, 4], 0.0, 0.0, 7, 0)], 0, None)
    [text] = writer.write([WriteRequest([3, 4], 0.0, 0.0, 6, 0)], 0, TurnEnd())
    assert len(text.token_ids) == 6


# --- prompts ---


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "expected a JSON object"),
        ("[" * 200_000, "levels deep"),
        ('{"prompt": "\\ud83d"}', "expected a JSON object"),
        ('{"question": "x"}', "'prompt'"),
        ('{"prompt": [1, "x"]}', "'prompt'"),
        ('{"turns": []}', "'prompt'"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "'prompt'"),
        ('{"prompt": "words"}', "token ids"),
    ],
)
def test_a_bad_prompt_is_named(line: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [4, 5]}\n\n' + line + "\n")
    with pytest.raises(CheckpointError, match=r"prompts\.jsonl:3") as error:
        read_prompts(file, None, 10)
    assert problem in str(error.value)


def test_prompts_are_checked_and_may_have_any_character(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": [4], "note": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    assert read_prompts(file, None, 9, VOCAB) == [[4]]
    for ids in ([VOCAB], [3, -1]):
        file.write_text(json.dumps({"prompt": ids}) + "\n")
        with pytest.raises(CheckpointError, match=rf"prompts\.jsonl:1.*below {VOCAB}"):
            read_prompts(file, None, 9, VOCAB)
    file.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(CheckpointError, match=r"prompts\.jsonl:1"):
        read_prompts(file, None, 9, VOCAB)


def test_prompts_that_leave_no_room_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [4, 5, 6]}\n{"prompt": [7]}\n{"prompt": []}\n')
    assert read_prompts(file, None, 2) == [[7]]
    with pytest.raises(InvalidArgumentError, match="at most 0 tokens"):
        read_prompts(file, None, 0)


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., list[dict[str, list[int]]]]:
    directory = write_checkpoint(FAMILIES[0], tmp_path / "target")
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in random_prompts(10, 6)))

    def write(name: str, **options: Any) -> list[dict[str, list[int]]]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        written = generate.write_examples(
            TrainOptions(method="eagle", model=directory, out=out, prompts=file, **options)
        )
        return [json.loads(line) for line in written.read_text().splitlines()]

    return write


@pytest.mark.parametrize("device", ["cpu", "cpu:0"], ids=["engine", "torch"])
def test_the_target_answers_given_prompts(
    device: str, asked: Callable[..., list[dict[str, list[int]]]], tmp_path: Path
) -> None:
    options = {"device": device, "max_length": 40, "max_answer_tokens": 9}
    lines = asked("out", num_examples=20, **options)
    assert lines == asked("again", num_examples=20, **options)
    prompts = random_prompts(10, 6)
    assert Counter(tuple(line["prompt"]) for line in lines) == {tuple(p): 2 for p in prompts}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float32)
    greedy: Counter[tuple[int, ...]] = Counter()
    for line in lines:
        assert 2 <= len(line["answer"]) <= 9
        expected = model.generate(
            torch.tensor([line["prompt"]]), max_new_tokens=9, do_sample=False, pad_token_id=0
        )[0, len(line["prompt"]) :].tolist()
        greedy[tuple(line["prompt"])] += line["answer"] == expected
    # Of two answers one is the most probable; a draw may happen to be it too.
    assert set(greedy.values()) <= {1, 2}
    assert 10 <= greedy.total() < 16
    # More of them go on where these end, whatever an interrupted run left.
    with (tmp_path / "out" / "data.jsonl").open("a") as file:
        file.write('{"prompt": [3, 4')
    more = asked("out", num_examples=23, **options)
    assert more[:20] == lines
    assert len(more) == 23


def test_prompts_without_an_answer_are_passed_over(
    asked: Callable[..., list[dict[str, list[int]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = {tuple(prompt) for prompt in random_prompts(10, 6)[:6]}
    write = TorchWriter.write

    def say_nothing(self: TorchWriter, requests: list[WriteRequest], *rest: Any) -> list[Written]:
        written = write(self, requests, *rest)
        return [
            Written([EOS], True) if tuple(request.prompt) in dropped else text
            for request, text in zip(requests, written, strict=True)
        ]

    monkeypatch.setattr(TorchWriter, "write", say_nothing)
    lines = asked("out", num_examples=6, device="cpu:0", max_length=40)
    assert len(lines) == 6
    assert len({tuple(line["prompt"]) for line in lines}) == 4


def test_what_an_interrupted_run_goes_on_with_is_what_it_would_have_written(
    asked: Callable[..., list[dict[str, list[int]]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(generate._ROUND, "cpu", 4)
    dropped = {tuple(prompt) for prompt in random_prompts(10, 6)[::3]}
    write, calls_left = EngineWriter.write, [3]

    def interrupted(self: EngineWriter, requests: list[WriteRequest], *rest: Any) -> list[Written]:
        calls_left[0] -= 1
        if calls_left[0] < 0:
            raise KeyboardInterrupt
        written = write(self, requests, *rest)
        return [
            Written([EOS], True) if tuple(request.prompt) in dropped else text
            for request, text in zip(requests, written, strict=True)
        ]

    monkeypatch.setattr(EngineWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asked("parts", num_examples=25, max_length=40)
    with (tmp_path / "parts" / "data.jsonl").open("a") as file:
        file.write(
            '{"prompt": [3], "answer": [4, 5]}\n{"prompt": [3'
        )  # of a round that was cut off
    calls_left[0] = 100
    lines = asked("parts", num_examples=25, max_length=40)
    assert lines == asked("whole", num_examples=25, max_length=40)


def test_lines_that_were_made_with_other_options_are_not_taken(
    asked: Callable[..., list[dict[str, list[int]]]], tmp_path: Path
) -> None:
    asked("out", num_examples=2, max_length=40)
    for name, value in [("seed", 1), ("max_length", 30), ("max_answer_tokens", 5)]:
        with pytest.raises(InvalidArgumentError, match=name):
            asked("out", **{"num_examples": 2, "max_length": 40, name: value})
    lines = asked("out", num_examples=3, max_length=40)
    assert len(lines) == 3
    about = tmp_path / "out" / "data.json"
    for text in (about.read_text()[:40], "[]", None):
        about.unlink() if text is None else about.write_text(text)
        with pytest.raises(InvalidArgumentError, match="out: "):
            asked("out", num_examples=4, max_length=40)
    # Without lines there is nothing to go on from.
    (tmp_path / "out" / "data.jsonl").unlink()
    assert asked("out", num_examples=3, max_length=40, seed=1) != lines


def test_prompts_and_data_exclude_each_other(tmp_path: Path) -> None:
    directory = write_checkpoint(FAMILIES[0], tmp_path / "target")
    file = tmp_path / "lines.jsonl"
    file.write_text('{"prompt": [3]}\n')
    for name, options in [
        ("prompts", {"prompts": file, "data": file}),
        ("prompts", {"prompts": tmp_path / "none"}),
        ("max_answer_tokens", {"max_answer_tokens": 9, "data": file}),
    ]:
        with pytest.raises(InvalidArgumentError, match=name):
            TrainOptions(method="eagle", model=directory, out=tmp_path / "out", **options)
