"""Measures a running server: its drafts beside plain decoding, on the same prompts, in turns."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from forerun.errors import ForerunError
from forerun.metrics import SpecDecodeMetrics
from forerun.tools.bench import Case, Tally, in_turns, summarize_methods
from forerun.tools.remote import RemoteAnswer, RemoteModel
from forerun.version import package_version

# What a request adds to the body to be decoded so.
METHODS: dict[str, dict[str, Any]] = {"none": {"speculative": False}, "server": {}}


class ServerTally(Tally):
    """What a server did over some requests, with times as the client sees them."""

    def add_answer(self, answer: RemoteAnswer) -> None:
        """Counts one finished request."""
        metrics = answer.metrics
        if not metrics or len(answer.token_ids) != answer.num_tokens:
            raise ForerunError("a server of Forerun's is needed: the answer has no metrics")
        self.count(
            answer.token_ids,
            decode_seconds=answer.last_text_seconds - answer.first_text_seconds,
            prompt_seconds=answer.first_text_seconds,
            num_target_passes=metrics["num_target_passes"],
            spec_decode=SpecDecodeMetrics(
                metrics["num_drafts"],
                metrics["num_draft_tokens"],
                metrics["num_accepted_tokens"],
                [],
                [],
            ),
        )


def compare_on_server(
    model: RemoteModel, cases: Sequence[Case], fields: Mapping[str, Any], *, rounds: int = 3
) -> dict[str, Any]:
    """Runs every case with drafts and without; returns what `forerun bench` writes as JSON.

    `fields` are part of every request. No round finds what another has left in caches.
    """
    from tqdm import tqdm

    methods = list(METHODS)
    tallies: dict[str, list[list[ServerTally]]] = {method: [] for method in methods}
    with tqdm(total=rounds * len(cases) * len(methods), desc="Measuring") as bar:
        for method in methods:
            first = Case(cases[0].turns[:1], chat=cases[0].chat)
            _run_case(model, first, _fields_of(method, fields))
        for _ in range(rounds):
            fields_of = {method: _fields_of(method, fields) for method in methods}
            for method in methods:
                tallies[method].append([ServerTally() for _ in cases])
            for index, method in in_turns(methods, len(cases)):
                for answer in _run_case(model, cases[index], fields_of[method]):
                    tallies[method][-1][index].add_answer(answer)
                bar.update()
    return {
        "forerun": package_version(),
        "model_name": model.name,
        "num_cases": len(cases),
        "rounds": rounds,
        "baseline": methods[0],
        "methods": summarize_methods(cases, tallies),
    }


def _fields_of(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """With a salt of their own, requests share no prefixes and no past outputs with others."""
    return {**fields, **METHODS[method], "cache_salt": uuid.uuid4().hex}


def _run_case(model: RemoteModel, case: Case, fields: Mapping[str, Any]) -> list[RemoteAnswer]:
    """Generates every turn of a conversation."""
    answers: list[RemoteAnswer] = []
    messages: list[dict[str, str]] = []
    for turn in case.turns:
        answers.append(RemoteAnswer())
        messages.append({"role": "user", "content": turn})
        path = "chat/completions" if case.chat else "completions"
        body = {"messages": messages} if case.chat else {"prompt": turn}
        for _ in model.stream(path, {**body, **fields}, answers[-1], is_forerun=True):
            pass
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers
