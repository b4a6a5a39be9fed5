"""
The native engine. Use the classes of the package forerun instead.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['AcceptanceMethod', 'CheckpointFormat', 'Deadline', 'DeviceArray', 'Draft', 'DraftRecord', 'DraftSampleMethod', 'DraftStep', 'Engine', 'EngineHistograms', 'EngineLoop', 'EngineMetrics', 'EngineOptions', 'FinishReason', 'GrammarOptions', 'Histogram', 'HybridOptions', 'LoopFailure', 'MAX_JSON_DEPTH', 'Model', 'ModelDrafterOptions', 'ModelLimits', 'ModelMethod', 'NgramOptions', 'OperationProfile', 'PassProfile', 'Prediction', 'QuantizationOptions', 'RequestMetrics', 'RequestUpdate', 'SamplingParams', 'SamplingRule', 'SchedulingPolicy', 'SpecDecodeCounters', 'SpeculativeOptions', 'SubmitOptions', 'SuffixOptions', 'Tensor', 'Turns', 'VocabularyBridge', 'WeightCacheOptions', 'WeightFiles', 'available_isas', 'block_types', 'canonical_draft_name', 'check_engine_options', 'check_sampling_params', 'check_speculative_options', 'configured_aux_layers', 'default_aux_layers', 'detect_format', 'find_weight_files', 'flatten_draft_config', 'json_depth', 'num_gil_acquisitions', 'profile_passes', 'proposed_tokens', 'read_tensor', 'top_rows', 'verify_rows']
class NgramOptions:
    """
    Drafts what followed the last tokens before.
    """
    def __init__(self) -> None:
        """
        All defaults.
        """
    @property
    def prompt_lookup_max(self) -> int:
        ...
    @prompt_lookup_max.setter
    def prompt_lookup_max(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def prompt_lookup_min(self) -> int:
        ...
    @prompt_lookup_min.setter
    def prompt_lookup_min(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class SuffixOptions:
    """
    Drafts the most probable continuation in an index of past text.
    """
    use_tree: bool
    def __init__(self) -> None:
        """
        All defaults.
        """
    @property
    def max_cached_requests(self) -> int:
        ...
    @max_cached_requests.setter
    def max_cached_requests(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def max_spec_factor(self) -> float:
        ...
    @max_spec_factor.setter
    def max_spec_factor(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def max_tree_depth(self) -> int:
        ...
    @max_tree_depth.setter
    def max_tree_depth(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def min_token_prob(self) -> float:
        ...
    @min_token_prob.setter
    def min_token_prob(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class GrammarOptions:
    """
    Drafts what a constraint forces.
    """
    def __init__(self) -> None:
        """
        There is nothing to set.
        """
class ModelMethod:
    """
    Formats of drafters that are models.
    
    Members:
    
      DRAFT_MODEL
    
      EAGLE
    
      EAGLE3
    
      MTP
    
      MLP_SPECULATOR
    
      MEDUSA
    """
    DRAFT_MODEL: typing.ClassVar[ModelMethod]
    EAGLE: typing.ClassVar[ModelMethod]
    EAGLE3: typing.ClassVar[ModelMethod]
    MEDUSA: typing.ClassVar[ModelMethod]
    MLP_SPECULATOR: typing.ClassVar[ModelMethod]
    MTP: typing.ClassVar[ModelMethod]
    __members__: typing.ClassVar[dict[str, ModelMethod]]
    @typing.overload
    def __eq__(self, other: ModelMethod) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: ModelMethod) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class DraftSampleMethod:
    """
    How a model picks its draft tokens.
    
    Members:
    
      GREEDY
    
      PROBABILISTIC
    """
    GREEDY: typing.ClassVar[DraftSampleMethod]
    PROBABILISTIC: typing.ClassVar[DraftSampleMethod]
    __members__: typing.ClassVar[dict[str, DraftSampleMethod]]
    @typing.overload
    def __eq__(self, other: DraftSampleMethod) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: DraftSampleMethod) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class VocabularyBridge:
    """
    Maps between the vocabularies of a draft model and its target.
    """
    def __init__(self, draft_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], shared_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        draft_ids: for each of the target's tokens, the drafter's id; shared_ids: the target's ids of tokens that both have, ascending.
        """
    @property
    def draft_ids(self) -> list[int]:
        ...
    @property
    def shared_ids(self) -> list[int]:
        ...
class QuantizationOptions:
    """
    "int8", "int4" or "none" (floats) for matrices, by what they are for.
    """
    def __init__(self, linear: str | None = None, embedding: str | None = None, head: str | None = None, method: str | None = None) -> None:
        """
        None: as the checkpoint has them. `method`: what the checkpoint must be.
        """
    @property
    def embedding(self) -> str | None:
        ...
    @property
    def head(self) -> str | None:
        ...
    @property
    def linear(self) -> str | None:
        ...
    @property
    def method(self) -> str | None:
        ...
class ModelDrafterOptions:
    """
    Drafts with a model.
    """
    draft_sample_method: DraftSampleMethod
    method: ModelMethod | None
    model: str
    norm_before_residual: bool | None
    norm_output: bool | None
    norm_target_state: bool | None
    quantization: QuantizationOptions | None
    vocabulary_bridge: VocabularyBridge | None
    def __init__(self) -> None:
        """
        All defaults: the target's own layers for multi-token prediction.
        """
    @property
    def aux_hidden_state_layer_ids(self) -> list[int] | None:
        ...
    @aux_hidden_state_layer_ids.setter
    def aux_hidden_state_layer_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None) -> None:
        ...
    @property
    def draft_tree_depth(self) -> int | None:
        ...
    @draft_tree_depth.setter
    def draft_tree_depth(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def draft_tree_width(self) -> int:
        ...
    @draft_tree_width.setter
    def draft_tree_width(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def draft_vocab_size(self) -> int | None:
        ...
    @draft_vocab_size.setter
    def draft_vocab_size(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def speculative_token_tree(self) -> list[list[int]]:
        ...
    @speculative_token_tree.setter
    def speculative_token_tree(self, arg0: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]) -> None:
        ...
class HybridOptions:
    """
    Drafts with a model and with an index.
    """
    model: ModelDrafterOptions
    suffix: SuffixOptions
    def __init__(self) -> None:
        """
        All defaults.
        """
class AcceptanceMethod:
    """
    When a draft token is accepted.
    
    Members:
    
      COUPLED
    
      REJECTION
    
      BLOCK
    """
    BLOCK: typing.ClassVar[AcceptanceMethod]
    COUPLED: typing.ClassVar[AcceptanceMethod]
    REJECTION: typing.ClassVar[AcceptanceMethod]
    __members__: typing.ClassVar[dict[str, AcceptanceMethod]]
    @typing.overload
    def __eq__(self, other: AcceptanceMethod) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: AcceptanceMethod) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class SpeculativeOptions:
    """
    How the engine drafts.
    """
    acceptance_method: AcceptanceMethod
    adaptive: bool
    def __init__(self) -> None:
        """
        All defaults: no speculation.
        """
    @property
    def method(self) -> None | NgramOptions | SuffixOptions | GrammarOptions | ModelDrafterOptions | HybridOptions:
        """
        The method's options, as a copy; None: no speculation.
        """
    @method.setter
    def method(self, arg1: None | NgramOptions | SuffixOptions | GrammarOptions | ModelDrafterOptions | HybridOptions) -> None:
        ...
    @property
    def num_speculative_tokens(self) -> int | None:
        ...
    @num_speculative_tokens.setter
    def num_speculative_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
class SchedulingPolicy:
    """
    Which requests run first when not all can.
    
    Members:
    
      FCFS
    
      PRIORITY
    """
    FCFS: typing.ClassVar[SchedulingPolicy]
    PRIORITY: typing.ClassVar[SchedulingPolicy]
    __members__: typing.ClassVar[dict[str, SchedulingPolicy]]
    @typing.overload
    def __eq__(self, other: SchedulingPolicy) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: SchedulingPolicy) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class WeightCacheOptions:
    """
    Where packed weights are kept for later starts.
    """
    def __init__(self, directory: str, max_bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        An empty directory, or 0 bytes: nothing is kept.
        """
    @property
    def directory(self) -> str:
        ...
    @property
    def max_bytes(self) -> int:
        ...
class EngineOptions:
    """
    How an engine is set up.
    """
    check_invariants: bool
    device: str
    dtype: str
    enable_prefix_caching: bool
    enforce_eager: bool
    kv_cache_dtype: str
    model: str
    quantization: QuantizationOptions
    record_draft_steps: bool
    scheduling_policy: SchedulingPolicy
    speculative: SpeculativeOptions
    verify_device: str
    weight_cache: WeightCacheOptions
    def __init__(self) -> None:
        """
        All defaults; `model` must be set.
        """
    @property
    def block_size(self) -> int:
        ...
    @block_size.setter
    def block_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def gpu_memory_utilization(self) -> float:
        ...
    @gpu_memory_utilization.setter
    def gpu_memory_utilization(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def kv_cache_memory_bytes(self) -> int | None:
        ...
    @kv_cache_memory_bytes.setter
    def kv_cache_memory_bytes(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def max_model_len(self) -> int | None:
        ...
    @max_model_len.setter
    def max_model_len(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def max_num_batched_tokens(self) -> int:
        ...
    @max_num_batched_tokens.setter
    def max_num_batched_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def max_num_seqs(self) -> int:
        ...
    @max_num_seqs.setter
    def max_num_seqs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def max_waiting_requests(self) -> int | None:
        ...
    @max_waiting_requests.setter
    def max_waiting_requests(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def num_threads(self) -> int:
        ...
    @num_threads.setter
    def num_threads(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def seed(self) -> int:
        ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class SamplingParams:
    """
    What a request asks for.
    """
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    speculative: bool
    def __init__(self) -> None:
        """
        All defaults.
        """
    @property
    def allowed_token_ids(self) -> list[int] | None:
        ...
    @allowed_token_ids.setter
    def allowed_token_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None) -> None:
        ...
    @property
    def bad_words(self) -> list[list[int]]:
        ...
    @bad_words.setter
    def bad_words(self, arg0: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]) -> None:
        ...
    @property
    def frequency_penalty(self) -> float:
        ...
    @frequency_penalty.setter
    def frequency_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def logit_bias(self) -> dict[int, float]:
        ...
    @logit_bias.setter
    def logit_bias(self, arg0: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
    @property
    def logprob_token_ids(self) -> list[int] | None:
        ...
    @logprob_token_ids.setter
    def logprob_token_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None) -> None:
        ...
    @property
    def logprobs(self) -> int | None:
        ...
    @logprobs.setter
    def logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def max_draft_tokens(self) -> int | None:
        ...
    @max_draft_tokens.setter
    def max_draft_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def max_tokens(self) -> int:
        ...
    @max_tokens.setter
    def max_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def min_p(self) -> float:
        ...
    @min_p.setter
    def min_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def min_tokens(self) -> int:
        ...
    @min_tokens.setter
    def min_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def presence_penalty(self) -> float:
        ...
    @presence_penalty.setter
    def presence_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def prompt_logprobs(self) -> int | None:
        ...
    @prompt_logprobs.setter
    def prompt_logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def repetition_penalty(self) -> float:
        ...
    @repetition_penalty.setter
    def repetition_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def seed(self) -> int | None:
        ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def stop(self) -> list[str]:
        ...
    @stop.setter
    def stop(self, arg0: collections.abc.Sequence[str]) -> None:
        ...
    @property
    def stop_token_ids(self) -> list[int]:
        ...
    @stop_token_ids.setter
    def stop_token_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    @property
    def temperature(self) -> float:
        ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def top_k(self) -> int:
        ...
    @top_k.setter
    def top_k(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def top_p(self) -> float:
        ...
    @top_p.setter
    def top_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class SpecDecodeCounters:
    """
    What was drafted and what was accepted.
    """
    @property
    def num_accepted_tokens(self) -> int:
        ...
    @property
    def num_accepted_tokens_per_pos(self) -> list[int]:
        ...
    @property
    def num_draft_tokens(self) -> int:
        ...
    @property
    def num_draft_tokens_per_pos(self) -> list[int]:
        ...
    @property
    def num_drafts(self) -> int:
        ...
class DraftStep:
    """
    One verified draft.
    """
    @property
    def num_accepted_tokens(self) -> int:
        ...
    @property
    def num_draft_tokens(self) -> int:
        ...
class RequestMetrics:
    """
    Raw counters of one request.
    """
    @property
    def arrival_time(self) -> float:
        ...
    @property
    def draft_steps(self) -> list[DraftStep]:
        ...
    @property
    def finished_ts(self) -> float:
        ...
    @property
    def first_token_ts(self) -> float:
        ...
    @property
    def is_corrupted(self) -> bool:
        ...
    @property
    def last_token_ts(self) -> float:
        ...
    @property
    def num_accepted_prediction_tokens(self) -> int:
        ...
    @property
    def num_generated_tokens(self) -> int:
        ...
    @property
    def num_preemptions(self) -> int:
        ...
    @property
    def num_rejected_prediction_tokens(self) -> int:
        ...
    @property
    def num_target_passes(self) -> int:
        ...
    @property
    def queued_ts(self) -> float:
        ...
    @property
    def scheduled_ts(self) -> float:
        ...
    @property
    def spec_decode(self) -> SpecDecodeCounters:
        ...
class Histogram:
    """
    How many observed values fell into each range.
    """
    @property
    def bounds(self) -> list[float]:
        """
        Upper bounds of the ranges, inclusive, ascending.
        """
    @property
    def count(self) -> int:
        ...
    @property
    def counts(self) -> list[int]:
        """
        Of each range alone; the last has the values above every bound.
        """
    @property
    def sum(self) -> float:
        ...
class EngineHistograms:
    """
    Distributions over requests and steps.
    """
    @property
    def e2e_request_latency_seconds(self) -> Histogram:
        ...
    @property
    def inter_token_latency_seconds(self) -> Histogram:
        ...
    @property
    def iteration_tokens_total(self) -> Histogram:
        ...
    @property
    def request_decode_time_seconds(self) -> Histogram:
        ...
    @property
    def request_generation_tokens(self) -> Histogram:
        ...
    @property
    def request_inference_time_seconds(self) -> Histogram:
        ...
    @property
    def request_num_preemptions(self) -> Histogram:
        ...
    @property
    def request_params_max_tokens(self) -> Histogram:
        ...
    @property
    def request_prefill_kv_computed_tokens(self) -> Histogram:
        ...
    @property
    def request_prefill_time_seconds(self) -> Histogram:
        ...
    @property
    def request_prompt_tokens(self) -> Histogram:
        ...
    @property
    def request_queue_time_seconds(self) -> Histogram:
        ...
    @property
    def request_time_per_output_token_seconds(self) -> Histogram:
        ...
    @property
    def time_to_first_token_seconds(self) -> Histogram:
        ...
class EngineMetrics:
    """
    Raw counters of an engine, as of the last step.
    """
    @property
    def draft_seconds(self) -> float:
        ...
    @property
    def first_drafting_failure(self) -> str:
        """
        What the first of them was; empty where there was none.
        """
    @property
    def histograms(self) -> EngineHistograms:
        ...
    @property
    def model_seconds(self) -> float:
        ...
    @property
    def num_cached_blocks(self) -> int:
        ...
    @property
    def num_cached_prompt_tokens(self) -> int:
        ...
    @property
    def num_drafting_failures(self) -> int:
        ...
    @property
    def num_finished_by_reason(self) -> typing.Annotated[list[int], "FixedSize(6)"]:
        """
        Indexed by FinishReason.
        """
    @property
    def num_finished_requests(self) -> int:
        ...
    @property
    def num_free_blocks(self) -> int:
        ...
    @property
    def num_generated_tokens(self) -> int:
        ...
    @property
    def num_held_blocks(self) -> int:
        ...
    @property
    def num_preemptions(self) -> int:
        ...
    @property
    def num_prefilled_from_cache(self) -> int:
        ...
    @property
    def num_prefilled_tokens(self) -> int:
        ...
    @property
    def num_prefix_cache_queries(self) -> int:
        ...
    @property
    def num_prompt_tokens(self) -> int:
        ...
    @property
    def num_running_requests(self) -> int:
        ...
    @property
    def num_steps(self) -> int:
        ...
    @property
    def num_target_passes(self) -> int:
        ...
    @property
    def num_total_blocks(self) -> int:
        ...
    @property
    def num_waiting_requests(self) -> int:
        ...
    @property
    def other_seconds(self) -> float:
        ...
    @property
    def spec_decode(self) -> SpecDecodeCounters:
        ...
    @property
    def verify_seconds(self) -> float:
        ...
class Turns:
    """
    A lock that threads get in the order in which they ask for it.
    """
    def __enter__(self) -> None:
        """
        Waits for its turn. Raises EngineBusyError in the thread that has it.
        """
    def __exit__(self, type: typing.Any, value: typing.Any, traceback: typing.Any) -> None:
        """
        Ends the turn.
        """
    def __init__(self) -> None:
        """
        Free.
        """
    @property
    def num_waiting(self) -> int:
        """
        How many threads wait for their turn, for tests.
        """
class FinishReason:
    """
    Why a request ended.
    
    Members:
    
      NONE
    
      STOP
    
      LENGTH
    
      ABORT
    
      ERROR
    
      DEADLINE
    """
    ABORT: typing.ClassVar[FinishReason]
    DEADLINE: typing.ClassVar[FinishReason]
    ERROR: typing.ClassVar[FinishReason]
    LENGTH: typing.ClassVar[FinishReason]
    NONE: typing.ClassVar[FinishReason]
    STOP: typing.ClassVar[FinishReason]
    __members__: typing.ClassVar[dict[str, FinishReason]]
    @typing.overload
    def __eq__(self, other: FinishReason) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: FinishReason) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class RequestUpdate:
    """
    What one step did for one request.
    """
    @property
    def error(self) -> str:
        ...
    @property
    def finish_reason(self) -> FinishReason:
        ...
    @property
    def id(self) -> int:
        ...
    @property
    def logprobs(self) -> numpy.ndarray:
        """
        A record array [new tokens, entries] of token, logprob and rank.
        """
    @property
    def metrics(self) -> RequestMetrics | None:
        ...
    @property
    def new_tokens(self) -> list[int]:
        ...
    @property
    def num_accepted(self) -> int:
        ...
    @property
    def num_cached_tokens(self) -> int:
        ...
    @property
    def num_earlier_prompt_logprobs(self) -> int:
        ...
    @property
    def num_earlier_tokens(self) -> int:
        ...
    @property
    def num_text_bytes(self) -> int:
        ...
    @property
    def prompt_logprobs(self) -> numpy.ndarray:
        """
        The same of prompt tokens.
        """
    @property
    def stop_string_index(self) -> int:
        ...
    @property
    def stop_token(self) -> int:
        ...
class ModelLimits:
    """
    What a loaded model can serve.
    """
    @property
    def block_size(self) -> int:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def eos_token_ids(self) -> list[int]:
        ...
    @property
    def isa(self) -> str:
        ...
    @property
    def kv_cache_dtype(self) -> str:
        ...
    @property
    def max_model_len(self) -> int:
        ...
    @property
    def model_max_len(self) -> int:
        ...
    @property
    def num_bytes_per_token(self) -> int:
        ...
    @property
    def num_kv_blocks(self) -> int:
        ...
    @property
    def num_threads(self) -> int:
        ...
    @property
    def num_unpacked_layers(self) -> dict[str, int]:
        ...
    @property
    def num_weight_bytes(self) -> int:
        ...
    @property
    def vocab_size(self) -> int:
        ...
    @property
    def weight_bytes(self) -> dict[str, int]:
        ...
    @property
    def weight_cache(self) -> str:
        ...
class DraftRecord:
    """
    What a drafter that is a model computed for one draft token.
    """
    @property
    def logits(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        A copy [draft vocabulary], float32.
        """
    @property
    def num_tokens(self) -> int:
        ...
    @property
    def path(self) -> list[int]:
        ...
    @property
    def request_id(self) -> int:
        ...
class Deadline:
    """
    A point in time.
    """
    def __init__(self, seconds: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        So many seconds from now on.
        """
    @property
    def seconds(self) -> float:
        ...
class Prediction:
    """
    A text that outputs are likely to resemble, indexed for all of them.
    """
    def __init__(self, token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Sorts them, without the GIL.
        """
    def __len__(self) -> int:
        """
        How many tokens it has.
        """
class SubmitOptions:
    """
    Where a request comes in its engine.
    """
    def __init__(self, priority: typing.SupportsInt | typing.SupportsIndex = 0, cache_salt: str = '', prediction: Prediction | None = None, deadline: Deadline | None = None) -> None:
        """
        priority: lower values run first; cache_salt: cached prefixes are shared among equal ones only; prediction: what the output is likely to resemble; deadline: when the request ends with what it has.
        """
    @property
    def cache_salt(self) -> str:
        ...
    @property
    def priority(self) -> int:
        ...
class Engine:
    """
    Generates tokens for many requests at once.
    """
    def __init__(self, options: EngineOptions, *, record_draft_logits: bool = False) -> None:
        """
        Maps and packs the model. record_draft_logits: keep what a drafter that is a model computes, for take_draft_records; for tests.
        """
    def add_eos_tokens(self, token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Tokens that end a text besides those of the model's configs.
        """
    def cancel(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Ends a request; false when no such request is unfinished.
        """
    def check_room(self, num_requests: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Raises QueueFullError unless so many more requests may be submitted now, and InvalidArgumentError when they never could be.
        """
    def has_unfinished(self) -> bool:
        """
        Whether a step has work to do.
        """
    def metrics(self) -> EngineMetrics:
        """
        A copy of the counters.
        """
    def reset_caches(self) -> None:
        """
        Drops every cached prefix and every past output that drafters remember.
        """
    def reset_prefix_cache(self) -> bool:
        """
        Drops every cached prefix; false while a request is unfinished.
        """
    def restore_outputs(self, outputs: collections.abc.Sequence[tuple[str, bytes]], is_last: bool) -> bool:
        """
        Lets drafters learn from outputs of earlier engines, the newest first: pairs of a cache salt and token ids as the bytes of int32 numbers. They are indexed here, without the GIL, while another thread steps. False: no more are wanted.
        """
    def set_token_bytes(self, token_bytes: collections.abc.Sequence[bytes], special_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = []) -> None:
        """
        Sets the bytes of each token, indexed by id; needed by requests with stop strings.
        """
    def start_trace(self, path: str) -> bool:
        """
        Writes a trace of the steps to come; false while another trace is written.
        """
    def step(self) -> list[RequestUpdate]:
        """
        Runs one draft/verify step without holding the GIL; returns its updates.
        """
    def stop_trace(self) -> None:
        """
        Ends the trace that is being written, if there is one.
        """
    @typing.overload
    def submit(self, prompt_token_ids: numpy.typing.NDArray[numpy.int32], params: SamplingParams, constraint: typing.Any = None, logits_hook: typing.Any = None, options: SubmitOptions = ...) -> int:
        """
        Queues a request and returns its id.
        """
    @typing.overload
    def submit(self, prompt_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], params: SamplingParams, constraint: typing.Any = None, logits_hook: typing.Any = None, options: SubmitOptions = ...) -> int:
        """
        Queues a request and returns its id.
        """
    def take_draft_records(self) -> list[DraftRecord]:
        """
        What a drafter that is a model computed since the last call, where record_draft_logits is set.
        """
    def updates(self) -> list[RequestUpdate]:
        """
        The updates of the last step, once more.
        """
    @property
    def limits(self) -> ModelLimits:
        """
        What the loaded model can serve.
        """
class LoopFailure:
    """
    An exception that a step threw.
    """
    def reraise(self) -> None:
        """
        Raises it.
        """
    @property
    def first_new_id(self) -> int:
        """
        It cost the requests with lower ids, which were cancelled.
        """
class EngineLoop:
    """
    A thread that steps an engine while there is work, without the GIL.
    """
    def __init__(self, engine: typing.Any, file_descriptor: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Starts the thread. A byte is written into file_descriptor when there is something to take.
        """
    def cancel(self, request_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Ends requests before the next step.
        """
    def is_current_thread(self) -> bool:
        """
        Whether this is called by what the engine calls.
        """
    def let_wait(self, request_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Lets updates of unfinished requests wait until they end, or several wait.
        """
    def stop(self) -> None:
        """
        Waits for the end of the current step, and runs no more.
        """
    def take(self) -> tuple[list[RequestUpdate], LoopFailure]:
        """
        The updates since the last call, and what a step threw: its requests are cancelled.
        """
    def wake(self) -> None:
        """
        Makes the thread look for submitted requests.
        """
class CheckpointFormat:
    """
    Which format a checkpoint has.
    """
    def can_serve_as(self, method: str) -> bool:
        """
        Whether a checkpoint of this format can be used as this method.
        """
    @property
    def evidence(self) -> str:
        """
        The tensors that show it.
        """
    @property
    def mtp_tensor(self) -> str:
        """
        A tensor of a layer for multi-token prediction; empty: there is none.
        """
    @property
    def name(self) -> str:
        """
        "target" for a language model, else the drafting method.
        """
    @property
    def obstacle(self) -> str:
        """
        Why it does not run as a drafter; empty: it runs.
        """
class WeightFiles:
    """
    Which files of a directory hold its weights.
    """
    @property
    def are_pickled(self) -> bool:
        """
        Whether torch.save wrote them; else they are safetensors.
        """
    @property
    def file_of_tensor(self) -> dict[str, str]:
        """
        File names by tensor, as the index says.
        """
    @property
    def index_name(self) -> str:
        """
        The file that lists the tensors; empty where all tensors of all files count.
        """
    @property
    def names(self) -> list[str]:
        """
        File names, sorted; empty where there are no weights.
        """
class Tensor:
    """
    A tensor of another library.
    """
    def __init__(self, capsule: typing_extensions.CapsuleType, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Takes over what the tensor's `__dlpack__` returned; the stream is a handle of CUDA's.
        """
    def integers(self) -> list[int]:
        """
        The elements of a vector, or of a matrix row by row. The dtype is int32 or int64.
        """
    @property
    def device(self) -> str:
        """
        Where it is: 'cpu', 'cuda:0' or another device.
        """
    @property
    def dtype(self) -> str:
        """
        Its type, such as 'float32'.
        """
    @property
    def shape(self) -> list[int]:
        """
        Its extents.
        """
class DeviceArray:
    """
    An array in the GPU's memory, for tests and benchmarks.
    """
    def __dlpack__(self, *, stream: typing.Any = None) -> typing_extensions.CapsuleType:
        """
        Complete on every stream.
        """
    def __dlpack_device__(self) -> tuple[int, int]:
        """
        The first GPU.
        """
    def __init__(self, memory: bytes, dtype: str, shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], strides: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], byte_offset: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        A copy of the memory. Strides are in elements.
        """
class SamplingRule:
    """
    The options that select a token.
    """
    def __init__(self, temperature: typing.SupportsFloat | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, top_p: typing.SupportsFloat | typing.SupportsIndex, min_p: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, acceptance_method: AcceptanceMethod) -> None:
        """
        Raises InvalidArgumentError that names the first option out of its range.
        """
class Draft:
    """
    The draft tokens of one request.
    """
    def __init__(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], parents: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], probs: Tensor | None) -> None:
        """
        Node i is tokens[i] after node parents[i], -1 for the root; probs [tokens, vocab] has the probabilities that each was drawn from, None where they are certain.
        """
    def __len__(self) -> int:
        """
        The number of draft tokens.
        """
class OperationProfile:
    """
    What one kind of operation takes.
    """
    @property
    def name(self) -> str:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def share(self) -> float:
        """
        Of the pass.
        """
    @property
    def share_of_arithmetic(self) -> float | None:
        """
        The arithmetic rate of products, by that of many rows of a small matrix.
        """
    @property
    def share_of_read(self) -> float | None:
        """
        The rate at which products read weights, by that of plain reading.
        """
class PassProfile:
    """
    Where the time of a forward pass goes.
    """
    @property
    def arithmetic_rate(self) -> float:
        """
        Multiplications and additions a second.
        """
    @property
    def num_context(self) -> int:
        """
        Tokens before the rows.
        """
    @property
    def num_rows(self) -> int:
        ...
    @property
    def operations(self) -> list[OperationProfile]:
        ...
    @property
    def read_rate(self) -> float:
        """
        Bytes a second of plain reading.
        """
    @property
    def seconds(self) -> float:
        ...
class Model:
    """
    A model without an engine: the logits of tokens that are already known.
    """
    def __init__(self, directory: str, *, dtype: str = 'auto', quantization: QuantizationOptions | None = None, kv_cache_dtype: str = 'auto', num_threads: typing.SupportsInt | typing.SupportsIndex = 0, isa: str = '', max_model_len: typing.SupportsInt | typing.SupportsIndex | None = None) -> None:
        """
        Maps and packs a Hugging Face model directory.
        """
    def logits(self, token_ids: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], chunks: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None) -> numpy.typing.NDArray[numpy.float32]:
        """
        Logits [len(token_ids), vocab_size]; row i predicts the token after token_ids[i]. `chunks` are the sizes of the forward passes, which change no value.
        """
    @property
    def dtype(self) -> str:
        """
        "bfloat16" or "float32": weights that are not integers, and the KV cache by default.
        """
    @property
    def isa(self) -> str:
        """
        The instruction set in use.
        """
    @property
    def max_model_len(self) -> int:
        """
        The most tokens of one call.
        """
    @property
    def vocab_size(self) -> int:
        """
        Number of token ids.
        """
def available_isas() -> list[str]:
    """
    Instruction sets that this machine has, best first.
    """
def block_types() -> dict[str, tuple[int, int]]:
    """
    How many weights and bytes a block of each GGUF type has that is read as it is.
    """
def canonical_draft_name(name: str) -> str:
    """
    The name of a tensor without the prefixes that formats of drafters add.
    """
def check_engine_options(options: EngineOptions) -> None:
    """
    Raises InvalidArgumentError that names the first wrong field; the model is not read.
    """
def check_sampling_params(params: SamplingParams) -> None:
    """
    Raises InvalidArgumentError that names the first wrong field.
    """
def check_speculative_options(options: SpeculativeOptions) -> None:
    """
    Raises InvalidArgumentError that names the first wrong field; no model is read.
    """
def configured_aux_layers(config: bytes) -> list[int] | None:
    """
    The layers of the target that an EAGLE-3 head reads, each by the number of layers before it.
    """
def default_aux_layers(num_layers: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
    """
    Those of a config that leaves them open.
    """
def detect_format(tensors: collections.abc.Mapping[str, collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]], config: bytes) -> CheckpointFormat:
    """
    The format of a checkpoint, by shapes of tensors by canonical name and the text of its config; raises CheckpointError where they contradict each other.
    """
def find_weight_files(directory: bytes) -> WeightFiles:
    """
    The files of a model directory (as os.fsencode gives it) that hold its weights.
    """
def flatten_draft_config(config: bytes) -> str:
    """
    The text of a config with the objects that some formats put around or inside it laid flat.
    """
def json_depth(text: bytes) -> int:
    """
    How many objects and arrays of a JSON text are open at once, at most.
    """
def num_gil_acquisitions() -> int:
    """
    How often the engines of this process have taken the GIL, for tests.
    """
def profile_passes(options: EngineOptions, report: collections.abc.Callable[[PassProfile], None], rounds: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Runs passes of a few rows and of prompts at several contexts; calls report(PassProfile) after each.
    """
def proposed_tokens(config: bytes) -> int | None:
    """
    The number of draft tokens that a config proposes, if any.
    """
def read_tensor(directory: str, name: str) -> numpy.typing.NDArray[numpy.float32]:
    """
    A matrix or vector of a checkpoint in float32: the weights that a model computes with, unpacked.
    """
def top_rows(logits: Tensor, count: typing.SupportsInt | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.float32]]:
    """
    The most probable tokens and their probabilities, both [rows, count].
    """
def verify_rows(logits: Tensor, drafts: collections.abc.Sequence[Draft], rules: collections.abc.Sequence[SamplingRule], output_indices: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32], dict[int, str]]:
    """
    Emitted tokens, accepted nodes (both padded with -1), numbers of tokens, and error texts by request.
    """
MAX_JSON_DEPTH: int = 128
