"""What goes with a request: parameters, prompts and the arguments of LLM's methods."""

from __future__ import annotations

from forerun.vllm_fields.field import (
    REQUIRED,
    Field,
    all_fixed,
    fixed,
    no_effect,
    own,
    runs,
)

_TEXT_ONLY = "models read text only"
_NO_LORA = "LoRA adapters are not supported"
_NO_WATERMARK = "texts are not watermarked"

SAMPLING_PARAMS: dict[str, Field] = {
    "n": runs(1, "completions of one prompt"),
    "temperature": runs(1.0, "0 is greedy"),
    "top_k": runs(0, "0 and -1 keep all tokens"),
    "top_p": runs(1.0, "in (0, 1]"),
    "min_p": runs(0.0, "in [0, 1]"),
    "presence_penalty": runs(0.0, "from -2 to 2"),
    "frequency_penalty": runs(0.0, "from -2 to 2"),
    "repetition_penalty": runs(1.0, "above 0"),
    "seed": runs(None, "None and -1: derived from the engine's seed and the request"),
    "stop": runs(None, "strings that end the text"),
    "stop_token_ids": runs(None, "tokens that end the text"),
    "ignore_eos": runs(False, "go on after the model's end of sequence"),
    "max_tokens": runs(16, "None: up to the model's length"),
    "min_tokens": runs(0, "no end before as many tokens"),
    "logprobs": runs(None, "-1 is the whole vocabulary; True is 1"),
    "prompt_logprobs": runs(None, "-1 is the whole vocabulary; True is 1"),
    "logprob_token_ids": runs(None, "logprobs of these tokens, beside the sampled one"),
    "flat_logprobs": runs(False, "logprobs in one flat table"),
    "detokenize": runs(True, "False leaves texts empty"),
    "skip_special_tokens": runs(True, "leave special tokens out of the text"),
    "include_stop_str_in_output": runs(False, "keep the stop string"),
    "output_kind": runs("CUMULATIVE", "what each output of LLMEngine.step holds"),
    "structured_outputs": runs(None, "a StructuredOutputsParams or a dict of its fields"),
    "logit_bias": runs(None, "ids as integers or as text"),
    "allowed_token_ids": runs(None, "nothing else can be sampled"),
    "bad_words": runs(None, "words that cannot be written"),
    "extra_args": runs(None, "a dict that logits processors of the engine read"),
    "thinking_token_budget": fixed(None, "answers are not parsed for reasoning", -1),
    "stream_interval": fixed(None, "every step is streamed", 1),
    "prompt_logprob_start": fixed(None, "prompts are scored from their beginning", 0),
    "skip_reading_prefix_cache": fixed(None, "cached values equal computed ones", False),
    **no_effect("texts are made of the tokens' own bytes", spaces_between_special_tokens=True),
    **no_effect("parameters are always copied when they are submitted", skip_clone=False),
    **all_fixed("texts end with a whole character", output_text_buffer_length=0),
    "watermarking": fixed(None, _NO_WATERMARK, False),
    **all_fixed("logprob_token_ids are reported of the output", prompt_logprob_token_ids=None),
    **all_fixed("repetitions end no text; see repetition_penalty", repetition_detection=None),
    **all_fixed("outputs have no such part", routed_experts_prompt_start=0),
    **all_fixed("tokens are sampled by the model alone", trace_decode_token_ids=None),
    # Forerun's own.
    "speculative": own("False decodes this request without drafts"),
    "max_draft_tokens": own("the most tokens drafted for this request in one step"),
    "logits_processors": own("functions of (output_token_ids, logits), as in older versions"),
}

STRUCTURED_OUTPUTS_PARAMS: dict[str, Field] = {
    "json": runs(None, "JSON that follows a schema, given as a dict or as text"),
    "regex": runs(None, "a match from its beginning to its end"),
    "choice": runs(None, "one of these strings"),
    "grammar": runs(None, "a grammar in Lark's or GBNF's notation"),
    "json_object": runs(None, "any JSON object"),
    "disable_any_whitespace": runs(False, "JSON without whitespace"),
    "disable_additional_properties": runs(False, "objects have no other properties"),
    "whitespace_pattern": runs(None, "JSON with this whitespace"),
    "structural_tag": fixed(None, "structural tags are not supported; write a grammar"),
}

BEAM_SEARCH_PARAMS: dict[str, Field] = {
    "beam_width": runs(REQUIRED, "beams kept at each token"),
    "max_tokens": runs(REQUIRED, "the most tokens to generate"),
    "ignore_eos": runs(False, "go on after the model's end of sequence"),
    "temperature": runs(0.0, "0: log-probabilities as they are"),
    "length_penalty": runs(1.0, "the exponent of the length that scores are divided by"),
    "include_stop_str_in_output": runs(False, "keep the end of the text"),
    "skip_special_tokens": runs(True, "leave special tokens out of the text"),
    "structured_outputs": runs(None, "a StructuredOutputsParams or a dict of its fields"),
    "allowed_token_ids": runs(None, "nothing else can be chosen"),
    "watermarking": fixed(None, _NO_WATERMARK, False),
}

# The fields that need no name, in the order of vLLM 0.33.
POSITIONAL: dict[str, tuple[str, ...]] = {
    "SamplingParams": (
        *("n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature"),
        *("watermarking", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
        *("ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
    ),
    "StructuredOutputsParams": ("json", "regex", "choice", "grammar", "json_object"),
    "BeamSearchParams": (
        *("beam_width", "max_tokens", "ignore_eos", "temperature", "length_penalty"),
        *("include_stop_str_in_output", "structured_outputs", "skip_special_tokens"),
        *("watermarking", "allowed_token_ids"),
    ),
}

PROMPT: dict[str, Field] = {
    "prompt": runs(REQUIRED, "text; beside prompt_token_ids it is only reported"),
    "prompt_token_ids": runs(REQUIRED, "token ids"),
    "cache_salt": runs(None, "only requests with the same salt share cached prefixes"),
    "prediction": own("a text or token ids that the output is likely to resemble"),
    **all_fixed(_TEXT_ONLY, multi_modal_data=None, multi_modal_uuids=None),
    **no_effect(_TEXT_ONLY, mm_processor_kwargs=None),
    **all_fixed("prompts are text or token ids", prompt_embeds=None),
    **all_fixed("models have no encoder", encoder_prompt=None, decoder_prompt=None),
    **all_fixed("models have no token types", token_type_ids=None),
    **no_effect("outputs do not report where tokens are in the text", prompt_token_offsets=None),
}

_OF_PROMPTS: dict[str, Field] = {
    "prompts": runs(REQUIRED, "one prompt or many: texts, token ids, or dicts of either"),
    "sampling_params": runs(None, "one for all prompts, or one for each"),
    "use_tqdm": runs(True, "show a progress bar"),
    "priority": runs(
        None, "one for all prompts, or one for each; needs scheduling_policy='priority'"
    ),
    "tokenization_kwargs": fixed(None, "the tokenizer's own settings hold"),
    **all_fixed(_NO_LORA, lora_request=None),
    **no_effect(_TEXT_ONLY, mm_processor_kwargs=None),
}
_OF_CHATS: dict[str, Field] = {
    "messages": runs(REQUIRED, "one conversation or many"),
    **{name: field for name, field in _OF_PROMPTS.items() if name != "prompts"},
    "chat_template": runs(None, "a template, or the name of one of the model's"),
    "chat_template_content_format": runs("auto", "whether templates get parts or text"),
    "add_generation_prompt": runs(True, "end with the beginning of an answer"),
    "continue_final_message": runs(False, "go on with the last message"),
    "tools": runs(None, "what the template says of tools"),
    "chat_template_kwargs": runs(None, "more variables of the template"),
}
_TIMEOUT = {"timeout": own("seconds after which DeadlineExceededError has what was generated")}
METHODS: dict[str, dict[str, Field]] = {
    "LLM.generate": _OF_PROMPTS | _TIMEOUT,
    "LLM.chat": _OF_CHATS | _TIMEOUT,
    "LLM.enqueue": _OF_PROMPTS,
    "LLM.enqueue_chat": _OF_CHATS,
    "LLM.stream": {
        "prompts": own(_OF_PROMPTS["prompts"].note),
        "sampling_params": own(_OF_PROMPTS["sampling_params"].note),
        **_TIMEOUT,
    },
    "LLM.beam_search": {
        "prompts": _OF_PROMPTS["prompts"],
        "params": runs(REQUIRED, "BeamSearchParams"),
        "use_tqdm": runs(False, "show a progress bar"),
        "concurrency_limit": runs(None, "the most prompts searched at a time"),
        **all_fixed(_NO_LORA, lora_request=None),
        **no_effect(_TEXT_ONLY, mm_processor_kwargs=None),
    },
    "LLM.wait_for_completion": {
        "output_type": runs(None, "None or RequestOutput, which is what requests end with"),
        "use_tqdm": runs(True, "show a progress bar"),
    },
    "LLM.reset_prefix_cache": {
        "reset_running_requests": fixed(False, "running requests keep what they computed"),
        "reset_connector": fixed(False, "there is no connector to another cache"),
    },
    "LLM.start_profile": {
        "profile_prefix": runs(None, "what the trace's file name begins with"),
        "delay_iterations": fixed(None, "a trace begins with the next step", 0),
        "max_iterations": fixed(None, "a trace goes on until stop_profile", 0),
        **all_fixed("there is no other profiler to pass it to", profiler_kwargs=None),
    },
    "LLM.get_world_size": {
        **no_effect("the engine runs in one process on one machine", include_dp=True)
    },
    "LLMEngine.from_engine_args": {
        "engine_args": runs(REQUIRED, "EngineArgs"),
        **no_effect("usage is not reported", usage_context=None),
        **all_fixed("counters are read from the engine, not logged", stat_loggers=None),
        **all_fixed("the engine runs in the caller's process", enable_multiprocessing=False),
    },
    "LLMEngine.add_request": {
        "request_id": runs(REQUIRED, "an id that no unfinished request has"),
        "prompt": runs(REQUIRED, "a text, token ids, or a dict of either"),
        "params": runs(REQUIRED, "SamplingParams"),
        "priority": runs(0, "needs scheduling_policy='priority'"),
        "prompt_text": runs(None, "the text that outputs report of token ids"),
        "tokenization_kwargs": _OF_PROMPTS["tokenization_kwargs"],
        **all_fixed(_NO_LORA, lora_request=None),
        **no_effect("requests run in the order they were added", arrival_time=None),
        **no_effect("traces are not exported", trace_headers=None),
    },
    "LLMEngine.abort_request": {
        "request_ids": runs(REQUIRED, "an id or many; those that no request has are ignored"),
        **no_effect("requests have one id, the caller's", internal=False),
    },
    "LLM.sleep": all_fixed(
        "the call is refused: the engine has no sleep mode", level=1, mode="abort"
    ),
    "LLM.wake_up": all_fixed("the call is refused: the engine has no sleep mode", tags=None),
    "LLM.collective_rpc": {
        "method": fixed(REQUIRED, "the call is refused: the engine has no worker processes"),
        **all_fixed(
            "the call is refused: the engine has no worker processes",
            timeout=None,
            args=(),
            kwargs=None,
        ),
    },
    "LLM.apply_model": {
        "func": fixed(REQUIRED, "the call is refused: the model is not a PyTorch module")
    },
}
