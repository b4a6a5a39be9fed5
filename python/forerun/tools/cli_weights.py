"""What the command line says of how weights are stored, and of where the model runs."""

from __future__ import annotations

import argparse
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.util.json_files import parse_json


def add_weight_options(group: argparse._ActionsContainer) -> None:
    """How weights and the KV cache are stored."""
    group.add_argument(
        "--dtype",
        default="auto",
        help="of weights that are not integers: auto, bfloat16 or float32",
    )
    group.add_argument(
        "--quantization",
        metavar="FORMAT",
        help="int8 or int4 weights, made from any model, none for floats where the model has "
        'integers, JSON such as {"linear": "int4", "head": "int8"}, or what the model must be: '
        "gptq, awq, compressed-tensors or gguf (default: as the model has them)",
    )
    group.add_argument("--kv-cache-dtype", default="auto", help="auto, bfloat16, float32 or int8")


def add_device(group: argparse._ActionsContainer) -> None:
    """Where the model runs."""
    group.add_argument(
        "--device", default="auto", help="where the model runs: cpu, which auto means, or cuda"
    )


def add_gpu_options(group: argparse._ActionsContainer) -> None:
    """What only a GPU heeds."""
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        metavar="SHARE",
        help="of a GPU's memory, for weights, buffers and the KV cache (default: 0.92)",
    )
    group.add_argument(
        "--enforce-eager", action="store_true", help="on a GPU: run passes without CUDA graphs"
    )


def gpu_options(options: argparse.Namespace) -> dict[str, Any]:
    """LLM's keywords for what `add_gpu_options` added."""
    names = ("gpu_memory_utilization", "enforce_eager")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def weight_options(options: argparse.Namespace) -> dict[str, Any]:
    """LLM's keywords for what `add_weight_options` added."""
    quantization = options.quantization
    if quantization is not None and quantization.startswith("{"):
        quantization = parse_json(
            quantization, "quantization", "a format or a JSON object", InvalidArgumentError
        )
    return {
        "dtype": options.dtype,
        "quantization": quantization,
        "kv_cache_dtype": options.kv_cache_dtype,
    }
