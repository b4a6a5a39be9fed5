"""`forerun selftest`: what it measures is what happens, and what it says is wrong is wrong."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Checkpoint
from drafter_checkpoints import HIDDEN, NUM_LAYERS, make_target
from test_broken_drafters import drafter

import forerun
from forerun import LLM, InvalidArgumentError, SamplingParams, SelftestReport
from forerun.tools import cli

PROMPTS = [[5], [3, 9, 27, 4, 8, 1, 2], [*range(10, 43)], [60, 2, 9]]
IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target().checkpoint.write(tmp_path_factory.mktemp("target"))


def run(target: Path, directory: Path | None, **config: Any) -> SelftestReport:
    return forerun.selftest(
        target,
        directory,
        prompts=PROMPTS,
        max_tokens=30,
        speculative_config=config,
        dtype="float32",
    )


@functools.cache
def sharp() -> Checkpoint:
    """A head that takes one auxiliary hidden state as it is to the target's final norm and output.

    From the last layer's state that tells the token which the row knows already; its rows are moved
    to the successors, so that it tells the next one.
    """
    made = drafter("eagle3 one auxiliary state as wide as the drafter")
    target = make_target()
    for name in made.tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            made.tensors[name] = made.tensors[name] * 0.0
    made.tensors["fc.weight"] = np.eye(HIDDEN)
    kept = np.arange(len(made.tensors["d2t"])) + made.tensors["d2t"]
    lm_head = target.lm_head.copy()
    lm_head[target.successor] = target.lm_head
    made.tensors["norm.weight"] = target.final_norm
    made.tensors["lm_head.weight"] = lm_head[kept]
    return made


def test_a_report_holds_what_plain_use_measures(target: Path, tmp_path: Path) -> None:
    directory = drafter("medusa research").write(tmp_path)
    report = run(target, directory, num_speculative_tokens=3)
    assert report.method == "medusa"
    [trial] = report.trials
    assert trial.same_tokens
    llm = LLM(
        target,
        speculative_config={"model": directory, "num_speculative_tokens": 3, "adaptive": False},
        skip_tokenizer_init=True,
        dtype="float32",
    )
    llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)
    assert trial.spec_decode == llm.metrics().spec_decode
    assert len(trial.acceptance_rate_per_pos) == 3
    assert 0 < trial.draft_share < trial.model_share < 1
    assert trial.draft_share + trial.model_share + trial.verify_share <= 1.0
    assert f"{trial.mean_acceptance_length:.2f}" in str(report)


def test_what_an_eagle3_checkpoint_leaves_open_is_tried(target: Path, tmp_path: Path) -> None:
    directory = drafter("eagle3 plain").write(tmp_path / "drafter")
    names = [trial.name for trial in run(target, directory).trials[:4]]
    assert names == [
        "as given",
        "layer ids [3, 4, 4]",
        "norm_before_residual True",
        "norm_output True",
    ]
    given = {"norm_output": False, "norm_before_residual": False}
    ids = {"aux_hidden_state_layer_ids": [2, 3, 3]}
    assert [trial.name for trial in run(target, directory, **given, **ids).trials] == ["as given"]
    made = drafter("eagle3 ids of left layers").write(tmp_path / "left")
    assert run(target, made, **given).trials[1].options == {"aux_hidden_state_layer_ids": [1, 2, 4]}
    made = drafter("eagle3 speculators plain")
    made.config[IDS] = [1, 2, 4]
    options = run(target, made.write(tmp_path / "entered"), **given).trials[1].options
    assert options == {"aux_hidden_state_layer_ids": [2, 3, 5]}
    made = drafter("eagle3 ids of entered layers")
    made.config[IDS] = [0, 4, NUM_LAYERS]  # nothing comes after the last layer
    assert len(run(target, made.write(tmp_path / "last"), **given).trials) == 1


def test_the_right_layer_ids_are_found(target: Path, tmp_path: Path) -> None:
    made = sharp()
    made.config = {**made.config, IDS: [NUM_LAYERS - 1]}
    report = run(target, made.write(tmp_path), norm_output=False, norm_before_residual=False)
    assert report.best.options == {"aux_hidden_state_layer_ids": [NUM_LAYERS]}
    assert "aux_hidden_state_layer_ids=[6] makes the mean acceptance length" in str(report)


def test_a_head_with_random_weights_is_reported(target: Path, tmp_path: Path) -> None:
    made = drafter("eagle3 plain")
    made.tensors["lm_head.weight"] = np.roll(made.tensors["lm_head.weight"], 7, axis=0)
    report = run(target, made.write(tmp_path))
    assert not report.ok
    assert report.trials[0].same_tokens
    [problem] = report.problems
    assert problem.startswith("position 1 is accepted in")
    assert any("another target" in hint for hint in report.advice)
    assert str(report).endswith("not ok")


def test_a_head_with_wrong_feedback_is_reported(target: Path, tmp_path: Path) -> None:
    made = drafter("medusa research")
    for head in (1, 2, 3):
        made.tensors[f"{head}.1.weight"] = np.roll(made.tensors[f"{head}.1.weight"], 7, axis=0)
    report = run(target, made.write(tmp_path))
    [problem] = report.problems
    assert "position 2 in 0%" in problem
    assert report.advice == ["it may be that its later heads were trained less than its first"]


def test_layers_of_the_targets_own_are_tested_without_a_drafter(tmp_path: Path) -> None:
    from drafter_rows import ROWS

    directory, _ = next(row for row in ROWS if row.name == "mtp mimo").write(tmp_path)
    report = run(directory, None)
    assert (report.method, report.drafter) == ("mtp", str(directory))
    assert report.trials[0].acceptance_rate_per_pos[0] > 0.2
    assert [trial.name for trial in report.trials] == ["as given", "norm_target_state True"]
    assert [trial.options for trial in report.trials[1:]] == [{"norm_target_state": True}]
    [given] = run(directory, None, norm_target_state=False).trials
    assert given.spec_decode.num_accepted_tokens == report.trials[0].spec_decode.num_accepted_tokens


def test_a_target_is_its_own_perfect_draft_model(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "the low the low"}, {"turns": ["hello", "more"], "category": "chat"}]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    arguments = ["selftest", str(tiny_dir), str(tiny_dir), "--max-tokens", "10"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--prompts", str(prompts), "--num-speculative-tokens", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nok\n") == 2
    assert "as given                    3.00  1.00  1.00   yes" in shown
    assert "draft_model (embedding, layers and final norm)" in shown


def test_the_exit_status_is_1_if_something_is_wrong(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from drafter_checkpoints import Random

    llm = LLM(tiny_dir)
    config = json.loads((tiny_dir / "config.json").read_text())
    hidden, vocab = config["hidden_size"], llm.limits.vocab_size
    random = Random(5)
    heads = {"0.0.linear.weight": random.matrix(hidden, hidden)}
    heads["0.1.weight"] = random.matrix(vocab, hidden)
    directory = Checkpoint({"medusa_num_heads": 1}, heads).write(tmp_path / "heads")
    assert cli.main(["selftest", str(tiny_dir), str(directory), "--max-tokens", "9"]) == 1
    assert "wrong: position 1" in capsys.readouterr().out
    assert cli.main(["selftest", str(tiny_dir), str(directory), "--method", "eagle"]) == 2
    assert "method: got eagle; expected medusa" in capsys.readouterr().err
    assert cli.main(["selftest", str(tiny_dir), str(directory), "--norm-output"]) == 2
    assert "norm_output: got True; expected None: only eagle3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"method": "suffix"}, "speculative_config"),
        ({"draft_tree_width": 2}, "speculative_config"),
        ({"method": "hybrid"}, "speculative_config"),
        ({"method": "magic"}, "method"),
    ],
)
def test_probabilistic_drafts_other_than_chains_of_models_are_refused(
    config: dict[str, Any], field: str, target: Path
) -> None:
    drafter = None if config.get("method") == "suffix" else target
    with pytest.raises(InvalidArgumentError) as error:
        run(target, drafter, **config)
    assert error.value.field == field
    with pytest.raises(InvalidArgumentError, match="prompts"):
        forerun.selftest(target, target, prompts=[])
