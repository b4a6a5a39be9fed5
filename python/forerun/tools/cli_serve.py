"""The command `forerun serve`."""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import ipaddress
import json
import os
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from forerun.errors import ForerunError, InvalidArgumentError
from forerun.server.settings import LOG_FORMATS, LOG_LEVELS, ServerSettings
from forerun.tools.cli_options import add_model

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
# Fields of EngineArgs that are the server's here: a request, or an option below, sets them.
_OF_SERVER = {
    "model",
    "chat_template",
    "log_level",
    "max_logprobs",
    "reasoning_parser",
    "served_model_name",
    "shutdown_timeout",
    "skip_tokenizer_init",
    "stream_interval",
}
_DEFAULTS = ServerSettings()


def add_serve(commands: Any) -> None:
    """The command `forerun serve`."""
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP, with OpenAI's API",
        description="Serves a model with OpenAI's API: chats, completions, tool calls, streams. "
        "Options have vLLM's names. Without --speculative-config drafts come from a suffix index; "
        "--spec-method none decodes plainly, with the same answers.",
        argument_default=argparse.SUPPRESS,
    )
    add_model(serve)
    _add_access(serve)
    _add_requests(serve)
    _add_limits(serve)
    _add_logs(serve)
    serve.set_defaults(run=_serve)
    _add_engine(serve)


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who reaches the server")
    group.add_argument("--host", help=f"address to listen at (default: {_DEFAULTS.host})")
    group.add_argument("--port", type=int, metavar="N", help=f"default: {_DEFAULTS.port}; 0: any")
    group.add_argument(
        "--api-key",
        dest="api_keys",
        nargs="+",
        action="extend",
        metavar="KEY",
        help="requests have to send one of these keys; FORERUN_API_KEY may hold them too, with "
        "spaces in between",
    )
    group.add_argument(
        "--root-path", metavar="/PATH", help="the prefix under which a proxy offers the server"
    )
    group.add_argument(
        "--allowed-origins",
        nargs="+",
        action="extend",
        metavar="ORIGIN",
        help="web pages of which origins may call the server, as texts or as a JSON list; '*' is "
        "all (default: none)",
    )
    group.add_argument(
        "--allowed-hosts",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="names under which clients may call the server, besides its addresses and localhost; "
        "'*' is all (default: all; none if only this machine reaches the server, without keys)",
    )
    group.add_argument(
        "--forwarded-allow-ips",
        nargs="+",
        action="extend",
        metavar="IP",
        help="proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; '*' is all "
        "(default: none)",
    )
    group.add_argument("--ssl-keyfile", metavar="FILE", help="PEM; with a certificate: HTTPS")
    group.add_argument("--ssl-certfile", metavar="FILE", help="PEM")
    group.add_argument(
        "--drain-seconds",
        "--shutdown-timeout",
        type=float,
        metavar="S",
        help="how long running requests may go on after SIGTERM "
        f"(default: {_DEFAULTS.drain_seconds:g})",
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--served-model-name",
        dest="served_model_names",
        nargs="+",
        metavar="NAME",
        help="names of the model in requests (default: MODEL)",
    )
    group.add_argument("--chat-template", metavar="FILE", help="a file, or the template itself")
    group.add_argument(
        "--tool-call-parser",
        metavar="NAME",
        help="the format of tool calls (default: as the chat template has them)",
    )
    group.add_argument(
        "--enable-auto-tool-choice",
        action="store_true",
        help="without effect: the model may always call the tools of a request",
    )
    group.add_argument(
        "--reasoning-parser",
        metavar="NAME",
        help="the format of reasoning (default: as the chat template has it)",
    )
    group.add_argument(
        "--default-chat-template-kwargs",
        metavar="JSON",
        help="variables of the chat template that a request does not give, as a JSON object",
    )
    group.add_argument(
        "--enable-force-include-usage",
        dest="force_include_usage",
        action="store_true",
        help="every stream ends with its usage, as with stream_options.include_usage",
    )
    group.add_argument(
        "--enable-prompt-tokens-details",
        action="store_true",
        help="without effect: usage always has prompt_tokens_details",
    )
    group.add_argument(
        "--stream-interval", type=int, metavar="N", help="tokens of one chunk (default: 1)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-tokens-limit",
        type=int,
        metavar="N",
        help="the most tokens that a request may generate (default: what the model takes)",
    )
    group.add_argument(
        "--max-logprobs",
        type=int,
        metavar="N",
        help="the most log-probabilities at each position; -1: no limit "
        f"(default: {_DEFAULTS.max_logprobs})",
    )
    group.add_argument(
        "--max-body-bytes",
        type=int,
        metavar="N",
        help=f"the largest body of a request (default: {_DEFAULTS.max_body_bytes})",
    )
    group.add_argument(
        "--read-seconds",
        type=float,
        metavar="S",
        help="how long a client may take to send a request, or read nothing of its answer "
        f"(default: {_DEFAULTS.read_seconds:g})",
    )
    group.add_argument(
        "--max-concurrent-requests",
        "--limit-concurrency",
        type=int,
        metavar="N",
        help="refuse requests while so many are answered "
        f"(default: {_DEFAULTS.max_concurrent_requests})",
    )


def _add_logs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs")
    group.add_argument("--log-format", choices=LOG_FORMATS, help="default: text")
    group.add_argument(
        "--log-level", "--uvicorn-log-level", choices=LOG_LEVELS, help="default: info"
    )
    group.add_argument(
        "--log-requests",
        "--enable-log-requests",
        action=argparse.BooleanOptionalAction,
        help="a line for each request (default: yes)",
    )
    group.add_argument(
        "--disable-log-requests",
        "--disable-uvicorn-access-log",
        dest="log_requests",
        action="store_false",
        help="the same as --no-log-requests",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    from forerun.engine_args import add_engine_options
    from forerun.vllm_fields import ENGINE_ARGS

    names = [name for name in ENGINE_ARGS if name not in _OF_SERVER]
    add_engine_options(parser, names, lists_all=False)
    parser.set_defaults(engine_names=names)


def _serve(options: argparse.Namespace) -> int:
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ForerunError(
                f"the server needs {name}, which is not installed: pip install 'forerun[serve]'"
            )
    settings = settings_of(options)
    engine = engine_options_of(options)
    gc.disable()  # what starting makes stays
    try:
        return _listen(options.model, settings, engine)
    finally:
        gc.enable()


def _listen(model: str, settings: ServerSettings, engine: dict[str, Any]) -> int:
    from forerun.server.access_log import configure_logs
    from forerun.server.run import address_of, example_call, listen, run

    configure_logs(settings)
    with listen(settings) as listener:
        settings = guarded(settings, listener.getsockname()[0])
        # The web framework is imported while the weights are read.
        imports = threading.Thread(target=importlib.import_module, args=("forerun.server.app",))
        imports.start()
        from forerun.async_llm import AsyncLLM

        llm = AsyncLLM(model, **engine)
        try:
            imports.join()
            from forerun.server.app import make_app

            app = make_app(llm, settings)
            gc.freeze()  # collections while requests are served need not look at it
            gc.enable()
            name = (*settings.served_model_names, model)[0]
            call = example_call(address_of(settings, listener), name, bool(settings.api_keys))
            has_ended = run(app, settings, listener, lambda: print(call, flush=True))
        finally:
            llm.close()
    if not has_ended:
        sys.stdout.flush()
        os._exit(0)  # Python would wait for threads that compile grammars
    return 0


def settings_of(options: argparse.Namespace) -> ServerSettings:
    """The server's settings that the options and the environment give."""
    names = {field.name for field in fields(ServerSettings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    variable = os.environ.get("FORERUN_API_KEY")
    if variable is not None:
        keys = variable.split()
        if not keys:  # a secret that is missing must not open the server
            raise InvalidArgumentError("FORERUN_API_KEY", repr(variable), "keys, or no variable")
        given["api_keys"] = [*given.get("api_keys", ()), *keys]
    if "allowed_origins" in given:
        given["allowed_origins"] = [
            origin for text in given["allowed_origins"] for origin in _origins(text)
        ]
    if "chat_template" in given:
        given["chat_template"] = _template(given["chat_template"])
    name = "default_chat_template_kwargs"
    if name in given:
        try:
            given[name] = json.loads(given[name])
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(name, given[name], f"a JSON object ({error})") from error
    return ServerSettings(**given)


def guarded(settings: ServerSettings, address: str) -> ServerSettings:
    """The settings of a server that listens at the IP address.

    No key keeps a web page out of a server of this machine whose name leads here. So a server
    without keys, and without names of its own, is called by those of this machine alone.
    """
    if settings.allowed_hosts or settings.api_keys or not _is_loopback(address):
        return settings
    return replace(settings, allowed_hosts=("localhost",))


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def engine_options_of(options: argparse.Namespace) -> dict[str, Any]:
    """AsyncLLM's keywords; drafts come from a suffix index unless the options say otherwise."""
    given = {name: getattr(options, name) for name in options.engine_names}
    if given["spec_method"] == "none":
        for name in ("speculative_config", "spec_model", "spec_tokens"):
            if given[name] is not None:
                raise InvalidArgumentError(name, given[name], "None with --spec-method none")
        given["spec_method"] = None
    elif all(given[name] is None for name in ("speculative_config", "spec_method", "spec_model")):
        given["spec_method"] = "suffix"
    return given


def _origins(text: str) -> list[Any]:
    """The items of a JSON list, as vLLM takes it, or the text."""
    if not text.startswith("["):
        return [text]
    try:
        items = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError("allowed_origins", text, f"a JSON list ({error})") from error
    return list(items)


def _template(text: str) -> str:
    """The content of a file, or a text that is a template itself."""
    if "{" in text:
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            "chat_template", text, f"a readable text file, or a template ({error})"
        ) from error
