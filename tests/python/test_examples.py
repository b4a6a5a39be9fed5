"""The examples, and what the page on `forerun.kernels` shows, work as written."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from forerun.kernels import SamplingRule

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "transformers_draft_model.py"
RULES = {
    "greedy": SamplingRule(),
    "sampled": SamplingRule(temperature=0.9, top_p=0.95, seed=5),
}


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("transformers_draft_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(noise: float) -> Any:
    """A small model, with some noise added to its weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * noise)
    return model


class CountedPasses:
    """A model that counts its forward passes."""

    def __init__(self, model: Any) -> None:
        self.model, self.forward, self.count = model, model.forward, 0
        self.generation_config = model.generation_config

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self.model(*args, **options)


@pytest.mark.parametrize("rule", RULES)
def test_the_draft_model_changes_only_the_number_of_passes(rule: str, example: Any) -> None:
    target, draft = CountedPasses(make_model(0.0)), make_model(0.01)
    for seed in range(5):
        prompt = torch.randint(3, 131, (7,), generator=torch.Generator().manual_seed(seed))
        target.count = 0
        plain = example.generate(target, prompt, 40, RULES[rule])
        assert target.count == len(plain) - len(prompt)
        target.count = 0
        tokens = example.generate_with_draft(target, draft, prompt, 40, RULES[rule])
        assert tokens.tolist() == plain.tolist()
        assert target.count < 0.7 * (len(plain) - len(prompt))


def test_the_greedy_text_is_that_of_transformers(example: Any) -> None:
    target, draft = make_model(0.0), make_model(0.02)
    prompt = torch.randint(3, 131, (7,), generator=torch.Generator().manual_seed(9))
    expected = target.generate(prompt[None], max_new_tokens=30, do_sample=False)[0]
    assert example.generate_with_draft(target, draft, prompt, 30).tolist() == expected.tolist()


def test_a_text_ends_at_its_end_token(example: Any) -> None:
    target, draft = make_model(0.0), make_model(0.01)
    prompt = torch.randint(3, 131, (7,), generator=torch.Generator().manual_seed(1))
    whole = example.generate(target, prompt, 20)
    target.generation_config.eos_token_id = [2, int(whole[len(prompt) + 6])]
    first = whole[len(prompt) :].tolist().index(int(whole[len(prompt) + 6]))
    for tokens in (
        example.generate(target, prompt, 20),
        example.generate_with_draft(target, draft, prompt, 20),
    ):
        assert tokens.tolist() == whole[: len(prompt) + first + 1].tolist()


def test_the_program_runs(smollm_dir: Path) -> None:
    options = ["--max-tokens", "12"]
    done = subprocess.run(
        [sys.executable, EXAMPLE, smollm_dir, smollm_dir, "The capital of France is", *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "same tokens" in done.stdout
    assert "Paris" in done.stdout


def test_the_block_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(block, "kernels.md", "exec"), {})
    assert capsys.readouterr().out
