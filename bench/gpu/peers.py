"""Times other engines on the same model and GPU: one of torch, transformers, vllm and sglang.

    python bench/gpu/peers.py ENGINE MODEL [--device cpu] [--tiny]

Prints lines of JSON, as time_engine.py does: plain greedy decoding of one request after a prompt,
and prompts of several lengths. "torch" is a loop over a Llama written out below, in a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from figures import FULL, PLAIN, TINY, Report, Sizes

Tensors = dict[str, Any]


class Peer(Protocol):
    """Greedy decoding of one request that stops at nothing but a number of tokens."""

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        """The new ids; all work is done when it returns."""


class TorchLlama:
    """A Llama in plain torch, one row a step into a cache of fixed size."""

    def __init__(self, model: Path, device: str, max_len: int) -> None:
        import torch
        from safetensors.torch import load_file

        self.torch, self.device = torch, device
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eps, self.num_layers = config["rms_norm_eps"], config["num_hidden_layers"]
        self.tensors: Tensors = {}
        for file in sorted(model.glob("*.safetensors")):
            self.tensors |= load_file(file, device=device)
        embedding = self.tensors["model.embed_tokens.weight"]
        self.head = self.tensors.get("lm_head.weight", embedding)
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        powers = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        angles = torch.arange(max_len, device=device).float()[:, None] * theta**-powers
        self.cos, self.sin = angles.cos(), angles.sin()  # [max_len, head_dim / 2]
        shape = (self.num_layers, self.kv_heads, max_len, self.head_dim)
        self.keys = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.values = torch.zeros_like(self.keys)
        self.columns = torch.arange(max_len, device=device)
        self.token = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.step = self._captured() if device == "cuda" else self._step

    def _norm(self, x: Any, name: str) -> Any:
        weight = self.tensors[name]
        return self.torch.nn.functional.rms_norm(x, weight.shape, weight, self.eps)

    def _rotate(self, x: Any, positions: Any) -> Any:
        """[heads, rows, head_dim], halves turned against each other."""
        cos, sin = self.cos[positions], self.sin[positions]
        a, b = x.float().chunk(2, -1)
        return self.torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    def _attend(self, x: Any, index: int, positions: Any, mask: Any, length: int) -> Any:
        functional, name = self.torch.nn.functional, f"model.layers.{index}.self_attn"

        def heads(part: str) -> Any:
            y = functional.linear(x, self.tensors[f"{name}.{part}_proj.weight"])
            return y.view(len(x), -1, self.head_dim).transpose(0, 1)

        queries = self._rotate(heads("q"), positions)
        self.keys[index].index_copy_(1, positions, self._rotate(heads("k"), positions))
        self.values[index].index_copy_(1, positions, heads("v"))
        keys, values = self.keys[index, :, :length], self.values[index, :, :length]
        y = functional.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
        )
        y = y[0].transpose(0, 1).reshape(len(x), -1)
        return functional.linear(y, self.tensors[f"{name}.o_proj.weight"])

    def forward(self, tokens: Any, positions: Any, length: int) -> Any:
        """The best next token after the last row; the cache is read up to `length`."""
        functional = self.torch.nn.functional
        mask = self.columns[:length] <= positions[:, None]
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for index in range(self.num_layers):
            name = f"model.layers.{index}"
            y = self._norm(x, f"{name}.input_layernorm.weight")
            x = x + self._attend(y, index, positions, mask, length)
            y = self._norm(x, f"{name}.post_attention_layernorm.weight")
            gate, up, down = (
                self.tensors[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
            )
            y = functional.silu(functional.linear(y, gate)) * functional.linear(y, up)
            x = x + functional.linear(y, down)
        x = self._norm(x[-1:], "model.norm.weight")
        return functional.linear(x, self.head).argmax(-1)

    def _step(self) -> None:
        self.token.copy_(self.forward(self.token, self.position, len(self.columns)))
        self.position.add_(1)

    def _captured(self) -> Callable[[], None]:
        stream = self.torch.cuda.Stream()
        with self.torch.cuda.stream(stream), self.torch.no_grad():
            self._step()
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph), self.torch.no_grad():
            self._step()
        replay: Callable[[], None] = graph.replay
        return replay

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        """As Peer.generate: each token goes to the host, which may stop there."""
        torch = self.torch
        with torch.no_grad():
            tokens = torch.tensor(ids, device=self.device)
            positions = torch.arange(len(ids), device=self.device)
            self.token.copy_(self.forward(tokens, positions, len(ids)))
            self.position.fill_(len(ids))
            new = [int(self.token)]
            while len(new) < num_tokens:
                self.step()
                new.append(int(self.token))
        return new


class Transformers:
    def __init__(self, model: Path, device: str, max_len: int) -> None:
        import torch
        import transformers

        self.torch, self.device = torch, device
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.model = loaded.to(device).eval()

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        with self.torch.no_grad():
            given = self.torch.tensor([ids], device=self.device)
            out = self.model(given, use_cache=True, logits_to_keep=1)
            new: list[int] = []
            while True:
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                new.append(int(token))
                if len(new) == num_tokens:
                    return new
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)


class Vllm:
    def __init__(self, model: Path, device: str, max_len: int) -> None:
        import vllm

        self.params = vllm.SamplingParams
        self.llm = vllm.LLM(
            str(model),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=max_len,
            max_num_seqs=1,
            gpu_memory_utilization=0.6,
            enable_prefix_caching=False,
        )

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        params = self.params(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        [output] = self.llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        return list(output.outputs[0].token_ids)


class Sglang:
    def __init__(self, model: Path, device: str, max_len: int) -> None:
        import sglang

        self.engine = sglang.Engine(
            model_path=str(model),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            context_length=max_len,
            max_running_requests=1,
            mem_fraction_static=0.6,
            disable_radix_cache=True,
        )

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        params = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
        return list(self.engine.generate(input_ids=ids, sampling_params=params)["output_ids"])


PEERS: dict[str, Any] = {
    "torch": TorchLlama,
    "transformers": Transformers,
    "vllm": Vllm,
    "sglang": Sglang,
}


def measure(peer: Peer, vocab_size: int, sizes: Sizes, report: Report) -> None:
    """What decoding takes is the difference of a long and a short request."""
    rng = np.random.default_rng(0)

    def seconds(num_prompt: int, num_tokens: int) -> float:
        ids = rng.integers(0, vocab_size, num_prompt).tolist()
        begin = time.perf_counter()
        if len(peer.generate(ids, num_tokens)) != num_tokens:
            raise SystemExit(f"fewer than {num_tokens} tokens came back")
        return time.perf_counter() - begin

    def median(num_prompt: int, num_tokens: int) -> float:
        seconds(num_prompt, num_tokens)
        return statistics.median(seconds(num_prompt, num_tokens) for _ in range(sizes.num_rounds))

    decoding = median(sizes.context, sizes.num_decoded) - median(sizes.context, 1)
    report.add(PLAIN, (sizes.num_decoded - 1) / decoding, "tokens/s")
    for num_prompt in sizes.prompts:
        report.add(f"prompt of {num_prompt}", 1e3 * median(num_prompt, 1), "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=PEERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--figures", type=Path, help="a file for the same lines")
    parser.add_argument("--tiny", action="store_true", help="a few tokens: tries this script")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    sizes = (TINY if args.tiny else FULL).within(config["max_position_embeddings"])
    report = Report(args.engine, args.model.name, args.figures)
    peer = PEERS[args.engine](args.model, args.device, sizes.max_len)
    measure(peer, config["vocab_size"], sizes, report)


if __name__ == "__main__":
    main()
