"""The EAGLE-3 head that the repository keeps, on the model that it was made for."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from forerun import LLM, SamplingParams
from forerun.checkpoints.inspection import inspect

BENCH = Path(__file__).parents[2] / "bench"
HEAD = BENCH / "heads" / "smollm2-135m-eagle3"
QUESTIONS = ("What is a prime number?", "Write a short story about a lighthouse.")
MIB = 1 << 20


@pytest.mark.parametrize("shape", [{}, {"draft_tree_width": 3}])
def test_drafts_are_the_models_own_tokens(smollm_dir: Path, shape: dict[str, int]) -> None:
    config = {"model": str(HEAD), "num_speculative_tokens": 4, "adaptive": False, **shape}
    plain, drafting = LLM(smollm_dir), LLM(smollm_dir, speculative_config=config)
    params = SamplingParams(temperature=0, max_tokens=64)
    passes = tokens = 0
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        expected = plain.chat(messages, params)[0].outputs[0].token_ids
        output = drafting.chat(messages, params)[0]
        assert output.outputs[0].token_ids == expected
        tokens += len(expected)
        passes += output.metrics.num_target_passes
    # Chance would be 1 of 12288.
    assert tokens / passes > 1.3


def test_it_is_found_by_its_content_and_is_small() -> None:
    assert inspect(HEAD).method == "eagle3"
    assert sum(file.stat().st_size for file in HEAD.iterdir()) < 12 * MIB


@pytest.mark.parametrize("way", [["--rounds", "2"], ["--together"]])
def test_the_benchmark_counts_what_the_engine_counts(
    way: list[str], smollm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [{"turns": [question], "category": "chat"} for question in QUESTIONS]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in cases))
    config = {"model": str(HEAD), "num_speculative_tokens": 4, "adaptive": False}
    arguments = [str(smollm_dir), str(file), "--max-tokens", "24", *way]
    main = runpy.run_path(str(BENCH / "drafters.py"))["main"]
    main([*arguments, "--drafter", f"chain={json.dumps(config)}"])
    header, row, mean, *costs = capsys.readouterr().out.splitlines()
    assert header.split() == ["category", "chain", "same", "ids"]

    llm = LLM(smollm_dir, speculative_config=config)
    accepted = decoded = 0
    for question in QUESTIONS:
        output = llm.chat(
            [{"role": "user", "content": question}], SamplingParams(temperature=0, max_tokens=24)
        )[0]
        accepted += output.metrics.spec_decode.num_accepted_tokens
        decoded += len(output.outputs[0].token_ids) - 1
    length = f"{decoded / (decoded - accepted):.2f}"
    assert row.split()[:2] == ["chat", length]
    assert row.endswith("yes")
    assert mean.split() == ["mean", length, "tokens"]
    assert len(costs) == (0 if "--together" in way else 1)
    assert row.count("x") == (0 if "--together" in way else 2)


def test_the_grid_keeps_what_it_measured(
    smollm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    main = runpy.run_path(str(BENCH / "drafter_grid.py"))["main"]
    file, state_file = tmp_path / "prompts.jsonl", tmp_path / "state.json"
    file.write_text(json.dumps({"turns": [QUESTIONS[0]], "category": "chat"}) + "\n")
    arguments = [str(smollm_dir), str(file), "--drafter", 'found={"method": "suffix"}']
    arguments += ["--batches", "1", "3", "--max-tokens", "8", "--temperatures", "0"]
    arguments += ["--categories", "chat", "--state", str(state_file)]
    main(arguments)
    assert capsys.readouterr().out.splitlines()[0].split() == ["found"]
    state = json.loads(state_file.read_text())
    assert list(state) == ["chat, 1, 0", "chat, 3, 0"]
    for cell in state.values():
        assert list(cell) == ["plain", "found"]
        for [(whole, after)] in cell.values():
            assert 0 < after < whole

    state["chat, 1, 0"] = {"plain": [[2, 1], [4, 3]], "found": [[4, 1], [8, 1]]}
    state["chat, 3, 0"] = {"plain": [[3, 1]], "found": [[3, 1]]}
    state_file.write_text(json.dumps(state))
    main(arguments)
    _, *lines, below = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines] == [
        ["0.50x", "2.00x"],
        ["0.50x", "2.00x"],
        ["1.00x", "1.00x"],
        ["1.00x", "1.00x"],
    ]
    assert below == "below: chat, 1, 0, found: 0.500x, 2.000x"

    main([*arguments, "--rounds", "2"])
    counts = [len(cell["found"]) for cell in json.loads(state_file.read_text()).values()]
    assert counts == [2, 2]
    with pytest.raises(SystemExit, match="a cell of the engines plain, found"):
        main([*arguments, "--drafter", "again=null"])
    with pytest.raises(SystemExit):
        main([*arguments, "--rounds", "0"])
    assert "--rounds: got 0, valid: at least 1" in capsys.readouterr().err
