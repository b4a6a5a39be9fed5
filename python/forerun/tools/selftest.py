"""Does a drafter suit its target? Acceptance by position, and what a checkpoint leaves open."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun.engine.prompts import Prompt
from forerun.errors import InvalidArgumentError
from forerun.llm import LLM
from forerun.metrics import EngineMetrics, SpecDecodeMetrics
from forerun.outputs import TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.speculative_config import SpeculativeConfig
from forerun.tools.bench import Case, read_cases
from forerun.tools.report import table
from forerun.vllm_fields.arguments import checked_arguments

PROMPTS = (
    "Why is the sky blue? Explain it to a child.",
    "Write a short poem about a lighthouse in winter.",
    "List five things to pack for a week in the mountains.",
    "What is the difference between a virus and a bacterium?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Give me a simple recipe for vegetable soup.",
    "A train leaves at 9:40 and arrives at 12:05. How long does it take?",
    "Summarise in two sentences why people keep bees.",
)
# A drafter that is set up right does better on any text that its target writes.
_LOWEST_FIRST = 0.2
# The least part of the drafts accepted so far that the next position should keep.
_LOWEST_KEPT = 0.25
# How much longer another setting must make drafts before it is recommended.
_MARGIN = 1.05

# Likely causes, each with the methods that it is about; none: all.
_HEADS = ("eagle", "eagle3", "mtp")
_CAUSES_FIRST: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("it was made for another target, or for another version of it", ()),
    ("it reads other layers than it was trained with (aux_hidden_state_layer_ids)", ("eagle3",)),
    ("norm_before_residual is not as in its training", ("eagle3",)),
    ("the target's state is not the one it was trained with (norm_target_state)", ("mtp",)),
    ("rope_theta or rope_scaling is missing from its config.json", ("draft_model", *_HEADS)),
    ("these prompts, or their chat template, are unlike what it was trained on", ()),
)
_CAUSES_LATER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the state that a step feeds back is not the trained one (norm_output)", ("eagle3",)),
    ("it was trained for one step alone", _HEADS),
    ("its later heads were trained less than its first", ("medusa", "mlp_speculator")),
)


@dataclass(frozen=True)
class Trial:
    """One setting of the drafter.

    Attributes:
        name: what differs from the setting as given.
        options: the fields of SpeculativeConfig that make it.
        same_tokens: whether the text is that of plain decoding; anything else is a bug of ours.
        draft_share: the part of the time that drafting took; likewise model_share, verify_share.
    """

    name: str
    options: dict[str, Any]
    spec_decode: SpecDecodeMetrics
    same_tokens: bool
    draft_share: float
    model_share: float
    verify_share: float

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """By position, the part of the drafts that reached it which was accepted that far."""
        return self.spec_decode.acceptance_rate_per_drafted_pos

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per target pass that had a draft, the target's own included."""
        return self.spec_decode.mean_acceptance_length


@dataclass
class SelftestReport:
    """What selftest found.

    Attributes:
        method: the drafter's, with why in `evidence`.
        trials: the drafter as given, and then what its checkpoint leaves open, one by one.
        problems: what is clearly wrong; empty where nothing is.
        advice: likely causes, and settings that do better.
    """

    target: str
    drafter: str
    method: str
    evidence: str
    trials: list[Trial]
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """The trial with the longest accepted drafts; the setting as given, unless clearly less."""
        given = self.trials[0]
        longest = max(self.trials, key=lambda trial: trial.mean_acceptance_length)
        is_better = longest.mean_acceptance_length > _MARGIN * given.mean_acceptance_length
        return longest if is_better else given

    @property
    def ok(self) -> bool:
        """Whether nothing is clearly wrong."""
        return not self.problems

    def __str__(self) -> str:
        num_positions = max(len(trial.acceptance_rate_per_pos) for trial in self.trials)
        header = (
            "setting",
            "mean acceptance length",
            *map(str, range(1, num_positions + 1)),
            "same",
        )
        rows = [
            [
                trial.name,
                f"{trial.mean_acceptance_length:.2f}",
                *(f"{rate:.2f}" for rate in trial.acceptance_rate_per_pos),
                "yes" if trial.same_tokens else "NO",
            ]
            for trial in self.trials
        ]
        given = self.trials[0]
        lines = [
            f"{self.drafter}: {self.method} ({self.evidence})",
            f"for {self.target}",
            "",
            table(header, rows),
            "",
            "Columns 1, 2, ...: the part of the drafts of that length that was accepted so far.",
            f"Time as given: drafts {given.draft_share:.0%}, target {given.model_share:.0%}, "
            f"verification {given.verify_share:.0%}.",
            *(f"wrong: {problem}" for problem in self.problems),
            *(f"hint: {hint}" for hint in self.advice),
        ]
        return "\n".join([*lines, "ok" if self.ok else "not ok"])


@checked_arguments
def selftest(
    target: str | os.PathLike[str],
    drafter: str | os.PathLike[str] | None = None,
    *,
    prompts: Sequence[Prompt] | str | os.PathLike[str] | None = None,
    max_tokens: int = 64,
    speculative_config: dict[str, Any] | None = None,
    **options: Any,
) -> SelftestReport:
    """Generates greedily with a drafter, and with what its checkpoint leaves open both ways.

    Args:
        drafter: a directory, a hub id, or None for the layers of the target's own ("mtp").
        prompts: texts or token ids; a JSONL file as `forerun bench` reads it; None: a few
            questions. Texts go through the model's chat template, if it has one.
        max_tokens: how many tokens each prompt gets.
        speculative_config: more fields of a SpeculativeConfig, such as its method.
        **options: as for LLM.
    """
    given = {**(speculative_config or {}), "adaptive": False}
    if drafter is not None:
        given["model"] = drafter
    elif "method" not in given:
        given["method"] = "mtp"
    config = SpeculativeConfig(**given)
    is_chain = (
        config.uses_model
        and config.method != "hybrid"
        and config.draft_tree_width in (None, 1)
        and config.speculative_token_tree is None
    )
    if not config.uses_model or not is_chain:
        raise InvalidArgumentError("speculative_config", given, "a model that drafts chains")
    cases = _cases(prompts)
    options["skip_tokenizer_init"] = not any(isinstance(case, Case) for case in cases)
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    expected = _run(LLM(target, **options), cases, params)

    def attempt(name: str, more: dict[str, Any], llm: LLM | None = None) -> Trial:
        llm = llm or LLM(target, speculative_config={**given, **more}, **options)
        ids = _run(llm, cases, params)
        return _trial(name, more, llm.metrics(), ids == expected)

    llm = LLM(target, speculative_config=given, **options)
    directory, found = llm.directory, llm.drafter
    assert found is not None
    trials = [attempt("as given", {}, llm)]
    del llm  # one model in memory at a time
    report = SelftestReport(
        str(directory),
        str(found.directory or directory),
        found.method,
        found.inspection.evidence,
        trials,
    )
    for name, more in found.open_settings(config, directory).items():
        trials.append(attempt(name, more))
    better = [trial for trial in trials[1:] if _is_longer(trial, trials[0])]
    if len(better) > 1:
        together = {name: value for trial in better for name, value in trial.options.items()}
        trials.append(attempt("together: " + ", ".join(t.name for t in better), together))
    _judge(report)
    return report


def _is_longer(trial: Trial, other: Trial) -> bool:
    return trial.mean_acceptance_length > _MARGIN * other.mean_acceptance_length


def _cases(prompts: Any) -> list[Any]:
    if prompts is None:
        return [Case([text]) for text in PROMPTS]
    if isinstance(prompts, str | os.PathLike):
        return list(read_cases(os.fspath(prompts)))
    cases = [Case([prompt]) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not cases:
        raise InvalidArgumentError("prompts", prompts, "at least one prompt")
    return cases


def _run(llm: LLM, cases: list[Any], params: SamplingParams) -> list[list[int]]:
    outputs = llm.generate([_prompt(llm, case) for case in cases], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def _prompt(llm: LLM, case: Any) -> Prompt:
    """What a case begins with: later turns would need the answers first."""
    if not isinstance(case, Case):
        prompt: Prompt = case
        return prompt
    tokenizer = llm.get_tokenizer()
    if case.chat and tokenizer.chat_template is not None:
        return llm.render_chat([{"role": "user", "content": case.turns[0]}])
    return TokensPrompt(prompt_token_ids=tokenizer.encode(case.turns[0]))


def _trial(name: str, options: dict[str, Any], metrics: EngineMetrics, same: bool) -> Trial:
    names = ("draft_seconds", "model_seconds", "verify_seconds", "other_seconds")
    times = [getattr(metrics, part) for part in names]
    shares = [time / sum(times) if sum(times) > 0 else 0.0 for time in times]
    return Trial(name, options, metrics.spec_decode, same, *shares[:3])


def _judge(report: SelftestReport) -> None:
    given, best = report.trials[0], report.best
    if not all(trial.same_tokens for trial in report.trials):
        report.problems.append("a text differs from that of plain decoding: a bug of Forerun's")
    if best is not given:
        fields = ", ".join(f"{name}={value!r}" for name, value in best.options.items())
        report.advice.append(
            f"{fields} makes the mean acceptance length {best.mean_acceptance_length:.2f} "
            f"instead of {given.mean_acceptance_length:.2f}"
        )
    rates = given.acceptance_rate_per_pos
    if given.spec_decode.num_drafts == 0:
        report.problems.append("nothing was drafted: the texts ended at once")
    elif rates[0] < _LOWEST_FIRST:
        report.problems.append(
            f"position 1 is accepted in {rates[0]:.0%} of the drafts; "
            f"less than {_LOWEST_FIRST:.0%} is never right"
        )
        report.advice += _likely(_CAUSES_FIRST, report.method)
    elif len(rates) > 1 and rates[1] < _LOWEST_KEPT * rates[0]:
        report.problems.append(
            f"position 1 is accepted in {rates[0]:.0%} of the drafts and position 2 in "
            f"{rates[1]:.0%}: the drafter goes astray on its own"
        )
        report.advice += _likely(_CAUSES_LATER, report.method)


def _likely(causes: Sequence[tuple[str, tuple[str, ...]]], method: str) -> list[str]:
    return [f"it may be that {cause}" for cause, of in causes if not of or method in of]
