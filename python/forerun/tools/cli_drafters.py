"""What the command line says of drafters that are models."""

from __future__ import annotations

import argparse
from typing import Any

from forerun.tools.cli_weights import add_device, add_weight_options, weight_options

# Fields of SpeculativeConfig with an option of the same name.
_FIELDS = (
    "draft_tree_width",
    "draft_tree_depth",
    "draft_vocab_size",
    "speculative_token_tree",
    "draft_sample_method",
    "aux_hidden_state_layer_ids",
    "norm_output",
    "norm_before_residual",
    "norm_target_state",
    "use_heterogeneous_vocab",
)


def add_drafter_options(group: Any) -> None:
    """The options of drafters that are models."""
    group.add_argument(
        "--speculative-model",
        "--spec-model",
        metavar="DRAFTER",
        help="a directory or hub id with a drafter; its method is detected unless given",
    )
    group.add_argument(
        "--draft-tree-width",
        type=int,
        metavar="N",
        help="drafter: paths per level of a draft tree (1: a chain)",
    )
    group.add_argument(
        "--draft-tree-depth", type=int, metavar="N", help="drafter: most levels of a draft tree"
    )
    group.add_argument(
        "--draft-vocab-size",
        type=int,
        metavar="N",
        help="drafter: draft only the N most frequent of its tokens",
    )
    group.add_argument(
        "--speculative-token-tree",
        metavar="PATHS",
        help="drafter: a tree of fixed shape, as in '[(0,), (1,), (0, 0)]'",
    )
    group.add_argument(
        "--draft-sample-method",
        choices=("greedy", "probabilistic"),
        help="drafter: take the most probable tokens, or sample them (default: greedy)",
    )
    group.add_argument(
        "--use-heterogeneous-vocab",
        action=argparse.BooleanOptionalAction,
        help="draft model: allow another vocabulary than the target's (default: yes)",
    )
    add_head_options(group)


def add_head_options(group: Any) -> None:
    """What `forerun selftest` may advise."""
    group.add_argument(
        "--aux-hidden-state-layer-ids",
        type=_numbers,
        metavar="N,N,N",
        help="eagle3: the target's layers that it reads, each by how many are before it",
    )
    for name, what in (
        ("--norm-output", "feed back the normed state, or not"),
        ("--norm-before-residual", "take the normed hidden state as the residual, or not"),
    ):
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=f"eagle3: {what}")
    group.add_argument(
        "--norm-target-state",
        action=argparse.BooleanOptionalAction,
        help="mtp: read the target's state after its final norm, or before it",
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def drafter_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a SpeculativeConfig that were given."""
    fields = {"model": options.speculative_model}
    fields |= {name: getattr(options, name, None) for name in _FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def add_selftest(commands: Any) -> None:
    """The command `forerun selftest`."""
    parser = commands.add_parser(
        "selftest",
        help="check that a drafter suits a target",
        description="Generates a few texts greedily with a drafter and prints the acceptance by "
        "position, also with every setting that its checkpoint leaves open reversed. The exit "
        "status is 1 if something is clearly wrong.",
    )
    parser.add_argument("model", metavar="TARGET", help="a directory, a .gguf file or a hub id")
    parser.add_argument(
        "speculative_model",
        metavar="DRAFTER",
        nargs="?",
        help="a directory or hub id; left out: the target's layers for multi-token prediction",
    )
    parser.add_argument("--prompts", metavar="FILE.jsonl", help="as for forerun bench")
    parser.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="of each text (default: 64)"
    )
    parser.add_argument("--method", metavar="NAME", help="the drafting method (default: detected)")
    parser.add_argument("--num-speculative-tokens", type=int, metavar="N")
    add_weight_options(parser)
    add_device(parser)
    parser.add_argument("--num-threads", type=int, default=0, metavar="N", help="0: one per core")
    add_head_options(parser)
    parser.set_defaults(run=_selftest, optional="speculative_model")


def _selftest(options: argparse.Namespace) -> int:
    from forerun.tools.selftest import selftest

    fields = drafter_fields(options)
    drafter = fields.pop("model", None)
    for name in ("method", "num_speculative_tokens"):
        if (value := getattr(options, name)) is not None:
            fields[name] = value
    report = selftest(
        options.model,
        drafter,
        prompts=options.prompts,
        max_tokens=options.max_tokens,
        speculative_config=fields,
        **weight_options(options),
        device=options.device,
        num_threads=options.num_threads,
    )
    print(report)
    return 0 if report.ok else 1
