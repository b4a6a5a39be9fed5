"""What `forerun train` reckons of a drafter is what the engine makes of its checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_checkpoints import Variation, write_checkpoint  # noqa: E402

from forerun import LLM, SamplingParams  # noqa: E402
from forerun.training import TrainOptions  # noqa: E402
from forerun.training.data import Corpus, Example  # noqa: E402
from forerun.training.evaluation import evaluate  # noqa: E402
from forerun.training.loop import Trainer  # noqa: E402
from forerun.training.target import StateStore, Target  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target whose next token depends mostly on the last, which a drafter can learn."""
    directory = write_checkpoint(Variation("llama", "llama"), tmp_path_factory.mktemp("target"))
    file = directory / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 0.2
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weight *= 8
    save_file(weights, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def data(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the target says greedily."""
    draw = random.Random(5)
    prompts = [[draw.randrange(3, 40) for _ in range(draw.randint(2, 9))] for _ in range(120)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    llm = LLM(directory, skip_tokenizer_init=True, num_threads=1)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    lines = [
        json.dumps({"prompt": prompt, "answer": list(output.outputs[0].token_ids)}) + "\n"
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    file.write_text("".join(lines))
    return file


def passes_of_engine(llm: LLM, examples: list[Example]) -> int:
    """Target passes after the first tokens of the answers, which have to be the same."""
    passes = 0
    for example in examples:
        prompt = list(example.tokens[: example.num_prompt_tokens])
        answer = list(example.tokens[example.num_prompt_tokens :])
        params = SamplingParams(temperature=0, max_tokens=len(answer), ignore_eos=True)
        output = llm.generate([prompt], params, use_tqdm=False)[0]
        assert list(output.outputs[0].token_ids) == answer
        assert output.metrics is not None
        passes += output.metrics.num_target_passes - 1
    return passes


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("eagle3", {"share_head": True, "fc_norm": True, "norm_before_residual": True}),
        ("eagle", {"num_positions": 3}),
        ("mtp", {}),
        ("mlp_speculator", {}),
        ("mlp_speculator", {"freeze_head": True, "loss_vocab_size": 80}),
        ("medusa", {"draft_vocab_size": 100}),
        ("medusa", {"draft_vocab_size": 100, "share_head": True}),
        ("draft_model", {"num_layers": 1, "hidden_size": 32}),
    ],
)
def test_the_engine_accepts_what_training_reckons(
    method: str, changes: dict[str, Any], directory: Path, data: Path, tmp_path: Path
) -> None:
    options = TrainOptions(
        method=method,
        model=directory,
        out=tmp_path,
        data=data,
        steps=40,
        lr=1e-2,
        held_out=0.3,
        batch_tokens=1000,
        **changes,
    )
    target = Target(directory)
    corpus = Corpus(options, data, target.vocab_size)
    trainer = Trainer(target, corpus, options)
    trainer.train()
    head = trainer.head
    # The checkpoint is rounded, so what is judged is rounded too.
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    examples = corpus.held_out(corpus.refresh(), 20)
    store = StateStore(target, list(head.layer_ids), None, head.needs_best)
    reckoned = evaluate(head, store, examples, 1000)
    assert reckoned is not None
    assert reckoned.chain_length > 1.1

    checkpoint = tmp_path / "checkpoint"
    config: dict[str, Any] = {"method": method, "adaptive": False}
    config["num_speculative_tokens"] = head.num_positions
    if method != "mtp":
        config["model"] = str(checkpoint)
    model = checkpoint if method == "mtp" else directory
    llm = LLM(model, skip_tokenizer_init=True, speculative_config=config, num_threads=1)
    num_tokens = sum(len(e) - e.num_prompt_tokens - 1 for e in examples)
    # States are kept in bfloat16 in training and not in the engine: a tie may fall elsewhere.
    measured = num_tokens / passes_of_engine(llm, examples)
    assert measured == pytest.approx(reckoned.chain_length, rel=0.03)
