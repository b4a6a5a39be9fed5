"""Replicas of a Forerun server on Ray Serve: requests that begin alike run on the same replica.

    pip install "forerun[serve]" "ray[serve]"
    python examples/ray_serve.py models/SmolLM2-135M-Instruct --replicas 2

A prefix cache and a suffix memory help only the replica that has them. So the turns of a
conversation, and tasks with the same instructions and first message, go to one replica; while
that one is full they go to the next one in an order that depends on the prefix alone.
"""

import argparse
import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings

# How much of a prompt that is not a conversation decides its replica.
PREFIX_LENGTH = 256
METHODS = ["GET", "POST", "OPTIONS", "HEAD"]


def prefix_of(body: bytes) -> str:
    """What decides the replica: the messages up to the user's first, or the start of the prompt."""
    try:
        request = json.loads(body)
        if "messages" in request:
            messages = request["messages"]
            roles = [message["role"] for message in messages]
            return json.dumps(messages[: roles.index("user") + 1])
        prompt = request["prompt"]
        return json.dumps(prompt[0] if isinstance(prompt[0], list) else prompt)[:PREFIX_LENGTH]
    except (ValueError, TypeError, LookupError):
        return ""  # any replica will say what is wrong with it


class PrefixRouter(RequestRouter):
    """Tries replicas in an order that depends on the prefix (rendezvous hashing).

    When a replica comes or goes, only the prefixes that it is first for move.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        prefix = pending_request.kwargs.get("prefix") if pending_request else None
        prefix = prefix or uuid.uuid4().hex  # without one, any replica

        def score(replica: RunningReplica) -> bytes:
            return hashlib.sha256(f"{replica.replica_id.unique_id} {prefix}".encode()).digest()

        return [[replica] for replica in sorted(candidate_replicas, key=score)]


@serve.deployment(request_router_config=RequestRouterConfig(request_router_class=PrefixRouter))
class Replica:
    """A model with the server's application, called with ASGI's messages."""

    def __init__(self, model: str, options: dict[str, Any], settings: dict[str, Any]) -> None:
        self._app = make_app(AsyncLLM(model, **options), ServerSettings(**settings))
        self._name = serve.get_replica_context().replica_id.unique_id

    async def respond(
        self, scope: dict[str, Any], body: bytes, *, prefix: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The messages of the response; ends the request when it is left."""
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            return await asyncio.Future()  # a client that leaves cancels the task

        task = asyncio.create_task(self._app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait({"type": "end"}))
        try:
            while (message := await messages.get())["type"] != "end":
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-replica", self._name.encode())]
                yield message
            await task
        finally:
            task.cancel()


app = FastAPI(openapi_url=None)


@serve.deployment
@serve.ingress(app)
class Ingress:
    """Reads each request, and passes it on to the replica of its prefix."""

    def __init__(self, replicas: Any) -> None:
        self._respond = replicas.options(stream=True).respond

    @app.api_route("/{path:path}", methods=METHODS)
    async def forward(self, request: Request) -> StreamingResponse:
        """The response of a replica, part by part."""
        body = await request.body()
        names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path")
        scope = {name: request.scope[name] for name in (*names, "query_string", "headers")}
        messages = self._respond.remote(
            {**scope, "client": None, "server": None}, body, prefix=prefix_of(body)
        )
        start = await anext(messages)

        async def parts() -> AsyncIterator[bytes]:
            async for message in messages:
                yield message.get("body", b"")

        response = StreamingResponse(parts(), start["status"])
        response.raw_headers = list(start["headers"])
        return response


def main() -> None:
    """Starts the replicas, and serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory, .gguf file or hub id")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="requests of a replica")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    replica = Replica.options(
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.max_num_seqs,
        ray_actor_options={"num_cpus": arguments.threads},
    )
    options = {
        "num_threads": arguments.threads,
        "max_num_seqs": arguments.max_num_seqs,
        "speculative_config": {"method": "suffix"},
    }
    settings = {"served_model_names": (arguments.model,)}
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0})
    serve.start(http_options={"port": arguments.port})
    serve.run(ingress.bind(replica.bind(arguments.model, options, settings)), blocking=True)


if __name__ == "__main__":
    main()
