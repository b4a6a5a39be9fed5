"""The application: its paths, over one AsyncLLM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response

from forerun.errors import ForerunError
from forerun.server.chat import Chats
from forerun.server.completions import Completions
from forerun.server.errors import ApiError, install_errors, json_response
from forerun.server.model import Model
from forerun.server.operations import install
from forerun.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from forerun.server.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ErrorBody,
    ModelCard,
    ModelList,
    Text,
    Tokens,
    Version,
    responses,
)
from forerun.server.serving import Serving
from forerun.server.settings import ServerSettings
from forerun.server.tokens import detokenize, tokenize
from forerun.version import package_version

# Chat for a person: one file that loads nothing else.
_PAGE = Path(__file__).with_name("page.html")
# Parts of OpenAI's API that a client may try.
_REFUSED = {
    "embeddings": "the model generates text; it has no embeddings",
    "responses": "use /v1/chat/completions",
    "moderations": "the model generates text; it judges none",
}


def make_app(llm: Model, settings: ServerSettings | None = None) -> FastAPI:
    """The server's application. The LLM has to outlive it, and is not closed by it."""
    settings = ServerSettings() if settings is None else settings
    serving = Serving(llm, settings)
    app = FastAPI(
        title="Forerun",
        version=package_version(),
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses={
            "4XX": {"model": ErrorBody, "description": "Refused"},
            "5XX": {"model": ErrorBody, "description": "Failed, or too busy"},
        },
    )
    install_errors(app)
    _add_generation(app, serving)
    _add_models(app, serving)
    _add_health(app, llm)
    _add_page(app)
    install(app, llm, settings)
    return app


def _add_generation(app: FastAPI, serving: Serving) -> None:
    chats, completions = Chats(serving), Completions(serving)

    @app.post("/v1/chat/completions", responses=responses(ChatCompletion, ChatCompletionChunk))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        return await chats.answer(body, request)

    @app.post("/v1/completions", responses=responses(Completion, Completion))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        return await completions.answer(body, request)

    # Not async: encoding a long text must not hold up the streams.
    @app.post("/tokenize", responses=responses(Tokens))
    def create_tokens(body: TokenizeRequest) -> Response:
        return json_response(tokenize(serving, body))

    @app.post("/detokenize", responses=responses(Text))
    def create_text(body: DetokenizeRequest) -> Response:
        return json_response(detokenize(serving, body))

    for name, reason in _REFUSED.items():
        _refuse(app, name, reason)


def _refuse(app: FastAPI, name: str, reason: str) -> None:
    @app.post(f"/v1/{name}", include_in_schema=False)
    async def refuse() -> Response:
        raise ApiError(404, f"/v1/{name}: {reason}", code="unsupported_endpoint")


def _add_models(app: FastAPI, serving: Serving) -> None:
    created = int(time.time())

    def card(name: str) -> ModelCard:
        return ModelCard(
            id=name,
            created=created,
            root=serving.llm.labels["model_name"],
            max_model_len=serving.llm.limits.max_model_len,
        )

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[card(name) for name in serving.names])

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        return card(serving.check_model(name))

    @app.get("/version")
    async def show_version() -> Version:
        return Version(version=package_version())


def _add_health(app: FastAPI, llm: Model) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def check_health() -> dict[str, Any]:
        try:
            llm.check_health()
        except ForerunError as error:
            raise ApiError(503, str(error), code="unhealthy", kind="server_error") from error
        return {}


def _add_page(app: FastAPI) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return FileResponse(_PAGE, headers={"cache-control": "no-cache"})
