"""`forerun bench --profile`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forerun.tools import cli


def test_every_pass_is_taken_apart(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    arguments = ["--profile", "--rounds", "2", "--max-model-len", "80", "--output", str(output)]
    assert cli.main(["bench", str(tiny_dir), *arguments]) == 0
    shown = capsys.readouterr().out
    passes = json.loads(output.read_text())
    # The contexts of 600 and more, and prompts of 512 tokens, have no room.
    assert [(each["num_rows"], each["num_context"]) for each in passes] == [
        (1, 50),
        (5, 50),
        (16, 50),
    ]
    for each in passes:
        assert f"{each['num_rows']} row" in shown
        assert min(each["seconds"], each["read_rate"], each["arithmetic_rate"]) > 0
        operations = {one["name"]: one for one in each["operations"]}
        assert {"q k v o", "gate up", "down", "head", "attention", "norms"} <= operations.keys()
        assert sum(one["seconds"] for one in operations.values()) == pytest.approx(each["seconds"])
        assert sum(one["share"] for one in operations.values()) == pytest.approx(1)
        assert operations["head"]["share_of_read"] > 0
        assert operations["attention"]["share_of_read"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts.jsonl", "--profile"], "prompts: got prompts.jsonl"),
        (["--profile", "--methods", "none"], "methods: got none"),
        (["--profile", "--max-tokens", "9"], "max_tokens: got 9"),
        (["--profile", "--adaptive"], "adaptive: got True"),
        (["--profile", "--rounds", "0"], "rounds: got 0"),
        (["--profile", "--max-model-len", "65"], "max_model_len: got 65"),
        (["--profile", "--quantization", "int9"], "quantization"),
        (["--profile", "--output", "missing/profile.json"], "output: got missing/profile.json"),
    ],
)
def test_what_it_cannot_heed_is_named(
    arguments: list[str], message: str, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(tiny_dir), *arguments]) == 2
    assert message in capsys.readouterr().err
