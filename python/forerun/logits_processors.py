"""A caller's own functions of logits: of one request, or classes for all requests as in vLLM."""

from __future__ import annotations

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from forerun.errors import InvalidArgumentError
from forerun.util.checks import check_list
from forerun.util.interrupts import pass_on_interrupt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from forerun import _core
    from forerun.engine.loaded_model import LoadedModel
    from forerun.sampling_params import SamplingParams

    Row: TypeAlias = npt.NDArray[np.float32]

# Changes the logits after the output in place, or returns others.
RequestLogitsProcessor: TypeAlias = Callable[..., Any]
_State = TypeVar("_State")


class MoveDirectionality(Enum):
    """How a request moves within the batch. Forerun moves none."""

    UNIDIRECTIONAL = 1
    SWAP = 2


@dataclass(frozen=True)
class BatchUpdate:
    """How the batch changed.

    Attributes:
        batch_size: the number of rows of logits.
        removed: rows whose requests are gone.
        added: for each new request its row, parameters, prompt token ids and output token ids.
        moved: none.
    """

    batch_size: int
    removed: Sequence[int]
    added: Sequence[tuple[int, SamplingParams, list[int] | None, list[int]]]
    moved: Sequence[tuple[int, int, MoveDirectionality]] = ()


class LogitsProcessor(ABC):
    """The base of classes given as LLM(logits_processors=[...]), with vLLM's interface.

    One instance serves all requests. Before each row of logits is changed, `update_state` puts that
    row's request into a batch of one, with the output so far, draft tokens included; then `apply`
    gets the row. So an instance must keep no other state than what `update_state` was given last:
    with speculation, rows may come in any order, and more than once.
    Tensors are torch's where the module of the class has imported torch, else numpy arrays.
    """

    @classmethod  # noqa: B027
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for parameters that the class cannot serve."""

    @abstractmethod
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        """Takes what is known of the engine; the device is the CPU."""

    @abstractmethod
    def apply(self, logits: Any) -> Any:
        """Changes logits [batch_size, vocab_size] in place, or returns others."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the most probable token always stays the same; greedy requests then skip it."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Takes notice of what the batch is now."""


class AdapterLogitsProcessor(LogitsProcessor):
    """A class that makes a function for each request."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        """Takes what is known of the engine; subclasses must call it."""
        self.req_info: dict[int, Callable[[Any], Any]] = {}

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """A function of (output_ids, logits) or (prompt_ids, output_ids, logits); None for none."""

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Makes the functions of new requests."""
        process_dict_updates(self.req_info, batch_update, self._bind)

    def _bind(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Callable[[Any], Any] | None:
        function = self.new_req_logits_processor(params)
        if function is None:
            return None
        if len(inspect.signature(function).parameters) == 3:
            return lambda logits: function(prompt_ids, output_ids, logits)
        return lambda logits: function(output_ids, logits)

    def apply(self, logits: Any) -> Any:
        """Calls each request's function with its row."""
        for index, function in self.req_info.items():
            row = logits[index]
            changed = function(row)
            if changed is not None and changed is not row:
                logits[index] = changed
        return logits


def process_dict_updates(
    req_entries: dict[int, _State],
    batch_update: BatchUpdate | None,
    new_state: Callable[[SamplingParams, list[int] | None, list[int]], _State | None],
) -> bool:
    """Keeps a dict of row: state up to date; rows without a state are left out.

    Returns whether anything changed.
    """
    if batch_update is None:
        return False
    before = dict(req_entries)
    for index in batch_update.removed:
        req_entries.pop(index, None)
    for index, params, prompt_ids, output_ids in batch_update.added:
        req_entries.pop(index, None)
        state = new_state(params, prompt_ids, output_ids)
        if state is not None:
            req_entries[index] = state
    for source, target, direction in batch_update.moved:
        taken = req_entries.pop(target, None)
        if (state := req_entries.pop(source, None)) is not None:
            req_entries[target] = state
        if direction is MoveDirectionality.SWAP and taken is not None:
            req_entries[source] = taken
    return before != req_entries


def check_processors(field: str, processors: Any) -> list[RequestLogitsProcessor]:
    """A list of callables."""
    expected = "a list of functions of (output_token_ids, logits)"
    listed = check_list(field, processors, expected)
    for processor in listed:
        if not callable(processor):
            raise InvalidArgumentError(field, processor, expected)
    return listed


def processor_classes(field: str, classes: Any) -> list[type[LogitsProcessor]]:
    """The classes that LLM's logits_processors name, as classes or as "module:Class"."""
    expected = 'a list of subclasses of forerun.LogitsProcessor, or of "module:Class"'
    if classes is None:
        return []
    loaded = []
    for given in check_list(field, classes, expected):
        item = given
        if isinstance(item, str):
            module, _, name = item.partition(":")
            try:
                item = importlib.import_module(module)
                for part in name.split("."):
                    item = getattr(item, part)
            except Exception as error:  # whatever the module raises
                pass_on_interrupt(error)
                reason = f"{expected}; loading it raised {type(error).__name__}: {error}"
                raise InvalidArgumentError(field, given, reason) from error
        if not isinstance(item, type) or not issubclass(item, LogitsProcessor):
            raise InvalidArgumentError(field, given, expected)
        loaded.append(item)
    return loaded


class EngineProcessors:
    """The instances of an engine's classes, and what they do to a request's rows."""

    def __init__(
        self,
        classes: Sequence[type[LogitsProcessor]],
        llm: LoadedModel,
        options: _core.EngineOptions,
    ) -> None:
        limits = llm.limits
        # What processors read of vLLM's config.
        vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                model=str(llm.directory),
                max_model_len=limits.max_model_len,
                get_vocab_size=lambda: limits.vocab_size,
            ),
            scheduler_config=SimpleNamespace(
                max_num_seqs=options.max_num_seqs,
                max_num_batched_tokens=options.max_num_batched_tokens,
            ),
            speculative_config=llm.speculative_config,
        )
        self._processors = []
        for cls in classes:
            torch = _torch_of(cls)
            device = SimpleNamespace(type="cpu") if torch is None else torch.device("cpu")
            self._processors.append((cls(vllm_config, device, False), torch))

    def functions(
        self, params: SamplingParams, prompt_ids: list[int]
    ) -> list[RequestLogitsProcessor]:
        """What changes the rows of a request, one after the other.

        Raises InvalidArgumentError for parameters that a class refuses.
        """
        functions = []
        for processor, torch in self._processors:
            try:
                processor.validate_params(params)
            except ValueError as error:
                raise InvalidArgumentError(
                    "sampling_params", f"extra_args={params.extra_args}", str(error)
                ) from error
            is_invariant = processor.is_argmax_invariant()
            if is_invariant and params.temperature == 0:
                continue
            # As in vLLM, these see logits over the temperature.
            scale = params.temperature if is_invariant else 1.0
            change = _row_function(processor, params, prompt_ids, torch)
            if change is not None:
                functions.append(_scaled(change, scale) if scale != 1.0 else change)
        return functions


def engine_processors(
    given: Any, llm: LoadedModel, options: _core.EngineOptions
) -> EngineProcessors | None:
    """What LLM's logits_processors are; None where there are none."""
    classes = processor_classes("logits_processors", given)
    return EngineProcessors(classes, llm, options) if classes else None


def _torch_of(cls: type) -> Any:
    """The module torch, where the module of the class has imported it or something of it."""
    torch, module = sys.modules.get("torch"), sys.modules.get(cls.__module__)
    for value in vars(module).values() if torch is not None and module is not None else ():
        if value is torch or str(getattr(value, "__module__", "")).split(".")[0] == "torch":
            return torch
    return None


def _row_function(
    processor: LogitsProcessor, params: SamplingParams, prompt_ids: list[int], torch: Any
) -> RequestLogitsProcessor | None:
    cls = type(processor)
    is_adapter = (
        isinstance(processor, AdapterLogitsProcessor)
        and cls.apply is AdapterLogitsProcessor.apply
        and cls.update_state is AdapterLogitsProcessor.update_state
    )
    # A request's own function is made once.
    made = processor.new_req_logits_processor(params) if is_adapter else None  # type: ignore[attr-defined]
    if is_adapter and made is None:
        return None
    takes_prompt = made is not None and len(inspect.signature(made).parameters) == 3

    def change(output_ids: list[int], row: Row) -> Any:
        logits = row if torch is None else torch.from_numpy(row)
        if made is not None:
            given = (list(prompt_ids), output_ids) if takes_prompt else (output_ids,)
            changed = made(*given, logits)
        else:
            added = [(0, params, list(prompt_ids), output_ids)]
            processor.update_state(BatchUpdate(1, removed=(0,), added=added))
            changed = processor.apply(logits[None])
            changed = changed[0] if changed is not None else None
        return changed if changed is None or torch is None else changed.detach().cpu().numpy()

    return change


def _scaled(change: RequestLogitsProcessor, temperature: float) -> RequestLogitsProcessor:
    import numpy as np

    factor = np.float32(temperature)

    def scaled(output_ids: list[int], row: Row) -> Any:
        row = row / factor
        changed = change(output_ids, row)
        return (row if changed is None else changed) * factor

    return scaled


def chain_processors(
    processors: Sequence[RequestLogitsProcessor],
) -> Callable[[list[int], Row], Row]:
    """One function that applies all, one after the other."""
    import numpy as np

    def apply(token_ids: list[int], row: Row) -> Row:
        for processor in processors:
            changed = processor(list(token_ids), row)
            if changed is None:
                continue
            changed = np.ascontiguousarray(changed, dtype=np.float32)
            if changed.shape != row.shape:
                raise ValueError(
                    f"logits of shape {changed.shape} came back where {row.shape} were given"
                )
            row = changed
        return row

    return apply
