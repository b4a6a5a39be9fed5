"""SpeculativeConfig."""

from __future__ import annotations

from forerun.vllm_fields.field import Field, all_fixed, fixed, no_effect, own, runs

_ONE_PROCESS = "the engine runs in one process on one machine"
_NO_SIMULATION = "acceptance is measured, never simulated"
_LOSSLESS = "drafts are only accepted where the output stays what it is without them"
_BLOCKWISE = "drafters that draft a block in one pass do not run"

SPECULATIVE_CONFIG: dict[str, Field] = {
    "method": runs(
        None,
        "None: detected; 'ngram_gpu' is 'ngram', 'deepseek_mtp' and others are 'mtp'",
    ),
    "model": runs(None, "the drafter: a directory, a .gguf file or a hub id"),
    "num_speculative_tokens": runs(None, "the most tokens drafted in one step"),
    "revision": runs(None, "the branch, tag or commit of a drafter on the hub"),
    "prompt_lookup_max": runs(None, "ngram: the longest run of last tokens to look for"),
    "prompt_lookup_min": runs(None, "ngram: the shortest"),
    "suffix_decoding_max_tree_depth": runs(24, "suffix: the most tokens of match and draft"),
    "suffix_decoding_max_cached_requests": runs(10000, "suffix: how many outputs are kept"),
    "suffix_decoding_max_spec_factor": runs(1.0, "suffix: tokens drafted per token matched"),
    "suffix_decoding_min_token_prob": runs(0.1, "suffix: less probable tokens are not drafted"),
    "draft_sample_method": runs("greedy", "how a model picks draft tokens"),
    "rejection_sample_method": runs(
        "standard",
        "'standard' keeps acceptance_method, 'block' sets it to 'block'",
    ),
    "use_heterogeneous_vocab": runs(
        False, "whether a draft model may have another vocabulary; None: yes"
    ),
    "max_model_len": runs(None, "at least the target's: a drafter goes as far as its target"),
    "draft_tensor_parallel_size": fixed(None, _ONE_PROCESS, 1),
    "tensor_parallel_size": fixed(None, _ONE_PROCESS, 1),
    "quantization": runs(
        None,
        "models: as for LLM; {}: as stored; None: as the target, at least `int8`",
    ),
    "kv_cache_dtype": fixed(None, "it has the target's type", "auto"),
    **no_effect("a draft model runs as its target does", enforce_eager=None),
    **no_effect("padding changes no result", disable_padded_drafter_batch=False),
    **no_effect(
        "each operation has one implementation for each CPU",
        moe_backend=None,
        attention_backend=None,
        use_local_argmax_reduction=False,
    ),
    **no_effect("no code of a model is ever run", code_revision=None),
    **no_effect(
        "the prefix cache keeps the hidden states that drafters read",
        disable_eagle_block_drop=False,
        disable_lookahead_block_hashes=False,
    ),
    **all_fixed(
        "`quantization` has a key for the head: {'head': 'int8'}", draft_lm_head_quantization=None
    ),
    **all_fixed("weights are read one way", draft_load_config=None),
    "index_share_for_mtp_iteration": fixed(None, "every layer computes its own", False),
    **all_fixed(
        "the engine fills it in",
        target_model_config=None,
        target_parallel_config=None,
        draft_model_config=None,
        draft_parallel_config=None,
    ),
    **all_fixed(
        "'adaptive' shortens drafts that save no time",
        num_speculative_tokens_per_batch_size=None,
        enable_adaptive_verification=False,
        disable_by_batch_size=None,
    ),
    **all_fixed(_NO_SIMULATION, synthetic_acceptance_rates=None, synthetic_acceptance_length=None),
    **all_fixed(_BLOCKWISE, parallel_drafting=False, dspark_draft_topk=None, xpress_topc=None),
    **all_fixed(_LOSSLESS, fly_window_size=None),
    **no_effect(_LOSSLESS, fly_entropy_threshold=0.3, fly_entropy_top_k=3),
    # Forerun's own, or of older versions of vLLM.
    "adaptive": own("shorten drafts that save no time"),
    "acceptance_method": own("'coupled', 'rejection' or 'block'"),
    "suffix_decoding_use_tree": own("suffix: draft a tree"),
    "draft_tree_width": own("models: candidates kept at each level of a tree"),
    "draft_vocab_size": own("models: how many tokens are drafted from"),
    "draft_tree_depth": own("models: the most levels of a tree"),
    "speculative_token_tree": own("models: a tree of fixed shape"),
    "aux_hidden_state_layer_ids": own("eagle3: the target's layers that it reads"),
    "norm_output": own("eagle3: whether the next step gets the normed state"),
    "norm_before_residual": own("eagle3: whether the residual is the normed hidden state"),
    "norm_target_state": own("mtp: whether it reads the target's state after the final norm"),
}
