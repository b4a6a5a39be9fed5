"""EngineArgs, which are also the keywords of LLM."""

from __future__ import annotations

from forerun.vllm_fields.field import (
    Field,
    Made,
    all_fixed,
    fixed,
    no_effect,
    own,
    runs,
)

_ONE_PROCESS = "the engine runs in one process on one machine"
_ONE_DEVICE = "the engine runs on the CPU or the first GPU that CUDA shows"
_TEXT_ONLY = "models read text only"
_NO_LORA = "LoRA adapters are not supported"
_NO_EXPERTS = "experts are not divided among processes"
_NO_MAMBA = "models with Mamba or linear attention do not run"
_OWN_QUANTIZATION = "`quantization` says how weights are stored"
_NO_GRAPHS = "nothing is compiled; see enforce_eager"
_KERNELS = "each operation has one implementation for each CPU"
_OFFLOAD = "weights are in the memory of the device that runs the model"
_NO_TRANSFER = "KV blocks and weights stay in this process"
_NO_PLUGINS = "the engine has no plug-ins for it"
_NO_TRACES = "traces and metrics are read from the LLM, not exported"
_NO_SLEEP = "the engine has no sleep mode"

ENGINE_ARGS: dict[str, Field] = {
    # What is loaded.
    "model": runs("Qwen/Qwen3-0.6B", "a directory, a .gguf file or the id of a model on the hub"),
    "tokenizer": runs(None, "a directory with another tokenizer than the model's"),
    "skip_tokenizer_init": runs(False, "no tokenizer: token ids in, token ids out"),
    "revision": runs(None, "the branch, tag or commit of a model on the hub"),
    "dtype": runs(
        "auto",
        "type of weights that are not integers; float16 runs as 'auto', which the log reports",
    ),
    "quantization": runs(
        None,
        "`int8`, `int4`, `none`, a dict of them, or what the model is; None: as stored",
    ),
    "trust_remote_code": fixed(False, "no code of a model is ever run", True),
    "load_format": fixed("auto", "read as the files need, safetensors first", "safetensors"),
    "config_format": fixed("auto", "configs are read as Hugging Face writes them", "hf"),
    "tokenizer_mode": fixed("auto", "tokenizers are read from tokenizer.json", "hf"),
    "model_impl": fixed("auto", "each family of models has one implementation", "vllm"),
    "runner": fixed("auto", "models generate text; none pools", "generate"),
    "convert": fixed("auto", "models generate text; none pools", "none"),
    "hf_token": fixed(None, "set HF_TOKEN, or log in with `hf auth login`", True),
    "chat_template": fixed(None, "give it to chat()"),
    "generation_config": runs(
        "auto",
        "source of default parameters: the model, 'vllm' (none), or a directory",
    ),
    "override_generation_config": runs(
        Made("{}"), "values that take precedence over generation_config"
    ),
    **all_fixed("set HF_HOME to choose where models are kept", download_dir=None),
    **all_fixed("the tokenizer comes with the model's revision", tokenizer_revision=None),
    **all_fixed("weights and config are read from `model`", model_weights="", hf_config_path=None),
    **all_fixed(
        "config.json is read as it is; change it in a copy of the model",
        hf_overrides=Made("{}"),
        model_class_overrides=Made("{}"),
        disable_sliding_window=False,
    ),
    **all_fixed("weights are read one way", model_loader_extra_config=Made("{}")),
    **no_effect("no code of a model is ever run", code_revision=None),
    **no_effect(
        "weights are memory-mapped and packed as they are read",
        safetensors_load_strategy=None,
        safetensors_prefetch_num_threads=8,
        safetensors_prefetch_block_size=16 << 20,
        max_parallel_loading_workers=None,
        pt_load_map_location="cpu",
        use_tqdm_on_load=True,
    ),
    **no_effect("only files that a model needs are downloaded", ignore_patterns=["original/**/*"]),
    **no_effect(
        "it names a model that is served; here nothing is",
        served_model_name=None,
    ),
    # What runs at a time.
    "seed": runs(0, "what requests without a seed derive theirs from"),
    "max_model_len": runs(
        None, "the most tokens of prompt and output together; None: the model's own limit"
    ),
    "max_num_seqs": runs(None, "requests that run at the same time; None: 32"),
    "max_num_batched_tokens": runs(None, "tokens computed in one step; None: 2048"),
    "block_size": runs(None, "tokens of one KV block; None: 16"),
    "enable_prefix_caching": runs(None, "None: True"),
    "kv_cache_memory_bytes": runs(None, "the size of the KV cache; None: sized for the model"),
    "gpu_memory_utilization": runs(
        0.92,
        "the part of a GPU's memory that all may take; no effect on the CPU",
    ),
    "scheduling_policy": runs("fcfs", "'priority' runs lower priorities first"),
    **no_effect("prompts are always computed in chunks", enable_chunked_prefill=None),
    **no_effect("a step is planned when the one before it has ended", async_scheduling=None),
    **no_effect("the engine has no other mode to prefer", performance_mode="balanced"),
    **all_fixed("every step is streamed", stream_interval=1),
    **all_fixed(
        "limits: max_num_seqs, max_num_batched_tokens",
        max_num_scheduled_tokens=None,
        long_prefill_token_threshold=0,
        long_prefill_token_threshold_adaptive=False,
        max_num_active_seqs=None,
        max_num_queued_reqs=None,
        max_num_queued_tokens=None,
        scheduler_reserve_full_isl=True,
        prefill_schedule_interval=1,
        watermark=0.0,
        num_gpu_blocks_override=None,
        scheduler_cls=None,
    ),
    **no_effect("all layers share one KV cache", disable_hybrid_kv_cache_manager=None),
    **no_effect("KV blocks are found by the tokens they hold", prefix_caching_hash_algo="sha256"),
    **all_fixed("prefixes are matched in whole KV blocks", prefix_match_unit=None),
    "kv_cache_dtype": runs(
        "auto",
        "`bfloat16`, `float32`, `int8` (`int8_per_token_head`), or `auto`: as `dtype`",
    ),
    **all_fixed("all layers have one type", kv_cache_dtype_skip_layers=[]),
    **no_effect(
        "every layer keeps the keys and values of all tokens",
        prefix_cache_retention_interval=0,
        swa_bounded_replay=True,
        kv_sharing_fast_prefill=False,
    ),
    # Speculation.
    "speculative_config": runs(None, "how drafts are made: a dict of SpeculativeConfig's fields"),
    "spec_method": runs(None, "`method` of a speculative_config"),
    "spec_model": runs(None, "`model` of a speculative_config"),
    "spec_tokens": runs(None, "`num_speculative_tokens` of a speculative_config"),
    # What comes out.
    "logits_processors": runs(None, "subclasses of forerun.LogitsProcessor, for all requests"),
    **no_effect("requests may ask for any number of logprobs", max_logprobs=20),
    "logprobs_mode": fixed("raw_logprobs", "logprobs are those of the model's own logits"),
    "disable_log_stats": fixed(False, "counters are always kept and never logged", True),
    "per_request_spec_decode_metrics": runs("none", "fills CompletionOutput.spec_decode_metrics"),
    "structured_outputs_config": runs(
        Made("StructuredOutputsConfig()"),
        "a dict of StructuredOutputsConfig's fields",
    ),
    **all_fixed(
        "answers are not parsed for reasoning",
        reasoning_parser="",
        reasoning_parser_plugin=None,
        reasoning_config=Made("ReasoningConfig()"),
    ),
    **all_fixed(
        "outputs have no such part",
        enable_return_routed_experts=False,
        return_sampling_mask=False,
        aux_output_config=Made("AuxOutputConfig()"),
    ),
    **all_fixed("tokens are sampled by the model alone", enable_trace_replay=False),
    **all_fixed("the sampler's noise has one precision", use_fp64_gumbel=False),
    **all_fixed("texts are not watermarked", watermark_config=None),
    **all_fixed("models write from left to right", diffusion_config=None, engram_config=None),
    **all_fixed("models generate text; none pools", pooler_config=None),
    **all_fixed("prompts are text or token ids", enable_prompt_embeds=False),
    # What a CPU in one process has no use for.
    **{
        name: fixed(1, _ONE_PROCESS)
        for name in (
            *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
            *("prefill_context_parallel_size", "decode_context_parallel_size", "nnodes"),
        )
    },
    "distributed_executor_backend": fixed(None, "the engine runs in one process", "uni", "mp"),
    "data_parallel_rank": fixed(None, _ONE_PROCESS, 0),
    "data_parallel_start_rank": fixed(None, _ONE_PROCESS, 0),
    "data_parallel_size_local": fixed(None, _ONE_PROCESS, 1),
    **all_fixed(
        _ONE_PROCESS,
        node_rank=0,
        data_parallel_hybrid_lb=False,
        data_parallel_external_lb=False,
        data_parallel_multi_port_external_lb=False,
        worker_cls="auto",
        worker_extension_cls="",
        enable_dbo=False,
        enable_fault_tolerance=False,
    ),
    **no_effect(
        _ONE_PROCESS,
        master_addr="127.0.0.1",
        master_port=29501,
        distributed_timeout_seconds=None,
        cpu_distributed_timeout_seconds=None,
        data_parallel_address=None,
        data_parallel_rpc_port=None,
        data_parallel_backend="mp",
        dcp_comm_backend=None,
        dcp_q_replicate=None,
        dcp_kv_cache_interleave_size=1,
        cp_kv_cache_interleave_size=None,
        dp_sync_interval=16,
        disable_nccl_for_dp_synchronization=None,
        disable_custom_all_reduce=False,
        enable_shm_tensor_arena=False,
        enable_hc_sp=False,
        enable_batch_sharded_sampling=None,
        ubatch_size=0,
        dbo_decode_token_threshold=32,
        dbo_prefill_token_threshold=512,
        ray_workers_use_nsight=False,
        renderer_num_workers=1,
        aggregate_engine_logging=False,
        shutdown_timeout=0,
        fault_tolerance_config=Made("FaultToleranceConfig()"),
        watchdog_config=Made("WatchdogConfig()"),
    ),
    **all_fixed(
        "bind the process with numactl",
        numa_bind=False,
        numa_bind_nodes=None,
        numa_bind_cpus=None,
    ),
    **all_fixed(
        _NO_EXPERTS, enable_expert_parallel=False, enable_eplb=False, enable_elastic_ep=False
    ),
    **no_effect(
        _NO_EXPERTS,
        enable_ep_weight_filter=False,
        elastic_ep_max_dp_size=None,
        eplb_config=Made("EPLBConfig()"),
        expert_placement_strategy="linear",
        all2all_backend="allgather_reducescatter",
        moe_backend="auto",
    ),
    **all_fixed(_ONE_DEVICE, device_ids=None),
    "device": runs(
        "auto",
        "`cpu`, which `auto` means, or `cuda`",
    ),
    "enforce_eager": runs(
        False, "True: no CUDA graphs, a GPU gets operation by operation; no effect on the CPU"
    ),
    **no_effect(
        _NO_GRAPHS,
        cudagraph_capture_sizes=None,
        max_cudagraph_capture_size=None,
        cudagraph_metrics=False,
        compilation_config=Made("CompilationConfig()"),
        optimization_level=2,
        jit_monitor_mode="warn",
        jit_monitor_verbose=False,
    ),
    **no_effect(
        _KERNELS,
        ir_op_priority=Made("IrOpPriorityConfig()"),
        linear_backend="auto",
        sparse_indexer_topk_backend="auto",
        disable_cascade_attn=None,
        attention_config=Made("AttentionConfig()"),
        attention_backend=None,
        kernel_config=Made("KernelConfig()"),
        enable_flashinfer_autotune=None,
        monokernel=None,
        gdn_prefill_backend=None,
        kda_prefill_backend=None,
        kda_decode_backend=None,
    ),
    **no_effect(
        _OFFLOAD,
        offload_backend="auto",
        cpu_offload_gb=0,
        cpu_offload_params=set(),
        offload_group_size=0,
        offload_num_in_group=1,
        offload_prefetch_step=1,
        offload_params=set(),
    ),
    **all_fixed(
        _NO_TRANSFER,
        kv_offloading_size=None,
        kv_transfer_config=None,
        kv_events_config=None,
        ec_transfer_config=None,
        ec_manager_config=Made("EncoderCacheManagerConfig()"),
        weight_transfer_config=None,
    ),
    **no_effect(_NO_TRANSFER, kv_offloading_backend="native"),
    **all_fixed(
        _NO_SLEEP,
        enable_sleep_mode=False,
        enable_cumem_allocator=False,
        enable_nccl_comm_suspend=False,
    ),
    **no_effect(
        _NO_SLEEP,
        sleep_mode_backend="cumem",
        sleep_mode_offload_cudagraph=False,
        sleep_preserve_parameter_names=[],
    ),
    **all_fixed(_OWN_QUANTIZATION, quantization_config=None),
    **no_effect(_OWN_QUANTIZATION, allow_deprecated_quantization=False),
    **all_fixed(_NO_LORA, enable_lora=False, default_mm_loras=None, max_lora_cls_labels=None),
    **no_effect(
        _NO_LORA,
        max_loras=1,
        max_lora_rank=16,
        fully_sharded_loras=False,
        max_cpu_loras=None,
        lora_dtype="auto",
        lora_target_modules=None,
        enable_tower_connector_lora=False,
        specialize_active_lora=False,
        enable_mixed_moe_lora_format=False,
        enable_moe_shared_loras=False,
    ),
    **all_fixed(_TEXT_ONLY, mm_encoder_only=False, mm_encoder_fp8_scale_save_path=None),
    **no_effect(
        _TEXT_ONLY,
        language_model_only=False,
        allowed_local_media_path="",
        allowed_media_domains=None,
        limit_mm_per_prompt=Made("{}"),
        enable_mm_embeds=False,
        interleave_mm_strings=False,
        media_io_kwargs=Made("{}"),
        mm_processor_kwargs=None,
        mm_processor_cache_gb=4,
        mm_processor_cache_type="lru",
        mm_hasher_algorithm="blake3",
        mm_shm_cache_max_object_size_mb=128,
        mm_encoder_tp_mode="weights",
        mm_encoder_attn_backend=None,
        mm_encoder_attn_dtype=None,
        mm_encoder_fp8_scale_path=None,
        mm_encoder_fp8_scale_save_margin=1.5,
        skip_mm_profiling=False,
        video_pruning_rate=None,
        video_pruning_method="evs",
        mm_tensor_ipc="direct_rpc",
        mm_processor_device="auto",
        mm_ipc_gpu_memory_gb=0,
        mm_device_do_normalize=None,
        disable_chunked_mm_input=False,
    ),
    **no_effect(
        _NO_MAMBA,
        mamba_config=Made("MambaConfig()"),
        mamba_cache_dtype="auto",
        mamba_ssm_cache_dtype="auto",
        mamba_block_size=None,
        mamba_cache_mode=None,
        enable_mamba_shared_prefix_checkpoint=False,
        replayssm_buffer_len=16,
        use_replayssm=False,
        mamba_backend="triton",
        mamba_ssu_algorithm=None,
        enable_mamba_cache_stochastic_rounding=False,
        mamba_cache_philox_rounds=0,
    ),
    **all_fixed(
        _NO_TRACES,
        show_hidden_metrics_for_version=None,
        otlp_traces_endpoint=None,
        collect_detailed_traces=None,
        kv_cache_metrics=False,
        custom_histogram_buckets=None,
        enable_layerwise_nvtx_tracing=False,
        enable_mfu_metrics=False,
        enable_logging_iteration_details=False,
    ),
    "profiler_config": runs(
        Made("ProfilerConfig()"),
        "a dict of ProfilerConfig's fields, for start_profile",
    ),
    **no_effect(_NO_TRACES, kv_cache_metrics_sample=0.01, enable_mm_processor_stats=False),
    **all_fixed(
        "configure the logger 'forerun' of Python's logging",
        logging_config=None,
        log_level=None,
        log_config_file=None,
    ),
    **all_fixed(
        _NO_PLUGINS, additional_config=Made("{}"), io_processor_plugin=None, tokens_only=False
    ),
    **no_effect("vLLM's environment variables are not read", fail_on_environ_validation=False),
    # Forerun's own.
    "suffix_memory": own("a file that keeps what `suffix` and `hybrid` learn from past outputs"),
    "max_waiting_requests": own(
        "requests that may wait; more raise QueueFullError; None: no limit"
    ),
    "num_threads": own("threads that compute; 0: one for each available core"),
    "check_invariants": own("check every account after every step; for tests"),
    "verify_device": own("`cuda` verifies on the GPU what the CPU computed; for tests"),
}

PROFILER_CONFIG: dict[str, Field] = {
    "profiler": runs(
        None, "`torch` writes traces of the engine's steps, in Chrome's trace format, without torch"
    ),
    "torch_profiler_dir": runs("", "the directory of the traces; made if it does not exist"),
    **no_effect(
        "a trace holds the parts of each step, in plain JSON",
        torch_profiler_activities=None,
        torch_profiler_with_stack=True,
        torch_profiler_with_flops=False,
        torch_profiler_use_gzip=True,
        torch_profiler_dump_cuda_time_total=True,
        torch_profiler_record_shapes=False,
        torch_profiler_with_memory=False,
        capture_torch_profiler=False,
        detailed_trace_annotation=False,
        ignore_frontend=False,
    ),
    **all_fixed(
        "a trace holds all steps from start_profile to stop_profile",
        delay_iterations=0,
        max_iterations=0,
        warmup_iterations=0,
        wait_iterations=0,
    ),
    **no_effect("the profiler has no schedule", active_iterations=5),
    **all_fixed(
        "Triton's profiler does not run on the CPU",
        proton_profiler_dir="",
        proton_backend=None,
        proton_mode=None,
        proton_hook=None,
        proton_output_format=None,
        proton_graph_attribution=False,
    ),
    **no_effect(
        "Triton's profiler does not run on the CPU", proton_context="shadow", proton_data="tree"
    ),
}

STRUCTURED_OUTPUTS_CONFIG: dict[str, Field] = {
    "backend": runs(
        "auto",
        "llguidance (vLLM's `guidance`) runs for all of vLLM's names, as the log says",
    ),
    **all_fixed(
        "set it in StructuredOutputsParams",
        disable_any_whitespace=False,
        disable_additional_properties=False,
    ),
    **all_fixed(
        "answers are not parsed for reasoning",
        reasoning_parser="",
        reasoning_parser_plugin="",
        enable_in_reasoning=False,
    ),
}
