"""forerun.kernels beside the same in torch, on the CPU and on the emulated GPU; its errors."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from emulated_gpu import EmulatedGpu
from kernels_reference import BrokenRow, Rule, Tree, Walk, sample_token

from forerun import _core, kernels
from forerun.errors import InvalidArgumentError

NUM_CASES = 1000
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
METHODS = ("coupled", "rejection", "block")


def contiguous(rows: torch.Tensor) -> torch.Tensor:
    return rows.clone()


def transposed(rows: torch.Tensor) -> torch.Tensor:
    return rows.t().contiguous().t()


def at_odd_offset(rows: torch.Tensor) -> torch.Tensor:
    """Not aligned to anything but the element, as a slice of a larger tensor may be."""
    memory = torch.full((rows.numel() + 1,), torch.nan, dtype=rows.dtype)
    memory[1:] = rows.flatten()
    return memory[1:].view(rows.shape)


def sliced(rows: torch.Tensor) -> torch.Tensor:
    """Every second row and every third column of something larger."""
    memory = torch.full((2 * rows.shape[0] + 1, 3 * rows.shape[1]), torch.nan, dtype=rows.dtype)
    view = memory[1::2, 1::3]
    view.copy_(rows)
    return view


LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    contiguous,
    transposed,
    at_odd_offset,
    sliced,
)


def on_gpu(tensor: torch.Tensor) -> _core.DeviceArray:
    """A copy on the emulated GPU with the tensor's own strides and offset."""
    storage = tensor.untyped_storage()
    return _core.DeviceArray(
        ctypes.string_at(storage.data_ptr(), storage.nbytes()),
        str(tensor.dtype).removeprefix("torch."),
        list(tensor.shape),
        list(tensor.stride()),
        tensor.storage_offset() * tensor.element_size(),
    )


Move = Callable[[torch.Tensor], Any]


@pytest.fixture(params=["cpu", "gpu"])
def move(request: pytest.FixtureRequest) -> Move:
    """Moves a tensor to the device of the test."""
    if request.param == "gpu":
        request.getfixturevalue("gpu")
        return on_gpu
    return lambda tensor: tensor


def random_logits(rng: random.Random, num_rows: int, vocab: int) -> torch.Tensor:
    """Peaked, flat or full of ties; some tokens are -infinity."""
    rows = torch.randn(num_rows, vocab) * rng.choice([0.1, 1.0, 4.0, 20.0])
    if rng.random() < 0.3:
        rows = torch.round(rows)
    if rng.random() < 0.3:
        rows[torch.rand(num_rows, vocab) < 0.3] = -torch.inf
        rows[:, rng.randrange(vocab)] = 0.0
    return rows.to(rng.choice(DTYPES))


def break_rows(rng: random.Random, rows: torch.Tensor) -> None:
    for row in rows:
        if rng.random() < 0.15:
            row[rng.randrange(len(row))] = rng.choice([torch.nan, torch.inf])
        elif rng.random() < 0.05:
            row[:] = -torch.inf


def random_rule(rng: random.Random, vocab: int) -> Rule:
    return Rule(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.0, 3.0]),
        top_k=rng.choice([0, 0, -1, 1, rng.randint(1, vocab + 3)]),
        top_p=rng.choice([1.0, 1.0, 0.9, rng.uniform(0.01, 1.0)]),
        min_p=rng.choice([0.0, 0.0, 0.05, rng.uniform(0.0, 1.0)]),
        seed=rng.choice([0, 2**64 - 1, rng.randrange(2**64)]),
        acceptance_method=rng.choice(METHODS),
    )


def random_tree(rng: random.Random, vocab: int) -> Tree:
    """A chain or a tree, of tokens that the logits, added later, make likely."""
    size = rng.randint(0, 7)
    is_chain = rng.random() < 0.5
    parents = [i - 1 if is_chain else rng.randint(-1, i - 1) for i in range(size)]
    return Tree([rng.randrange(vocab) for _ in range(size)], parents)


def draw_tokens(rng: random.Random, tree: Tree, logits: torch.Tensor) -> None:
    """Replaces the tokens by likely ones: drawn from the rows of `probs`, or certain."""
    vocab = logits.shape[1]
    near = torch.nan_to_num(logits.double(), -50.0, 50.0, -50.0)
    probs = torch.softmax(near + torch.randn(near.shape) * rng.choice([0.0, 0.5, 3.0]), 1).float()
    is_drawn = rng.random() < 0.5
    tree.probs = probs[[parent + 1 for parent in tree.parents]] if is_drawn else None
    for i, parent in enumerate(tree.parents):
        weights = probs[parent + 1].clone()
        if is_drawn:
            weights[[tree.tokens[c] for c in tree.children(parent) if c < i]] = 0.0
        if float(weights.sum()) > 0 and rng.random() < 0.9:
            tree.tokens[i] = int(torch.multinomial(weights, 1))
        else:
            tree.tokens[i] = rng.randrange(vocab)


def given(rng: random.Random, tree: Tree, move: Move) -> Any:
    """The draft as one of the forms that `verify` takes."""
    forms: list[Callable[[list[int]], Any]] = [list, np.array, lambda ids: move(torch.tensor(ids))]
    tokens: Any = rng.choice(forms)(tree.tokens) if tree.tokens else []
    is_chain = tree.parents == list(range(-1, len(tree.parents) - 1))
    if is_chain and tree.probs is None and rng.random() < 0.5:
        return tokens
    parents = None if is_chain else torch.tensor(tree.parents, dtype=torch.int32)
    probs = None if tree.probs is None else move(rng.choice(LAYOUTS)(tree.probs))
    return kernels.Draft(tokens, parents, probs)


def check_outcome(walk: Walk, result: kernels.Verification, i: int) -> None:
    tokens, nodes = result.tokens[i].tolist(), result.accepted_nodes[i].tolist()
    assert tokens == walk.tokens + [-1] * (len(tokens) - len(walk.tokens))
    assert nodes == walk.nodes + [-1] * (len(nodes) - len(walk.nodes))
    assert int(result.num_tokens[i]) == len(walk.tokens)
    assert result.errors.get(i, "") == walk.error


def test_verify_agrees_with_torch_on_random_cases(move: Move) -> None:
    rng = random.Random(1)
    torch.manual_seed(1)
    num_accepted = num_errors = 0
    for _ in range(NUM_CASES):
        vocab = rng.choice([1, 2, 5, 63, 64, 65, 130, 300])
        trees = [random_tree(rng, vocab) for _ in range(rng.randint(1, 4))]
        rules = [random_rule(rng, vocab) for _ in trees]
        indices = [rng.choice([0, 1, 77, 2**30]) for _ in trees]
        logits = random_logits(rng, sum(len(tree.tokens) + 1 for tree in trees), vocab)
        parts = logits.split([len(tree.tokens) + 1 for tree in trees])
        for tree, part in zip(trees, parts, strict=True):
            draw_tokens(rng, tree, part)
        if rng.random() < 0.2:
            break_rows(rng, logits)
        result = kernels.verify(
            move(rng.choice(LAYOUTS)(logits)),
            [given(rng, tree, move) for tree in trees],
            [kernels.SamplingRule(**vars(rule)) for rule in rules],
            indices,
        )
        assert str(result.tokens.dtype).endswith("int32")
        for i, (tree, part) in enumerate(zip(trees, parts, strict=True)):
            walk = Walk(part.double(), tree, rules[i], indices[i]).run()
            check_outcome(walk, result, i)
            num_accepted += len(walk.nodes)
            num_errors += walk.error != ""
    assert num_accepted > 1500  # else the drafts were too unlikely to test anything
    assert num_errors > 50


def test_sample_agrees_with_torch_on_random_cases(move: Move) -> None:
    rng = random.Random(2)
    torch.manual_seed(2)
    for _ in range(NUM_CASES // 2):
        vocab, count = rng.choice([1, 3, 64, 200]), rng.randint(0, 6)
        logits = random_logits(rng, count, vocab)
        if rng.random() < 0.2:
            break_rows(rng, logits)
        rules = [random_rule(rng, vocab) for _ in range(count)]
        index = rng.choice([0, 5, 2**30])
        result = kernels.sample(
            move(rng.choice(LAYOUTS)(logits)),
            [kernels.SamplingRule(**vars(rule)) for rule in rules],
            index,
        )
        assert result.tokens.shape == (count,)
        for i in range(count):
            try:
                expected, error = sample_token(logits[i].double(), rules[i], index), None
            except BrokenRow as broken:
                expected, error = -1, str(broken)
            assert (int(result.tokens[i]), result.errors.get(i)) == (expected, error)


def test_top_agrees_with_torch_on_random_cases(move: Move) -> None:
    rng = random.Random(3)
    torch.manual_seed(3)
    for _ in range(NUM_CASES // 2):
        vocab = rng.choice([1, 3, 64, 200])
        logits = random_logits(rng, rng.randint(0, 5), vocab)
        if rng.random() < 0.2:
            break_rows(rng, logits)
        count = rng.randint(1, min(vocab, 32))
        result = kernels.top(move(rng.choice(LAYOUTS)(logits)), count)
        assert result.tokens.shape == result.probs.shape == (len(logits), count)
        for i, row in enumerate(logits.double()):
            tokens, probs = torch.as_tensor(result.tokens[i]), torch.as_tensor(result.probs[i])
            check_top(row, tokens, probs)


def check_top(row: torch.Tensor, tokens: torch.Tensor, probs: torch.Tensor) -> None:
    num_found = int((tokens >= 0).sum())
    assert tokens[num_found:].eq(-1).all()
    assert probs[num_found:].eq(0).all()
    if torch.isnan(row).any() or row.max().abs() == torch.inf:
        assert num_found == 0
        return
    order = torch.sort(row, descending=True, stable=True).indices[: len(tokens)]
    expected = torch.softmax(row, 0)[order]
    assert tokens[:num_found].tolist() == order[:num_found].tolist()
    # Weights are multiples of 2^-32 of the first one's.
    torch.testing.assert_close(
        probs[:num_found].double(), expected[:num_found], atol=1e-8, rtol=1e-6
    )
    assert (expected[num_found:] < expected[0] * 2.0**-32).all()


def test_a_matrix_of_tokens_is_one_chain_per_row() -> None:
    logits = torch.randn(8, 10)
    tokens = logits.argmax(1)[[0, 1, 2, 4, 5, 6]].view(2, 3)
    result = kernels.verify(logits, tokens)
    assert result.num_tokens.tolist() == [4, 4]
    assert result.tokens.tolist() == logits.argmax(1).view(2, 4).tolist()
    assert result.accepted_nodes.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_numpy_in_numpy_out() -> None:
    logits = np.array([[0, 1, 0], [2, 0, 0]], np.float32)
    result = kernels.verify(logits, [[1]])
    for array in (result.tokens, result.num_tokens, result.accepted_nodes):
        assert isinstance(array, np.ndarray)
    assert result.tokens.tolist() == [[1, 0]]
    assert kernels.sample(logits).tokens.tolist() == [1, 0]
    assert isinstance(kernels.top(logits, 2).probs, np.ndarray)


def test_bytes_need_no_alignment() -> None:
    memory = bytearray(1 + 4 * 6)
    logits = np.ndarray((2, 3), np.float32, buffer=memory, offset=1)
    logits[:] = [[0, 1, 0], [2, 0, 0]]
    assert kernels.sample(logits).tokens.tolist() == [1, 0]


def test_no_requests_and_no_rows() -> None:
    result = kernels.verify(torch.zeros(0, 5), [])
    assert result.tokens.shape == (0, 1)
    assert result.accepted_nodes.shape == (0, 0)
    assert kernels.sample(torch.zeros(0, 5)).tokens.tolist() == []


def test_arguments_are_not_written_and_not_kept() -> None:
    logits = np.random.default_rng(0).random((3, 100), np.float32)
    probs = np.full((2, 100), 0.01, np.float32)
    before = logits.copy()
    references = sys.getrefcount(logits), sys.getrefcount(probs)
    rule = kernels.SamplingRule(temperature=1.0, top_p=0.5, acceptance_method="block")
    kernels.verify(logits, [kernels.Draft([1, 2], probs=probs)], rule)
    assert (logits == before).all()
    assert (probs == np.float32(0.01)).all()
    assert (sys.getrefcount(logits), sys.getrefcount(probs)) == references


def test_a_rule_can_be_copied_pickled_and_taken_apart() -> None:
    rule = kernels.SamplingRule(1.5, 7, 0.9, 0.01, 2**64 - 1, "block")
    logits = torch.randn(50, 100)
    expected = kernels.sample(logits, rule, 2**30).tokens.tolist()
    fields = dataclasses.asdict(rule)
    assert list(fields.values()) == [1.5, 7, 0.9, 0.01, 2**64 - 1, "block"]
    pickled = pickle.loads(pickle.dumps(rule))
    for other in (copy.copy(rule), copy.deepcopy(rule), pickled, kernels.SamplingRule(**fields)):
        assert other == rule
        assert hash(other) == hash(rule)
        assert kernels.sample(logits, other, 2**30).tokens.tolist() == expected
    with pytest.raises(InvalidArgumentError, match="top_p"):
        dataclasses.replace(rule, top_p=2.0)


GOOD = torch.zeros(3, 10)
ONE = [[1, 2]]
BAD_CALLS: dict[str, tuple[Callable[[], object], str, str]] = {
    "logits of no tensor": (lambda: kernels.verify([[0.0]], [[]]), "logits", "a list"),
    "logits with a gradient": (
        lambda: kernels.verify(GOOD.clone().requires_grad_(), ONE),
        "logits",
        "detach",
    ),
    "logits without memory": (lambda: kernels.sample(GOOD.to("meta")), "logits", "a Tensor"),
    "logits of doubles": (lambda: kernels.verify(GOOD.double(), ONE), "logits", "float64"),
    "logits of integers": (lambda: kernels.sample(GOOD.int()), "logits", "int32"),
    "logits in three dimensions": (lambda: kernels.top(GOOD[None], 1), "logits", "[1, 3, 10]"),
    "logits without tokens": (lambda: kernels.sample(GOOD[:, :0]), "logits", "[3, 0]"),
    "too few rows": (lambda: kernels.verify(GOOD[:2], ONE), "logits", "2 rows"),
    "too many rows": (lambda: kernels.verify(GOOD, [[1]]), "logits", "2 rows for these drafts"),
    "one draft unwrapped": (lambda: kernels.verify(GOOD, torch.tensor([1, 2])), "drafts", "[2]"),
    "drafts of floats": (lambda: kernels.verify(GOOD, GOOD[:1, :2]), "drafts", "float32"),
    "drafts of a number": (lambda: kernels.verify(GOOD, 7), "drafts", "7"),
    "tokens of floats": (lambda: kernels.verify(GOOD, [[1.0, 2.0]]), "drafts[0].tokens", "1.0"),
    "a token outside": (lambda: kernels.verify(GOOD, [[1, 10]]), "drafts[0].tokens", "from 0 to 9"),
    "a negative token": (lambda: kernels.verify(GOOD, [[1, -1]]), "drafts[0].tokens", "-1"),
    "tokens of int16": (
        lambda: kernels.verify(GOOD, [torch.tensor([1, 2], dtype=torch.int16)]),
        "drafts[0].tokens",
        "int16",
    ),
    "a parent after its child": (
        lambda: kernels.verify(GOOD, [kernels.Draft([1, 2], [-1, 1])]),
        "drafts[0].parents[1]",
        "from -1 to 0",
    ),
    "too few parents": (
        lambda: kernels.verify(GOOD, [kernels.Draft([1, 2], [-1])]),
        "drafts[0].parents",
        "2, one per token",
    ),
    "probs of another vocabulary": (
        lambda: kernels.verify(GOOD, [kernels.Draft([1, 2], probs=torch.zeros(2, 9))]),
        "drafts[0].probs",
        "[2, 9]",
    ),
    "probs above 1": (
        lambda: kernels.verify(GOOD, [kernels.Draft([1, 2], probs=GOOD[:2] + 1.5)]),
        "drafts[0].probs",
        "1.5",
    ),
    "probs of NaN": (
        lambda: kernels.verify(GOOD, [kernels.Draft([1, 2], probs=GOOD[:2] / 0)]),
        "drafts[0].probs",
        "nan",
    ),
    "too few rules": (lambda: kernels.sample(GOOD, [kernels.GREEDY]), "rule", "1 items"),
    "a rule of another type": (lambda: kernels.sample(GOOD, 0.5), "rule", "a SamplingRule"),
    "too many output indices": (
        lambda: kernels.verify(GOOD, ONE, output_index=[1, 2]),
        "output_index",
        "2 items",
    ),
    "a negative output index": (
        lambda: kernels.verify(GOOD, ONE, output_index=[-1]),
        "output_index[0]",
        "-1",
    ),
    "an output index above the limit": (
        lambda: kernels.sample(GOOD, output_index=2**30 + 1),
        "output_index",
        "from 0 to 1073741824",
    ),
    "no temperature": (lambda: kernels.SamplingRule(temperature=-1), "temperature", "-1"),
    "temperature as text": (lambda: kernels.SamplingRule(temperature="1"), "temperature", "1"),
    "top_p of 0": (lambda: kernels.SamplingRule(top_p=0), "top_p", "0"),
    "top_k below -1": (lambda: kernels.SamplingRule(top_k=-2), "top_k", "-2"),
    "min_p above 1": (lambda: kernels.SamplingRule(min_p=1.1), "min_p", "1.1"),
    "a negative seed": (lambda: kernels.SamplingRule(seed=-1), "seed", "-1"),
    "an unknown method": (
        lambda: kernels.SamplingRule(acceptance_method="typical"),
        "acceptance_method",
        "typical",
    ),
    "a count of 0": (lambda: kernels.top(GOOD, 0), "count", "0"),
    "a count above the vocabulary": (lambda: kernels.top(GOOD, 11), "count", "11"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_the_argument(name: str) -> None:
    call, argument, said = BAD_CALLS[name]
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert caught.value.field == argument
    assert said in str(caught.value)


def test_a_broken_row_fails_its_request_alone() -> None:
    logits = torch.zeros(5, 10)
    logits[:, 3] = 1.0
    logits[3, 6] = torch.nan
    result = kernels.verify(logits, [[3], [3, 3]])
    assert result.errors == {1: "the logit of token 6 is nan"}
    assert result.tokens.tolist() == [[3, 3, -1], [3, -1, -1]]
    assert result.num_tokens.tolist() == [2, 1]


def test_a_call_on_the_gpu_waits_once_and_brings_no_logits_back(gpu: EmulatedGpu) -> None:
    vocab = 5000
    logits = torch.randn(8, vocab, dtype=torch.bfloat16)
    rules = [kernels.SamplingRule(), kernels.SamplingRule(temperature=1.0, top_p=0.9, seed=3)]
    drafts = [[1, 2, 3], [4, 5, 6]]
    expected = kernels.verify(logits, drafts, rules)
    array = on_gpu(logits)
    kernels.verify(array, drafts, rules)  # allocates
    gpu.configure()
    result = kernels.verify(array, drafts, rules)
    assert (gpu.waits, gpu.copies_to_device, gpu.copies_from_device, gpu.allocations) == (
        1,
        1,
        1,
        0,
    )
    assert gpu.bytes_from_device <= 2 * 256 + 16 * int(expected.num_tokens.sum())
    assert gpu.bytes_to_device < vocab
    assert result.tokens.tolist() == expected.tokens.tolist()


def test_an_array_is_complete_on_every_stream_before_it_is_there(gpu: EmulatedGpu) -> None:
    kernels.top(on_gpu(torch.randn(1, 2)), 1)  # opens the library
    gpu.configure()
    array = on_gpu(torch.randn(4, 8))
    # For the copy, and for all streams: alone the copy from pageable memory orders its own only.
    assert (gpu.waits, gpu.copies_to_device) == (2, 1)
    assert array.__dlpack_device__() == (2, 0)


def test_more_top_tokens_than_kernels_list_are_refused_by_name(gpu: EmulatedGpu) -> None:
    logits = torch.randn(2, 1025)
    assert kernels.top(on_gpu(logits), 1024).tokens.shape == (2, 1024)
    with pytest.raises(InvalidArgumentError, match="count: got 1025; expected at most 1024"):
        kernels.top(on_gpu(logits), 1025)


def test_a_gpu_that_is_not_there_is_a_typed_error() -> None:
    """In a process of its own, since the library is opened once."""
    script = (
        "import os; os.environ['FORERUN_CUDA_LIBRARY'] = '/nowhere/libforerun_cuda.so'\n"
        "from forerun import _core, DeviceError\n"
        "try: _core.DeviceArray(b'1234', 'float32', [1, 1], [1, 1], 0)\n"
        "except DeviceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "/nowhere/libforerun_cuda.so" in done.stdout, done.stderr
