"""Drafters of every format through the LLM: found by their content, and nothing changes."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Checkpoint
from drafter_checkpoints import VOCAB, make_target
from drafter_rows import ROWS, Row
from safetensors.numpy import load_file
from test_broken_drafters import drafter

from forerun import LLM, CheckpointError, SamplingParams
from forerun.checkpoints import loading
from forerun.checkpoints.inspection import inspect

PROMPTS = [[5], [3, 9, 27, 4, 8, 1, 2], [*range(10, 43)]]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, seed=7, max_tokens=24, ignore_eos=True)
Ids = list[list[int]]

# One of each kind that drafts chains and trees from a state of its own.
SOME = ["draft_model", "eagle bias", "eagle3 two layers", "medusa vllm token_map", "mtp mimo"]
EVERY_METHOD = [*SOME, "mlp_speculator tied", "mlp_speculator arctic sum_lstm"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.getbasetemp() / "forerun-cache"
    monkeypatch.setenv("FORERUN_CACHE", str(path))
    return path


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="forerun-speculative-"))


@functools.cache
def directories(row: Row) -> tuple[Path, Path | None]:
    return row.write(folder())


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def load(row: Row, config: dict[str, Any] | None = None, **options: Any) -> LLM:
    """The row's drafter with its target; a config of None decodes plainly."""
    target, model = directories(row)
    if config is not None:
        found = {"method": "mtp"} if model is None else {"model": model}
        config = {**found, "adaptive": False, **row.options, **config}
    return LLM(
        target, speculative_config=config, skip_tokenizer_init=True, dtype="float32", **options
    )


def ids(llm: LLM, params: SamplingParams | list[SamplingParams]) -> Ids:
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@functools.cache
def plain(target: Path) -> tuple[Ids, Ids]:
    llm = LLM(target, skip_tokenizer_init=True, dtype="float32")
    return ids(llm, GREEDY), ids(llm, SEEDED)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_a_drafter_is_detected_and_does_not_change_the_output(row: Row) -> None:
    llm = load(row, {"num_speculative_tokens": row.num_tokens})
    assert llm.drafter is not None
    assert llm.drafter.method == row.method
    assert (ids(llm, GREEDY), ids(llm, SEEDED)) == plain(directories(row)[0])
    counters = llm.metrics().spec_decode
    assert counters.num_accepted_tokens > 0
    assert counters.num_draft_tokens > 0
    assert len(counters.num_accepted_tokens_per_pos) == row.num_tokens


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_requests_of_a_mixed_batch_get_the_tokens_they_would_get_alone(name: str) -> None:
    row = row_named(name)
    params = [
        GREEDY,
        SamplingParams(temperature=0.8, seed=3, top_k=9, max_tokens=20, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=9, speculative=False, repetition_penalty=1.3),
    ]
    options = {"max_num_seqs": 2, "max_num_batched_tokens": 11}
    expected = ids(load(row), params)
    assert ids(load(row, {}, **options), params) == expected
    llm = load(row, {"adaptive": True}, **options)
    assert ids(llm, params) == expected  # and once more, from cached prompts
    assert ids(llm, params) == expected
    assert llm.metrics().num_held_blocks == 0


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_trees_do_not_change_the_output_and_accept_more(name: str) -> None:
    row = row_named(name)
    lengths = []
    chain = {"num_speculative_tokens": 2}
    tree = {"draft_tree_width": 3, "draft_tree_depth": 2, "num_speculative_tokens": 9}
    fixed_chain = {"speculative_token_tree": "[(0,), (0, 0)]"}
    fixed_tree = {"speculative_token_tree": [[0], [1], [2], [0, 0], [0, 1], [1, 0]]}
    for config in (chain, fixed_chain, fixed_tree, tree):
        llm = load(row, config)
        assert (ids(llm, GREEDY), ids(llm, SEEDED)) == plain(directories(row)[0])
        lengths.append(llm.metrics().spec_decode.mean_acceptance_length)
    assert lengths[0] == lengths[1] < lengths[2] <= lengths[3]


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_hybrids_do_not_change_the_output_and_accept_more(name: str) -> None:
    row = row_named(name)
    config = {"method": "hybrid", "suffix_decoding_max_spec_factor": 2.0}
    for more in ({}, {"draft_tree_width": 2}, {"num_speculative_tokens": 5}):
        llm = load(row, {**config, **more})
        assert llm.drafter is not None
        assert llm.drafter.method == row.method
        for _ in range(2):  # the second time the index knows the answers
            before = llm.metrics().spec_decode
            assert (ids(llm, GREEDY), ids(llm, SEEDED)) == plain(directories(row)[0])
        after = llm.metrics().spec_decode
        drafts = after.num_drafts - before.num_drafts
        accepted = after.num_accepted_tokens - before.num_accepted_tokens
        assert accepted / drafts > before.num_accepted_tokens / before.num_drafts


@pytest.mark.parametrize("more", [{}, {"draft_tree_width": 3}, {"method": "hybrid"}])
def test_structured_outputs_do_not_change_with_a_drafter(
    tiny_dir: Path, more: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    params = [
        SamplingParams(temperature=0, max_tokens=30, structured_outputs={"regex": "[ab]{5,9}c"}),
        SamplingParams(temperature=1, seed=2, max_tokens=30, structured_outputs={"json": schema}),
        SamplingParams(temperature=0, max_tokens=12),
    ]
    prompts = ["hello", "the low", "12345"]
    expected = [
        output.outputs[0].text for output in LLM(tiny_dir).generate(prompts, params, use_tqdm=False)
    ]
    llm = LLM(tiny_dir, speculative_config={"model": tiny_dir, "adaptive": False, **more})
    got = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].text for output in got] == expected
    assert llm.metrics().spec_decode.num_accepted_tokens > 0


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("name", EVERY_METHOD)
def test_drawn_drafts_give_valid_output(name: str, acceptance: str) -> None:
    row = row_named(name)
    config = {"draft_sample_method": "probabilistic", "acceptance_method": acceptance}
    llm = load(row, {**config, "num_speculative_tokens": 3})
    assert ids(llm, GREEDY) == plain(directories(row)[0])[0]
    drawn = ids(llm, SEEDED)
    assert [len(tokens) for tokens in drawn] == [24] * len(PROMPTS)
    assert all(0 <= token < VOCAB for tokens in drawn for token in tokens)
    if acceptance == "coupled":
        assert drawn == plain(directories(row)[0])[1]
    again = load(row, {**config, "num_speculative_tokens": 3})
    ids(again, GREEDY)
    assert ids(again, SEEDED) == drawn
    assert llm.metrics().spec_decode.num_accepted_tokens > 0


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("eagle3 speculators plain", {}, 4),
        ("eagle3 plain", {}, None),
        ("eagle3 speculators plain", {"draft_tree_width": 2}, None),
        ("mlp_speculator untied", {}, 3),
        ("mlp_speculator fewer than n_predict", {}, 5),
        ("mlp_speculator fewer than n_predict", {"num_speculative_tokens": 2}, 2),
        ("medusa research", {}, 4),
        ("draft_model", {}, None),
        ("mlp_speculator untied", {"method": "hybrid"}, 24),
    ],
)
def test_the_default_draft_length_is_the_checkpoints(
    name: str, given: dict[str, Any], expected: int | None
) -> None:
    usual = 16 if "draft_tree_width" in given else 4
    counters = load(row_named(name), given)
    ids(counters, GREEDY)
    per_pos = counters.metrics().spec_decode.num_accepted_tokens_per_pos
    assert len(per_pos) == (usual if expected is None else expected)


def test_the_log_has_the_method_and_the_evidence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "forerun"):
        load(row_named("eagle3 ids of entered layers"), {"norm_output": True})
    [line] = [record.getMessage() for record in caplog.records]
    assert "\n" not in line
    for part in (
        "method eagle3 (a hidden_norm in layer 0",
        "layer ids [0, 4, 6]",
        "draft vocabulary 40",
        "norm_output True",
        "open: layer ids may count what enters a layer",
    ):
        assert part in line
    assert "hybrid" not in line
    caplog.clear()
    with caplog.at_level(logging.INFO, "forerun"):
        load(row_named("mtp qwen"), {"method": "hybrid"})
    assert "hybrid of an index and method mtp (the target has mtp.fc.weight)" in caplog.text


@pytest.mark.parametrize("name", ["eagle", "eagle3", "medusa", "mtp", "draft_model"])
def test_a_method_that_is_given_and_right_is_accepted(name: str) -> None:
    row = next(row for row in ROWS if row.method == name)
    assert load(row, {"method": name}).drafter.method == name  # type: ignore[union-attr]


def test_a_target_is_a_drafter_of_its_own_kind_only() -> None:
    target, _ = directories(row_named("mtp mimo"))
    config = {"model": target}
    llm = LLM(target, speculative_config=config, skip_tokenizer_init=True)
    assert llm.drafter is not None
    assert (llm.drafter.method, llm.drafter.directory) == ("mtp", None)
    copy = folder() / "copy of mtp mimo"
    shutil.copytree(target, copy)
    config = {"model": copy, "method": "mimo_mtp"}
    llm = LLM(target, speculative_config=config, skip_tokenizer_init=True)
    assert llm.drafter is not None
    assert (llm.drafter.method, llm.drafter.directory) == ("mtp", copy)
    as_model = {
        "model": target,
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "adaptive": False,  # it is as slow as the target
    }
    llm = LLM(target, speculative_config=as_model, skip_tokenizer_init=True, dtype="float32")
    assert ids(llm, GREEDY) == plain(target)[0]
    assert llm.metrics().spec_decode.acceptance_rate == 1.0


def pickled(file: str = "pytorch_model.bin", dtype: str = "float32") -> Checkpoint:
    return drafter("eagle3 plain").stored_as(file=file, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pickled_weights_become_the_same_safetensors(
    dtype: str, tmp_path: Path, cache: Path
) -> None:
    directory = pickled(dtype=dtype).write(tmp_path / "drafter")
    expected = drafter("eagle3 plain").stored_as(dtype=dtype).write(tmp_path / "expected")
    made = loading.as_safetensors(directory)
    assert made.parent == cache
    assert (made / "config.json").read_text() == (directory / "config.json").read_text()
    assert str(inspect(made)).split(":", 1)[1] == str(inspect(expected)).split(":", 1)[1]
    import torch
    from safetensors.torch import load_file as load_torch

    [file] = made.glob("*.safetensors")
    ours, theirs = load_torch(file), load_torch(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])
    written = file.stat().st_mtime_ns
    assert loading.as_safetensors(directory) == made
    assert file.stat().st_mtime_ns == written
    assert loading.as_safetensors(expected) == expected


def test_views_of_shared_storages_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "transposed": base.t(),
        "part": base[1:3, 2:5],
        "last": base[3],
        "one": torch.tensor(3, dtype=torch.int64),
        "none": torch.zeros(0, 3),
        "bits": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(base[:, 0]),
    }
    directory = tmp_path / "drafter"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    torch.save(state, directory / "weights.pt")
    read = load_file(loading.as_safetensors(directory) / "weights.pt.safetensors")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.detach().numpy())
        assert read[name].dtype == tensor.detach().numpy().dtype


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    import torch

    for shape, strides in (((5,), (1,)), ((2, 2), (4, 1)), ((1000, 1000), (0, 0))):
        rebuilt = torch.zeros(4)
        directory = tmp_path / str(shape)
        directory.mkdir()
        (directory / "config.json").write_text("{}")

        class Lying:
            args = (rebuilt.untyped_storage(), shape, strides)

            def __reduce__(self) -> Any:
                storage = torch.storage.TypedStorage(
                    wrap_storage=self.args[0], dtype=torch.float32, _internal=True
                )
                function = torch._utils._rebuild_tensor_v2
                return function, (storage, 0, *self.args[1:], False, {})

        torch.save({"fc.weight": Lying()}, directory / "weights.bin")
        with pytest.raises(CheckpointError, match="tensors within their storage"):
            loading.as_safetensors(directory)


def test_a_changed_drafter_is_converted_anew(tmp_path: Path) -> None:
    directory = pickled().write(tmp_path / "drafter")
    first = loading.as_safetensors(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "norm_output": True}))
    second = loading.as_safetensors(directory)
    assert first != second
    assert json.loads((second / "config.json").read_text())["norm_output"] is True


def test_a_drafter_on_the_hub_may_be_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []
    directory = pickled().write(tmp_path / "snapshot")

    def snapshot(model: str, revision: str, allow_patterns: list[str], **_: Any) -> str:
        assert (model, revision) == ("org/drafter", "v2")
        asked.append(allow_patterns)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    target = make_target().checkpoint.write(tmp_path / "target")
    config = {"model": "org/drafter", "revision": "v2"}
    llm = LLM(target, speculative_config=config, skip_tokenizer_init=True)
    assert llm.drafter is not None
    assert llm.drafter.method == "eagle3"
    assert ["*.bin" in patterns for patterns in asked] == [False, True]


@pytest.mark.long
def test_trees_and_chains_of_every_size_keep_the_output() -> None:
    for row in ROWS:
        expected = plain(directories(row)[0])
        for width in (1, 2, 5):
            for depth in (1, 2, 4):
                if depth > row.num_tokens:
                    continue
                tokens = depth if width == 1 else width * depth
                tree = {"draft_tree_width": width, "draft_tree_depth": depth}
                llm = load(row, {**tree, "num_speculative_tokens": tokens}, max_num_seqs=2)
                got = ids(llm, GREEDY), ids(llm, SEEDED)
                assert got == expected, (row.name, width, depth)
