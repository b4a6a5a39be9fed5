"""One engine in a process of its own, driven by lines of JSON: what run.py starts.

    python bench/peers/engines.py KIND MODEL NUM_THREADS OPTIONS

OPTIONS is a JSON object for the engine's constructor. Every line of standard input is a request,
every line of standard output the answer to one. {"do": "decode", "ids": [...], "num_tokens": N} is
answered with {"prompt_seconds": ..., "tokens_per_second": ...}, and {"do": "chats", "prompts":
[[...], ...], "num_tokens": N} with the rate of all together and, as "step_seconds", the time
between two tokens of the chat that began last. {"do": "texts"} asks Forerun for the demo's prompts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol


class Engine(Protocol):
    """An engine with greedy decoding that stops at nothing but a number of tokens."""

    def decode(self, ids: list[int], num_tokens: int) -> dict[str, Any]:
        """Times one prompt: its seconds to the first token, and tokens/s after that."""

    def chats(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Times prompts that are there at once: all generated tokens over all seconds."""


class Forerun:
    """forerun.LLM; options are its arguments."""

    def __init__(self, model: str, num_threads: int, options: dict[str, Any]) -> None:
        from forerun import LLM, SamplingParams

        self.llm = LLM(model, num_threads=num_threads, max_num_seqs=16, **options)
        self.params = SamplingParams

    def decode(self, ids: list[int], num_tokens: int) -> dict[str, Any]:
        """As Engine.decode, with nothing cached of earlier prompts."""
        self.llm.reset_caches()
        params = self.params(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        [output] = self.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        metrics = output.metrics
        assert metrics is not None
        seconds = metrics.total_seconds - metrics.first_token_seconds
        return {
            "prompt_seconds": metrics.first_token_seconds - metrics.queue_seconds,
            "tokens_per_second": (num_tokens - 1) / seconds if num_tokens > 1 else None,
        }

    def chats(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """As Engine.chats, with nothing cached of earlier prompts."""
        self.llm.reset_caches()
        params = self.params(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        begin = time.perf_counter()
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        seconds = time.perf_counter() - begin
        times = [output.metrics for output in outputs if output.metrics is not None]
        last = max(times, key=lambda metrics: metrics.first_token_seconds)
        step = (last.total_seconds - last.first_token_seconds) / (num_tokens - 1)
        return {"tokens_per_second": len(prompts) * num_tokens / seconds, "step_seconds": step}

    def texts(self) -> dict[str, list[int]]:
        """Token ids of the demo's prompts, by name."""
        from forerun.tools.demo import prompts

        return {
            name: list(prompt["prompt_token_ids"])
            for name, (prompt, _) in prompts(self.llm).items()
        }


class Transformers:
    """transformers on torch's CPU kernels; the option "dtype" names torch's type."""

    def __init__(self, model: str, num_threads: int, options: dict[str, Any]) -> None:
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        self.torch = torch
        dtype = getattr(torch, options.get("dtype", "bfloat16"))
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def decode(self, ids: list[int], num_tokens: int) -> dict[str, Any]:
        """As Engine.decode."""
        torch = self.torch
        with torch.no_grad():
            begin = time.perf_counter()
            out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            first = time.perf_counter()
            for _ in range(num_tokens - 1):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            seconds = time.perf_counter() - first
        return {
            "prompt_seconds": first - begin,
            "tokens_per_second": (num_tokens - 1) / seconds if num_tokens > 1 else None,
        }

    def chats(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """As Engine.chats, padded on the left."""
        torch = self.torch
        longest = max(len(ids) for ids in prompts)
        padded = [[0] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        begin = time.perf_counter()
        with torch.no_grad():
            self.model.generate(
                torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        return {"tokens_per_second": len(prompts) * num_tokens / (time.perf_counter() - begin)}


class OpenVino:
    """OpenVINO GenAI's LLMPipeline on a directory that it converted, or a .gguf file.

    Options are the pipeline's properties, and "prompt_lookup" for its n-gram drafts.
    """

    def __init__(self, model: str, num_threads: int, options: dict[str, Any]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.genai, self.openvino, self.numpy = openvino_genai, openvino, numpy
        self.num_drafts = options.pop("prompt_lookup", 0)
        properties = {"INFERENCE_NUM_THREADS": num_threads, **options}
        if self.num_drafts:
            properties["prompt_lookup"] = True
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", **properties)
        self.model, self.properties, self.batches = model, properties, None

    def _inputs(self, ids: list[int]) -> Any:
        tensor, numpy = self.openvino.Tensor, self.numpy
        ones = numpy.ones((1, len(ids)), dtype=numpy.int64)
        return self.genai.TokenizedInputs(
            tensor(numpy.array([ids], dtype=numpy.int64)), tensor(ones)
        )

    def decode(self, ids: list[int], num_tokens: int) -> dict[str, Any]:
        """As Engine.decode; the pipeline says when the first token was there."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = num_tokens, True
        if self.num_drafts:
            config.num_assistant_tokens, config.max_ngram_size = self.num_drafts, 3
        begin = time.perf_counter()
        result = self.pipeline.generate(self._inputs(ids), config)
        seconds = time.perf_counter() - begin
        first = result.perf_metrics.get_ttft().mean / 1e3
        return {
            "prompt_seconds": first,
            "tokens_per_second": (num_tokens - 1) / (seconds - first) if num_tokens > 1 else None,
        }

    def chats(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """As Engine.chats, with the pipeline that batches, which is made for the first."""
        if self.batches is None:
            scheduler = self.genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            self.batches = self.genai.ContinuousBatchingPipeline(
                self.model, scheduler, "CPU", self.properties
            )
        tensors = [self.openvino.Tensor(self.numpy.array([ids])) for ids in prompts]
        config = self.genai.GenerationConfig()
        config.ignore_eos = True
        seconds = []
        for config.max_new_tokens in (
            1,
            num_tokens,
        ):  # its own time per token is not that of a step
            begin = time.perf_counter()
            self.batches.generate(tensors, [config] * len(prompts))
            seconds.append(time.perf_counter() - begin)
        return {
            "tokens_per_second": len(prompts) * num_tokens / seconds[1],
            "step_seconds": (seconds[1] - seconds[0]) / (num_tokens - 1),
        }


KINDS = {"forerun": Forerun, "transformers": Transformers, "openvino": OpenVino}


def main() -> None:
    kind, model, num_threads, options = sys.argv[1:5]
    # What a library prints must not be taken for an answer.
    answers = sys.stdout
    sys.stdout = sys.stderr
    engine: Engine = KINDS[kind](model, int(num_threads), json.loads(options))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(engine, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
