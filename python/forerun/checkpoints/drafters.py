"""From a speculative_config and a target to a drafter: found, checked and explained."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forerun import _core
from forerun.checkpoints.inspection import Inspection, fit_problems, inspect
from forerun.checkpoints.inspection.describe import norms_target_state
from forerun.checkpoints.inspection.detect import encode
from forerun.checkpoints.inspection.tensors import read_config
from forerun.checkpoints.loading import as_safetensors, is_same_model, resolve_drafter
from forerun.checkpoints.vocabulary_bridge import find_bridge
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.speculative_config import HEAD_FIELDS, SpeculativeConfig

_LOGGER = logging.getLogger("forerun")
_FIELD = "speculative_config.model"
_RUN = "draft_model, eagle, eagle3, mtp, mlp_speculator and medusa run"


@dataclass(frozen=True)
class Drafter:
    """A drafter that was found.

    Attributes:
        method: one of MODEL_METHODS.
        directory: with config.json and safetensors; None: the target's own, for "mtp".
        inspection: what the checkpoint says of itself.
        num_tokens: what the checkpoint says of the draft's length; None: nothing.
        max_tokens: how many tokens a draft can have at most; None: any number.
        bridge: between a draft model's vocabulary and the target's; None: they are the same.
    """

    method: str
    directory: Path | None
    inspection: Inspection
    num_tokens: int | None = None
    max_tokens: int | None = None
    bridge: _core.VocabularyBridge | None = None

    def apply(self, config: SpeculativeConfig, core: _core.SpeculativeOptions) -> None:
        """Completes the engine's options with what was found."""
        method = core.method
        model = _model_options(method)
        model.method = getattr(_core.ModelMethod, self.method.upper())
        model.model = "" if self.directory is None else str(as_safetensors(self.directory))
        model.vocabulary_bridge = self.bridge
        core.method = method
        is_chain = method is model and model.draft_tree_width == 1
        if config.num_speculative_tokens is None and is_chain and not model.speculative_token_tree:
            core.num_speculative_tokens = self.num_tokens

    def explain(self, core: _core.SpeculativeOptions) -> str:
        """Method, reason, options and open questions in one line."""
        found = self.inspection
        model = _model_options(core.method)
        facts: dict[str, Any] = {
            **{name: value for name, value in found.options.items() if value not in (None, False)},
            "tokens per draft": core.num_speculative_tokens,
            "tree width": model.draft_tree_width if model.draft_tree_width > 1 else None,
            "tokens drafted from": model.draft_vocab_size,
            "nodes of its fixed tree": len(model.speculative_token_tree) or None,
        }
        if self.bridge is not None:
            shared, size = len(self.bridge.shared_ids), len(self.bridge.draft_ids)
            facts["tokens shared with the target"] = f"{shared} of its {size}"
        facts |= {name: getattr(model, name) for name in HEAD_FIELDS}
        shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        where = self.directory or found.path
        hybrid = "hybrid of an index and " if isinstance(core.method, _core.HybridOptions) else ""
        text = f"drafter {where}: {hybrid}method {self.method} ({found.evidence}); {shown}"
        return text + "".join(f"; open: {question}" for question in found.open_questions)

    def open_settings(self, config: SpeculativeConfig, target: Path) -> dict[str, dict[str, Any]]:
        """Settings that the checkpoint leaves open and the config as well, by name."""
        if self.method == "mtp" and config.norm_target_state is None:
            other = not norms_target_state(read_config(target))
            return {f"norm_target_state {other}": {"norm_target_state": other}}
        if self.method != "eagle3":
            return {}
        settings: dict[str, dict[str, Any]] = {}
        found = self.inspection.options
        num_states, layers = found["auxiliary hidden states"], inspect(target).options["layers"]
        if config.aux_hidden_state_layer_ids is None and isinstance(num_states, int) and layers:
            taken = found["layers before each state"] or _core.default_aux_layers(layers)
            is_left = found["layer ids"] not in (None, taken)
            moved = [layer + (-1 if is_left else 1) for layer in taken]
            if len(moved) == num_states and max(moved) <= layers:
                settings[f"layer ids {moved}"] = {"aux_hidden_state_layer_ids": moved}
        for name in ("norm_before_residual", "norm_output"):
            if getattr(config, name) is None:
                settings[f"{name} {not found[name]}"] = {name: not found[name]}
        return settings


def _model_options(method: object) -> _core.ModelDrafterOptions:
    model = method.model if isinstance(method, _core.HybridOptions) else method
    assert isinstance(model, _core.ModelDrafterOptions)
    return model


def find_drafter(config: SpeculativeConfig, target: Path) -> Drafter:
    """The drafter that a config names, for the target in a directory.

    Raises:
        CheckpointError: it is missing, damaged, of a format that is not run, or does not fit the
            target or the method that was given.
        InvalidArgumentError: an option that this kind of drafter does not have.
    """
    method = None if config.method == "hybrid" else config.method
    directory = _directory_of(config)
    if directory is None or is_same_model(directory, target):
        drafter = _own_layers(target, directory, method)
    else:
        drafter = _in_directory(directory, method)
        found = inspect(target)
        _check_fit(drafter, found)
        if drafter.method == "draft_model":
            drafter = replace(drafter, bridge=_bridge(config, drafter.inspection, found))
    _check_options(config, drafter)
    return drafter


def set_drafter(config: SpeculativeConfig, target: Path, core: _core.SpeculativeOptions) -> Drafter:
    """Finds the drafter of a config, completes the engine's options, and says so in the log."""
    drafter = find_drafter(config, target)
    drafter.apply(config, core)
    _LOGGER.info("%s", drafter.explain(core))
    return drafter


def _directory_of(config: SpeculativeConfig) -> Path | None:
    if config.model is None:
        if config.revision is not None:
            raise InvalidArgumentError("revision", config.revision, "None without a model")
        return None
    return resolve_drafter(os.fspath(config.model), config.revision)


def _own_layers(target: Path, directory: Path | None, method: str | None) -> Drafter:
    """The target as its own drafter: by its layers for multi-token prediction, or as it is."""
    found = inspect(target, method if method != "mtp" else None)
    if found.mtp_tensor is not None and method in (None, "mtp"):
        found.evidence = f"the target has {found.mtp_tensor}"
        return Drafter("mtp", None, found)
    if method == "mtp":
        raise CheckpointError(
            "method", "mtp", f"a target with layers for it, or a model; {target} has none"
        )
    if directory is not None:
        return Drafter("draft_model", target, found)
    raise CheckpointError(
        _FIELD, "None", f"a drafter: {target} has no layers for multi-token prediction"
    )


def _in_directory(directory: Path, method: str | None) -> Drafter:
    config = read_config(directory)
    found = inspect(directory)
    kind = found.method
    if found.obstacle is not None:
        raise CheckpointError(_FIELD, f"{directory}: {found.obstacle}", _RUN)
    if method is not None:
        inspect(directory, method)  # refuses what it cannot serve as
    if method is None:
        method = "draft_model" if kind == "target" else kind
    if method == "mtp" and kind == "mtp":
        found.open_questions.append("whether these layers were made for this target")
    drafted = {"mlp_speculator": "tokens", "medusa": "heads"}.get(method)
    most = None if drafted is None else int(found.options[drafted])
    return Drafter(method, directory, found, _core.proposed_tokens(encode(config)) or most, most)


def _check_fit(drafter: Drafter, target: Inspection) -> None:
    found = drafter.inspection
    problems = fit_problems(found, target)
    if problems:
        raise CheckpointError(
            _FIELD, str(drafter.directory), f"a drafter of {target.path}: {'; '.join(problems)}"
        )


def _bridge(
    config: SpeculativeConfig, found: Inspection, target: Inspection
) -> _core.VocabularyBridge | None:
    bridge = find_bridge(found, target)
    if bridge is not None and config.use_heterogeneous_vocab is False:
        raise InvalidArgumentError(
            "use_heterogeneous_vocab",
            False,
            f"True or None: {found.path} shares {len(bridge.shared_ids)} of the "
            f"{len(bridge.draft_ids)} tokens of {target.path}",
        )
    return bridge


def _check_options(config: SpeculativeConfig, drafter: Drafter) -> None:
    for name, method in HEAD_FIELDS.items():
        if (value := getattr(config, name)) is not None and drafter.method != method:
            raise InvalidArgumentError(
                name, value, f"None: only {method} has it, and this is {drafter.method}"
            )
    if config.use_heterogeneous_vocab and drafter.method != "draft_model":
        raise InvalidArgumentError(
            "use_heterogeneous_vocab",
            True,
            f"None: only a draft_model can have another vocabulary, and this is {drafter.method}",
        )
    most = drafter.max_tokens
    if most is None:
        return
    if (tree := config.speculative_token_tree) is not None:
        depth = max(map(len, tree))
        if depth > most:
            value = f"a path of {depth} ranks"
            expected = f"at most {most}, which the drafter can draft"
            raise InvalidArgumentError("speculative_token_tree", value, expected)
        return
    is_tree = (config.draft_tree_width or 1) > 1 or config.method == "hybrid"
    name = "draft_tree_depth" if is_tree else "num_speculative_tokens"
    value = getattr(config, name)
    if value is not None and value > most:
        raise InvalidArgumentError(name, value, f"at most {most}, which the drafter can draft")
