"""What the tokens that a grammar forces are worth: random JSON schemas by method.

    python bench/structured_outputs.py MODEL_DIR [--schemas N]

Greedy, JSON without whitespace, one request at a time and eight at a time. The schemas are those of
the tests. Ends with an error unless all methods give the same ids.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

from forerun import LLM, SamplingParams, StructuredOutputsParams

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from random_schemas import random_schema

METHODS: dict[str, Any] = {
    "none": None,
    "grammar": {"method": "grammar"},
    "grammar, fixed": {"method": "grammar", "adaptive": False},
    "suffix": {"method": "suffix"},
    "suffix, fixed": {"method": "suffix", "adaptive": False},
}
MESSAGES = [{"role": "user", "content": "Give me an example of this JSON."}]


def generate(llm: LLM, schemas: list[Any], batch: int) -> list[list[int]]:
    ids = []
    for begin in range(0, len(schemas), batch):
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=200,
                structured_outputs=StructuredOutputsParams(
                    json=schema, disable_any_whitespace=True
                ),
            )
            for schema in schemas[begin : begin + batch]
        ]
        outputs = llm.chat([MESSAGES] * len(params), params, use_tqdm=False)
        ids += [list(output.outputs[0].token_ids) for output in outputs]
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=60)
    options = parser.parse_args()

    rng = random.Random(1)
    schemas = [random_schema(rng) for _ in range(options.schemas)]
    llms = {
        name: LLM(options.model, max_model_len=1024, speculative_config=config)
        for name, config in METHODS.items()
    }
    expected: list[list[int]] = []
    print(f"{'batch':>5} {'method':16} {'tokens/pass':>11} {'tokens/s':>9}")
    for batch in (1, 8):
        for name, llm in llms.items():
            llm.reset_caches()
            before, begin = llm.metrics(), time.perf_counter()
            ids = generate(llm, schemas, batch)
            seconds, after = time.perf_counter() - begin, llm.metrics()
            expected = expected or ids
            if ids != expected:
                sys.exit(f"{name} gave other ids than none")
            tokens = after.num_generated_tokens - before.num_generated_tokens
            passes = after.num_target_passes - before.num_target_passes
            print(f"{batch:5} {name:16} {tokens / passes:11.2f} {tokens / seconds:9.1f}")


if __name__ == "__main__":
    main()
