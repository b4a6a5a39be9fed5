"""Sampling and verification on tensors, for engines that are not Forerun's own.

    verify(logits, drafts, rule)   which draft tokens are accepted, and the token after them
    sample(logits, rule)           one token per row
    top(logits, count)             the most probable tokens of each row, for drafters

These are the definitions that Forerun's engine uses: the accepted tokens are those that the same
call would have sampled one by one (`acceptance_method="coupled"`), or have the same distribution
(`"rejection"`, `"block"`); docs/acceptance.md in the repository explains why.

Logits are tensors that export DLPack, such as torch's and numpy's: float32, bfloat16 or float16,
with any strides and offset, on the CPU or the first GPU. Nothing is written to them. What is
returned are torch tensors on the device of the logits where these are torch's, else numpy arrays.
On a GPU the work is enqueued on torch's current stream, or the default one, and a call waits once,
for its results; draft tokens and `probs` are best on the CPU, where they are read.

Every mistake in an argument raises InvalidArgumentError that names the argument. A row from which
no token can be sampled (it has a NaN or +infinity, or is all -infinity) fails its request alone:
the text is in `errors`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from forerun import _core
from forerun.errors import DeviceError, InvalidArgumentError
from forerun.util.checks import check_choice, check_int, check_list, check_number
from forerun.util.interrupts import pass_on_interrupt

__all__ = [
    "GREEDY",
    "Draft",
    "Samples",
    "SamplingRule",
    "Top",
    "Verification",
    "sample",
    "top",
    "verify",
]

_FLOATS = ("float32", "bfloat16", "float16")
_INTEGERS = ("int64", "int32")
_METHODS = {
    "coupled": _core.AcceptanceMethod.COUPLED,
    "rejection": _core.AcceptanceMethod.REJECTION,
    "block": _core.AcceptanceMethod.BLOCK,
}
_MAX_EXTENT = 2**31 - 1
_MAX_OUTPUT_INDEX = 2**30  # with the length of a path, it is still an int of C++
_CUDA = 2  # DLPack's device type
_DEVICES = ("cpu", "cuda:0")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class SamplingRule:
    """How the tokens of a request are sampled; docs/sampling.md has the order and the formulas.

    Attributes:
        temperature: at least 0; 0 takes the most probable token, the lowest id among equals.
        top_k: the number of most probable tokens to sample from; 0 or -1: all.
        top_p: sample from the fewest most probable tokens that hold this much probability; 1: all.
        min_p: sample from tokens at least this many times as probable as the first; 0: all.
        seed: from 0 to 2**64 - 1. The noise of a token is a function of seed, output index and
            token id, so requests of one batch need different seeds.
        acceptance_method: "coupled", "rejection" or "block".
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    acceptance_method: str = "coupled"

    def __post_init__(self) -> None:
        """Checks the fields."""
        self._native()

    def _native(self) -> _core.SamplingRule:
        """The core's. No field keeps it, since it cannot be copied or pickled."""
        method = check_choice("acceptance_method", self.acceptance_method, tuple(_METHODS))
        return _core.SamplingRule(
            check_number("temperature", self.temperature),
            check_int("top_k", self.top_k),
            check_number("top_p", self.top_p),
            check_number("min_p", self.min_p),
            check_int("seed", self.seed, least=0, most=2**64 - 1),
            _METHODS[method],
        )


GREEDY = SamplingRule()


@dataclass(frozen=True)
class Draft:
    """The draft tokens of one request: n nodes of a tree.

    Attributes:
        tokens: [n] token ids: a list, or a tensor of int32 or int64.
        parents: [n] the index of the node that each follows, which is smaller than its own; -1 for
            those that follow the last emitted token. None: each follows the one before it.
        probs: [n, vocab] floats: row i has the probabilities that tokens[i] was drawn from;
            siblings are drawn without replacement from the row of the first of them. None: the
            tokens were chosen without randomness.
    """

    tokens: Any
    parents: Any = None
    probs: Any = None


@dataclass(frozen=True)
class Verification:
    """What a call of `verify` emits.

    Attributes:
        tokens: [requests, longest path + 1] int32: the accepted draft tokens and one token more,
            padded with -1.
        num_tokens: [requests] int32: how many these are; without an error, at least 1.
        accepted_nodes: [requests, longest path] int32: the indices of the accepted draft tokens,
            padded with -1. Where drafts are chains, they count up from 0.
        errors: by index of the request, why it has fewer tokens.
    """

    tokens: Any
    num_tokens: Any
    accepted_nodes: Any
    errors: dict[int, str]


@dataclass(frozen=True)
class Samples:
    """What a call of `sample` returns.

    Attributes:
        tokens: [rows] int32; -1 where there is an error.
        errors: by row, why no token can be sampled from it.
    """

    tokens: Any
    errors: dict[int, str]


@dataclass(frozen=True)
class Top:
    """What a call of `top` returns.

    Attributes:
        tokens: [rows, count] int32, most probable first, the lowest id first among equals; -1 for
            tokens with less than 2**-33 of the first one's probability, and in rows that have NaN,
            +infinity, or only -infinity.
        probs: [rows, count] float32: their probabilities at temperature 1; 0 where tokens are -1.
    """

    tokens: Any
    probs: Any


def verify(
    logits: Any,
    drafts: Any,
    rule: SamplingRule | Sequence[SamplingRule] = GREEDY,
    output_index: int | Sequence[int] = 0,
) -> Verification:
    """Decides which draft tokens are emitted, and samples one token more per request.

    Args:
        logits: [rows, vocab] of the target. A request with n draft tokens has n + 1 consecutive
            rows: the first predicts what follows its last emitted token, row i + 1 what follows
            draft token i.
        drafts: one per request: a Draft, or the token ids of a certain chain. A matrix
            [requests, n] of token ids is one chain per row.
        rule: of all requests, or one per request.
        output_index: how many tokens each request has emitted before, from 0 to 2**30; one number
            for all, or one per request. The noise depends on it, so a wrong one repeats noise.
    """
    rows = _logits(logits)
    trees = [
        _tree(f"drafts[{i}]", draft, rows.shape[1]) for i, draft in enumerate(_each_draft(drafts))
    ]
    num_rows = sum(len(tree) + 1 for tree in trees)
    if rows.shape[0] != num_rows:
        raise InvalidArgumentError(
            "logits",
            f"{rows.shape[0]} rows",
            f"{num_rows} rows for these drafts: one per draft token and one more per request",
        )
    rules = _per_request("rule", rule, len(trees), _rule)
    indices = _per_request("output_index", output_index, len(trees), _output_index)
    tokens, nodes, counts, errors = _core.verify_rows(rows, trees, rules, indices)
    return Verification(_like(logits, tokens), _like(logits, counts), _like(logits, nodes), errors)


def sample(
    logits: Any,
    rule: SamplingRule | Sequence[SamplingRule] = GREEDY,
    output_index: int | Sequence[int] = 0,
) -> Samples:
    """Samples one token per row.

    Args:
        logits: [rows, vocab].
        rule: of all rows, or one per row.
        output_index: how many tokens were emitted before, from 0 to 2**30; one number for all, or
            one per row.
    """
    rows = _logits(logits)
    count = rows.shape[0]
    rules = _per_request("rule", rule, count, _rule)
    indices = _per_request("output_index", output_index, count, _output_index)
    trees = [_core.Draft([], [], None)] * count
    tokens, _, _, errors = _core.verify_rows(rows, trees, rules, indices)
    return Samples(_like(logits, tokens[:, 0]), errors)


def top(logits: Any, count: int) -> Top:
    """The `count` most probable tokens of each row, with their probabilities.

    Args:
        logits: [rows, vocab].
        count: from 1 to vocab; on a GPU, at most 1,024 as well.
    """
    rows = _logits(logits)
    count = check_int("count", count, least=1, most=rows.shape[1])
    tokens, probs = _core.top_rows(rows, count)
    return Top(_like(logits, tokens), _like(logits, probs))


def _borrowed(value: Any) -> _core.Tensor:
    if value.__dlpack_device__()[0] != _CUDA:
        return _core.Tensor(value.__dlpack__(), 0)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return _core.Tensor(value.__dlpack__(stream=1), 0)  # 1 is DLPack's for the default stream
    # What reads the tensor is enqueued on the caller's stream; -1: there is nothing to wait for.
    stream = torch.cuda.current_stream(value.device).cuda_stream
    return _core.Tensor(value.__dlpack__(stream=-1), stream)


def _tensor(name: str, value: Any, dtypes: tuple[str, ...], ndim: int) -> _core.Tensor:
    """A tensor of another library as one of the core's, on a device that can be read."""
    try:
        tensor = _borrowed(value)
    except DeviceError:
        raise
    except Exception as error:
        pass_on_interrupt(error)
        raise InvalidArgumentError(
            name,
            f"a {type(value).__name__}",
            f"a tensor that exports DLPack, such as torch's and numpy's ({error})",
        ) from error
    if tensor.device not in _DEVICES:
        raise InvalidArgumentError(
            name,
            f"a tensor on {tensor.device}",
            "a tensor on the CPU or on the first GPU, cuda:0 (CUDA_VISIBLE_DEVICES chooses it)",
        )
    if tensor.dtype not in dtypes:
        expected = f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
        raise InvalidArgumentError(name, f"dtype {tensor.dtype}", f"a tensor of {expected}")
    if len(tensor.shape) != ndim or max(tensor.shape) > _MAX_EXTENT:
        expected = f"{ndim} dimension{'s'[: ndim != 1]} of at most {_MAX_EXTENT}"
        raise InvalidArgumentError(name, f"shape {tensor.shape}", expected)
    return tensor


def _logits(value: Any) -> _core.Tensor:
    tensor = _tensor("logits", value, _FLOATS, ndim=2)
    if tensor.shape[1] == 0:
        raise InvalidArgumentError("logits", f"shape {tensor.shape}", "a token or more per row")
    return tensor


def _each_draft(drafts: Any) -> list[Any]:
    if not hasattr(drafts, "__dlpack__"):
        return check_list("drafts", drafts, "a list with one draft per request")
    tensor = _tensor("drafts", drafts, _INTEGERS, ndim=2)
    count, length = tensor.shape
    flat = tensor.integers()
    return [flat[i * length : (i + 1) * length] for i in range(count)]


def _integers(name: str, value: Any) -> list[int]:
    if not hasattr(value, "__dlpack__"):
        return [check_int(name, item) for item in check_list(name, value, "a list of integers")]
    return _tensor(name, value, _INTEGERS, ndim=1).integers()


def _tree(name: str, draft: Any, vocab_size: int) -> _core.Draft:
    if not isinstance(draft, Draft):
        draft = Draft(draft)
    tokens = _integers(f"{name}.tokens", draft.tokens)
    for token in tokens:
        check_int(f"{name}.tokens", token, least=0, most=vocab_size - 1)
    parents = list(range(-1, len(tokens) - 1))
    if draft.parents is not None:
        parents = _integers(f"{name}.parents", draft.parents)
        if len(parents) != len(tokens):
            raise InvalidArgumentError(
                f"{name}.parents", f"{len(parents)} numbers", f"{len(tokens)}, one per token"
            )
        for i, parent in enumerate(parents):
            check_int(f"{name}.parents[{i}]", parent, least=-1, most=i - 1)
    probs = None
    if draft.probs is not None:
        probs = _tensor(f"{name}.probs", draft.probs, _FLOATS, ndim=2)
        if probs.shape != [len(tokens), vocab_size]:
            raise InvalidArgumentError(
                f"{name}.probs",
                f"shape {probs.shape}",
                f"[{len(tokens)}, {vocab_size}]: tokens, vocabulary",
            )
    try:
        return _core.Draft(tokens, parents, probs)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{name}.{error.field}", error.value, error.expected) from None


def _per_request(
    name: str, value: Any, count: int, check: Callable[[str, Any], _Item]
) -> list[_Item]:
    """One item per request: `value` for each, or its items."""
    if isinstance(value, SamplingRule) or not hasattr(value, "__iter__"):
        return [check(name, value)] * count
    items = check_list(name, value, "one value, or a list with one per request")
    if len(items) != count:
        raise InvalidArgumentError(name, f"{len(items)} items", f"one, or a list of {count}")
    return [check(f"{name}[{i}]", item) for i, item in enumerate(items)]


def _rule(name: str, value: Any) -> _core.SamplingRule:
    if not isinstance(value, SamplingRule):
        raise InvalidArgumentError(name, value, "a SamplingRule")
    return value._native()


def _output_index(name: str, value: Any) -> int:
    return check_int(name, value, least=0, most=_MAX_OUTPUT_INDEX)


def _like(logits: Any, array: Any) -> Any:
    """A numpy array, as a tensor on the device of `logits` if these are torch's."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(logits, torch.Tensor):
        return array
    return torch.from_numpy(array).to(logits.device)
