"""Draft models with a vocabulary of their own: tokens meet by their text, and nothing changes."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Checkpoint
from drafter_checkpoints import VOCAB, Random, make_draft_model, make_target
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from forerun import LLM, CheckpointError, InvalidArgumentError, SamplingParams, _core
from forerun.checkpoints.vocabulary_bridge import make_bridge
from forerun.text.tokenizer import Tokenizer
from forerun.text.vocabulary import Vocabulary
from forerun.tools import cli

SPECIAL = ["<s>", "</s>"]
NAMES = [*SPECIAL, *(chr(0x100 + i) * (1 + i % 3) for i in range(VOCAB - len(SPECIAL)))]
PROMPTS = [[5], [3, 9, 27, 4, 8, 1, 2], [*range(10, 43)]]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, seed=7, max_tokens=40, ignore_eos=True)


def write_tokenizer(directory: Path, names: list[str], **roles: str) -> None:
    """Token i is names[i]."""
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([name for name in names if name.startswith("<")])
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(roles))


def with_vocabulary(made: Checkpoint, names: list[str]) -> Checkpoint:
    """The same model with its tokens renumbered; those that it did not have are random."""
    rng = np.random.default_rng(3)
    tensors = dict(made.tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = rng.standard_normal((len(names), tensors[name].shape[1])) * 0.1
            for i, token in enumerate(names):
                if token in NAMES:
                    rows[i] = tensors[name][NAMES.index(token)]
            tensors[name] = rows
    return Checkpoint({**made.config, "vocab_size": len(names)}, tensors)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target")
    make_target().checkpoint.write(path)
    write_tokenizer(path, NAMES)
    return path


def write_drafter(path: Path, names: list[str], **options: Any) -> Path:
    made = make_draft_model(make_target(), Random(3), **options)
    with_vocabulary(made, names).write(path)
    write_tokenizer(path, names)
    return path


def load(target: Path, model: Path | None, **config: Any) -> LLM:
    given = None if model is None else {"model": model, "adaptive": False, **config}
    return LLM(target, speculative_config=given, skip_tokenizer_init=True, dtype="float32")


def ids(llm: LLM, params: SamplingParams) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def shuffled(names: list[str], seed: int = 1) -> list[str]:
    return random.Random(seed).sample(names, len(names))


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("extra", [0, 17])
def test_numbers_of_tokens_do_not_matter(
    is_tied: bool, extra: int, target: Path, tmp_path: Path
) -> None:
    names = shuffled(NAMES + [f"\u4e00{i}" for i in range(extra)])
    same = load(target, write_drafter(tmp_path / "same", NAMES, is_tied=is_tied))
    other = load(target, write_drafter(tmp_path / "other", names, is_tied=is_tied))
    assert same.drafter is not None
    assert same.drafter.bridge is None
    assert other.drafter is not None
    assert other.drafter.bridge is not None
    for params in (GREEDY, SEEDED):
        assert ids(other, params) == ids(same, params) == ids(load(target, None), params)
    assert other.metrics().spec_decode == same.metrics().spec_decode
    assert other.metrics().spec_decode.num_accepted_tokens > 4


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"draft_tree_width": 3, "num_speculative_tokens": 8},
        {"method": "hybrid"},
        {"draft_sample_method": "probabilistic"},
    ],
)
def test_tokens_that_only_one_has_change_nothing(
    config: dict[str, Any], target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = shuffled([*NAMES[: VOCAB // 2], "\u4e00", "\u4e01"])
    model = write_drafter(tmp_path / "other", names)
    caplog.set_level(logging.INFO, "forerun")
    llm = load(target, model, use_heterogeneous_vocab=True, **config)
    assert f"tokens shared with the target {VOCAB // 2} of its {VOCAB}" in caplog.text
    plain = load(target, None)
    for params in (GREEDY, SEEDED):
        assert ids(llm, params) == ids(plain, params)
    assert llm.metrics().spec_decode.num_accepted_tokens > 0


def test_what_is_drafted_is_shared(target: Path, tmp_path: Path) -> None:
    names = shuffled(NAMES[: VOCAB // 2])
    model = write_drafter(tmp_path / "other", names)
    options = _core.EngineOptions()
    options.model = str(target)
    method = _core.ModelDrafterOptions()
    method.method = _core.ModelMethod.DRAFT_MODEL
    method.model = str(model)
    drafter = load(target, model).drafter
    assert drafter is not None
    assert drafter.bridge is not None
    method.vocabulary_bridge = drafter.bridge
    options.speculative.method = method
    engine = _core.Engine(options, record_draft_logits=True)
    for prompt in PROMPTS:
        engine.submit(prompt, _core.SamplingParams())
    records = []
    while engine.has_unfinished():
        engine.step()
        records += engine.take_draft_records()
    drafted = {token for record in records for token in record.path}
    assert drafted
    assert drafted <= set(range(VOCAB // 2))
    assert {len(record.logits) for record in records} == {VOCAB // 2}


texts = st.text(st.sampled_from("abcd"), min_size=1, max_size=4)
vocabularies = st.lists(texts, min_size=1, max_size=30, unique=True)


@given(
    ours=vocabularies, theirs=vocabularies, our_gap=st.integers(0, 3), their_gap=st.integers(0, 3)
)
def test_tokens_meet_by_their_text(
    ours: list[str], theirs: list[str], our_gap: int, their_gap: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    write_tokenizer(folder / "a", [*SPECIAL, *ours], eos_token="</s>", bos_token="<s>")
    write_tokenizer(folder / "b", ["<end>", *theirs, "<s>"], eos_token="<end>", bos_token="<s>")
    target = Vocabulary(Tokenizer(folder / "a"), 2 + len(ours) + our_gap)
    drafter = Vocabulary(Tokenizer(folder / "b"), 2 + len(theirs) + their_gap)
    bridge = make_bridge(drafter, target)
    assert len(bridge.draft_ids) == 2 + len(ours) + our_gap
    shared = {i + 2 for i, text in enumerate(ours) if text in theirs} | {0, 1}
    assert bridge.shared_ids == sorted(shared)
    assert bridge.draft_ids[:2] == [len(theirs) + 1, 0]
    for i, text in enumerate(ours):
        endings = [other for other in theirs if text.endswith(other)]
        read = bridge.draft_ids[i + 2]
        assert read == (theirs.index(max(endings, key=len)) + 1 if endings else 0)


def test_a_letter_is_read_as_the_token_and_not_as_its_byte(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", ["x", "A"])
    write_tokenizer(tmp_path / "b", ["<0x41>", "A"])
    backend = Backend(models.WordLevel({"<0x41>": 0, "A": 1}, "A"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "b" / "tokenizer.json"))
    a, b = (Vocabulary(Tokenizer(tmp_path / name), 2) for name in "ab")
    assert (make_bridge(b, a).draft_ids, make_bridge(b, a).shared_ids) == ([0, 1], [1])
    assert make_bridge(a, b).shared_ids == [1]


def test_a_special_token_may_be_text_to_the_other(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", ["x", "<turn>", "y"])
    write_tokenizer(tmp_path / "b", ["<pad>", "y", "x"])
    backend = Backend.from_file(str(tmp_path / "b" / "tokenizer.json"))
    backend.add_tokens(["<turn>"])  # no special one
    backend.save(str(tmp_path / "b" / "tokenizer.json"))
    a = Vocabulary(Tokenizer(tmp_path / "a"), 3)
    b = Vocabulary(Tokenizer(tmp_path / "b"), 4)
    assert (a.special, b.special) == ({1}, {0})
    assert make_bridge(b, a).draft_ids == [2, 3, 1]
    assert make_bridge(a, b).shared_ids == [1, 2, 3]


def test_models_with_the_same_tokens_need_no_bridge(target: Path, tmp_path: Path) -> None:
    """Whatever their files say beside, and with ids that no token has."""
    names = ["<s>", "</s>", "A", *NAMES[2 : VOCAB - 5]]
    for path, model in (("a", "target"), ("b", "drafter")):
        made = (
            make_target().checkpoint
            if model == "target"
            else make_draft_model(make_target(), Random(3))
        )
        made.write(tmp_path / path)
        write_tokenizer(tmp_path / path, names, model_type=model)
    file = tmp_path / "b" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert file.read_bytes() != (tmp_path / "a" / "tokenizer.json").read_bytes()
    llm = load(tmp_path / "a", tmp_path / "b", use_heterogeneous_vocab=False)
    assert llm.drafter is not None
    assert llm.drafter.bridge is None


def test_what_cannot_be_bridged_is_refused(target: Path, tmp_path: Path) -> None:
    other = write_drafter(tmp_path / "other", shuffled(NAMES))
    with pytest.raises(InvalidArgumentError, match=f"shares {VOCAB} of the {VOCAB} tokens"):
        load(target, other, use_heterogeneous_vocab=False)
    foreign = write_drafter(tmp_path / "foreign", [f"\u4e00{i}" for i in range(9)])
    with pytest.raises(CheckpointError, match="at least one token"):
        load(target, foreign)
    (foreign / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"for 9, the target has 64.*tokenizer\.json"):
        load(target, foreign)


@pytest.mark.parametrize(
    ("draft_ids", "shared_ids", "message"),
    [
        ([0] * (VOCAB - 1), [0], "63 draft_ids"),
        ([VOCAB] * VOCAB, [0], "draft id 64"),
        ([0] * VOCAB, [3, 3], "shared id 3"),
        ([0] * VOCAB, [VOCAB], "shared id 64"),
        ([0] * VOCAB, [], "no shared_ids"),
    ],
)
def test_the_engine_checks_a_bridge(
    draft_ids: list[int], shared_ids: list[int], message: str, target: Path
) -> None:
    options = _core.EngineOptions()
    options.model = str(target)
    method = _core.ModelDrafterOptions()
    method.method = _core.ModelMethod.DRAFT_MODEL
    method.model = str(target)
    method.vocabulary_bridge = _core.VocabularyBridge(draft_ids, shared_ids)
    options.speculative.method = method
    with pytest.raises(InvalidArgumentError, match=message):
        _core.Engine(options)
    method.method = _core.ModelMethod.MEDUSA
    options.speculative.method = method
    with pytest.raises(InvalidArgumentError, match="vocabulary_bridge"):
        _core.Engine(options)


def test_inspect_tells_what_is_shared(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_drafter(tmp_path / "other", shuffled(NAMES[:40]))
    assert cli.main(["inspect", str(other), "--target", str(target)]) == 0
    assert "by the 40 tokens that it shares with the target's 64" in capsys.readouterr().out
    (other / "tokenizer.json").unlink()
    assert cli.main(["inspect", str(other), "--target", str(target)]) == 1
    assert "vocab_size: the drafter is for 40" in capsys.readouterr().out


def test_gemma_drafts_for_smollm(smollm_dir: Path, gemma_dir: Path) -> None:
    config = {"model": gemma_dir, "num_speculative_tokens": 3, "adaptive": False}
    plain, llm = LLM(smollm_dir), LLM(smollm_dir, speculative_config=config)
    params = SamplingParams(temperature=0, max_tokens=32)
    prompts = ["The capital of France is", "def add(a, b):\n    return"]
    expected = [o.outputs[0].token_ids for o in plain.generate(prompts, params, use_tqdm=False)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == expected
    # Chance would be one of tens of thousands.
    counters = llm.metrics().spec_decode
    assert counters.num_accepted_tokens > 0.2 * counters.num_drafts
