"""The routes: parse, call, answer. No logic of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse

from penult import __version__
from penult.collection.collection import Collection
from penult.collection.row_layout import RowLayout, row_layout
from penult.embedding.runner import Outcome, prediction_of
from penult.errors import PenultError, UsageError
from penult.server import answers
from penult.server.admission import TurnedAway
from penult.server.bodies import (
    Body,
    ClassifyBody,
    EmbeddingsBody,
    PredictBody,
    RemoveBody,
    RenameBody,
    SearchBody,
    TeachBody,
    items_in,
    rows_asked,
)
from penult.server.metrics import CONTENT_TYPE
from penult.server.service import ItemAnswer, Service, raw_vectors
from penult.server.taught import TaughtClasses

B = TypeVar("B")
T = TypeVar("T")
log = logging.getLogger(__name__)
_ERROR = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "object"}},
                "required": ["error"],
            }
        }
    }
}
_STATUSES = {
    400: "What is asked for cannot be, with the reason.",
    401: "No API key, or an unknown one.",
    403: "Asked by another host name, or by a page of another origin.",
    404: "No such model, class, or route.",
    405: "The route has not this method.",
    408: "The body, or the answer, took too long.",
    413: "The body is too large.",
    429: "Too much work waits; Retry-After says when there is room.",
    503: "The server stops, or something it needs is away for now.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, **_ERROR} for status, words in _STATUSES.items()
}


@dataclass(frozen=True, slots=True)
class Served:
    """What a server serves. name: of the model."""

    name: str
    service: Service
    classes: TaughtClasses | None = None
    collection: Collection | None = None


def build(served: Served, origins: Sequence[str] = ()) -> FastAPI:
    """The application. origins: of web pages whose scripts may ask."""
    app = FastAPI(
        title="Penult",
        version=__version__,
        summary="Labels and vectors of one pass of a classifier.",
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    _add_facts(app, served)
    _add_items(app, served)
    if served.collection is not None:
        _add_search(app, served, served.collection)
    if served.classes is not None:
        _add_predictions(app, served, served.classes)
        _add_teaching(app, served, served.classes)
    for kind in (PenultError, TurnedAway, ValidationError, TimeoutError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


_NEEDS = {
    "/v1/search": "--collection",
    "/v1/predict": "--classes or --collection",
    "/v1/classes": "--classes or --collection",
}


async def _on_http(request: Request, error: HTTPException) -> Response:
    words, path = str(error.detail), request.url.path
    if error.status_code == 404:
        needs = next((how for route, how in _NEEDS.items() if path.startswith(route)), None)
        words = "there is no such route; GET /openapi.json lists those that there are"
        if needs is not None:
            words = f"this server was started without {needs}, which the route needs"
    if error.status_code == 405:
        words = f"{path} does not take {request.method}; GET /openapi.json has what it takes"
    document = answers.error_document(words, "invalid_request_error", None)
    return _json(document, error.status_code, dict(error.headers or {}))


async def _on_error(request: Request, error: Exception) -> Response:
    status, document, headers = answers.error_answer(error)
    if status == 500:
        log.error("%s failed: %s", request.url.path, "".join(traceback.format_exception(error)))
    return _json(document, status, headers)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answers.as_json(document), status, headers, answers.JSON)


def _documented(model: type[Any], example: dict[str, Any]) -> dict[str, Any]:
    """The body of a request, for the OpenAPI document."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


async def _aside(served: Served, request: Request, call: Callable[..., T], *given: Any) -> T:
    """What a call gives, made in another thread, in the client's turn."""
    return await served.service.aside(request.state.client, partial(call, *given))


async def _read(served: Served, request: Request, model: type[B]) -> B:
    """The body of a request, as JSON or as a form with files.

    Raises:
        UsageError: neither. ValidationError: fields that cannot be.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return model.model_validate(await _form(request))  # type: ignore[attr-defined, no-any-return]
    if kind != "application/json":
        raise UsageError(
            f"a body of type {kind or 'unknown'}; send application/json or multipart/form-data"
        )
    body = await request.body()

    def parse() -> B:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the body is no JSON: {error}") from error
        return model.model_validate(document)  # type: ignore[attr-defined, no-any-return]

    return await _aside(served, request, parse)


async def _form(request: Request) -> dict[str, Any]:
    """Fields of a form; its files, in their order, are the input."""
    found: dict[str, Any] = {}
    files: list[bytes] = []
    async with request.form(max_files=4096, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append(await value.read())
            elif name in found:
                found[name] = [*_listed(found[name]), value]
            else:
                found[name] = value
    if files:
        found["input"] = [*_listed(found.get("input", [])), *files]
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The items of a request and what became of them."""

    answers: list[ItemAnswer]

    @property
    def rows(self) -> list[Outcome]:
        return [row for one in self.answers for row in one.rows]

    def documents(self, documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return answers.item_rows(self.answers, documents)


async def _run(
    served: Served, request: Request, body: Body, usual: RowLayout = RowLayout()
) -> _Asked:
    """Embed the items of a body."""
    service = served.service
    _check_model(served, body)
    rows, most = rows_asked(body, usual), service.limits.items
    contents = await _aside(served, request, items_in, body, service.modality, most)
    async with asyncio.timeout(service.limits.request):
        found = await service.answers(contents, rows, request.state.client, body.on_error == "skip")
    return _Asked(found)


def _check_model(served: Served, body: Body) -> None:
    if body.model not in (None, served.name):
        raise answers.UnknownModel(
            f"there is no model {body.model!r} here; this server has {served.name!r}"
        )


async def _listing(
    served: Served, request: Request, make: Callable[[], list[dict[str, Any]]], **more: Any
) -> Response:
    """A list of documents, made in another thread."""
    facts = {"object": "list", "model": served.name, **more}
    content = await _aside(served, request, lambda: answers.as_json({**facts, "data": make()}))
    return Response(content, media_type=answers.JSON)


def _add_facts(app: FastAPI, served: Served) -> None:
    service, created = served.service, int(time.time())

    @app.get("/health", summary="The process answers.")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="A probe item has its known vector, now.")
    async def ready() -> Response:
        reason = await service.ready()
        if reason is not None:
            return _json({"ready": False, "reason": reason}, 503)
        return _json({"ready": True})

    @app.get("/metrics", summary="Figures for Prometheus.", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", summary="The model, its reading and its labels.")
    async def models(request: Request) -> Response:
        document = await _aside(
            served, request, answers.model_document, service, served.name, created
        )
        return _json({"object": "list", "data": [document]})


def _add_items(app: FastAPI, served: Served) -> None:
    service = served.service
    text = service.modality == "text"
    example = {
        "model": served.name,
        "input": ["a text" if text else f"data:{service.modality}/…;base64,…"],
    }

    @app.post(
        "/v1/embeddings",
        summary="Vectors, and the label of the same pass.",
        openapi_extra=_documented(EmbeddingsBody, example),
    )
    async def embeddings(request: Request) -> Response:
        body = await _read(served, request, EmbeddingsBody)
        dim = service.embedder.dim
        if body.dimensions not in (None, dim):
            raise UsageError(
                f"dimensions {body.dimensions}: vectors of this model have {dim} numbers and are "
                "not shortened"
            )
        asked = await _run(served, request, body)

        def make() -> list[dict[str, Any]]:
            rows = asked.rows
            vectors = service.vectors(rows)
            how = body.encoding_format, body.logits
            found = asked.documents(answers.embedding_rows(service.embedder, rows, vectors, *how))
            return [{"object": "embedding", "embedding": [], **one} for one in found]

        return await _listing(served, request, make, usage=answers.usage(service, asked.answers))

    @app.post(
        "/v1/classify",
        summary="The classifier's own classes.",
        openapi_extra=_documented(ClassifyBody, example),
    )
    async def classify(request: Request) -> Response:
        asked = await _run(served, request, await _read(served, request, ClassifyBody))
        classifier = service.embedder.classifier
        return await _listing(
            served,
            request,
            lambda: asked.documents(
                [prediction_of(classifier, row).to_dict() for row in asked.rows]
            ),
        )


def _add_search(app: FastAPI, served: Served, collection: Collection) -> None:
    @app.post(
        "/v1/search",
        summary="The rows of the collection nearest to items, or to vectors.",
        openapi_extra=_documented(SearchBody, {"vectors": [[0.1, 0.2]], "k": 10}),
    )
    async def search(request: Request) -> Response:
        body = await _read(served, request, SearchBody)
        _check_model(served, body)
        if body.space != "raw":
            # One that is kept: none is made.
            await _aside(served, request, collection.space, body.space)

        def find(vectors: Any) -> dict[str, Any]:
            return collection.search(vectors, body.k, body.where, space=body.space).to_dict()

        if body.vectors is not None:
            if body.input is not None:
                raise UsageError("`input` and `vectors` at once; give one of them")
            with np.errstate(over="ignore"):  # infinite ones are refused
                given = [np.array(one, np.float32) for one in body.vectors]
            return await _listing(
                served, request, lambda: [{"item": at, **find(one)} for at, one in enumerate(given)]
            )
        usual = await _aside(served, request, row_layout, collection.reader)
        asked = await _run(served, request, body, usual)

        def make() -> list[dict[str, Any]]:
            found = []
            for at, one in enumerate(asked.answers):
                if one.error is not None and not one.rows:
                    found.append({"item": at, "error": answers.item_rows([one], [])[0]["error"]})
                elif one.rows:
                    raw = raw_vectors(one.rows, service.embedder.dim)
                    found.append({"item": at, **find(raw[0] if len(raw) == 1 else raw)})
            return found

        service = served.service
        return await _listing(served, request, make)


def _add_predictions(app: FastAPI, served: Served, classes: TaughtClasses) -> None:
    example = {"model": served.name, "input": ["…"]}

    @app.post(
        "/v1/predict",
        summary="Classes that were taught.",
        openapi_extra=_documented(PredictBody, example),
    )
    async def predict(request: Request) -> Response:
        body = await _read(served, request, PredictBody)
        asked = await _run(served, request, body, classes.rows)
        return await _listing(
            served,
            request,
            lambda: asked.documents(classes.predict(asked.rows, body.unknown, body.nearest)),
        )


def _add_teaching(app: FastAPI, served: Served, classes: TaughtClasses) -> None:
    example = {"name": "apple", "model": served.name, "input": ["…"]}

    async def changed(request: Request, change: Callable[[Any], Any]) -> Response:
        await _aside(served, request, classes.change, change)
        return await _listing(served, request, classes.documents)

    @app.get("/v1/classes", summary="The classes that were taught.")
    async def listed(request: Request) -> Response:
        return await _listing(served, request, classes.documents)

    @app.post(
        "/v1/classes",
        summary="Teach a class by examples.",
        openapi_extra=_documented(TeachBody, example),
    )
    async def teach(request: Request) -> Response:
        body = await _read(served, request, TeachBody)
        if body.rows_of_collection is not None:
            if body.input is not None:
                raise UsageError("`input` and `rows` at once; give one of them")
            keys = body.rows_of_collection
            await _aside(served, request, classes.teach_rows, body.name, keys, body.mark)
        else:
            asked = await _run(served, request, body, classes.rows)
            await _aside(served, request, classes.teach, body.name, asked.rows, body.mark)
        return await _listing(served, request, classes.documents)

    @app.patch(
        "/v1/classes",
        summary="Rename a class.",
        openapi_extra=_documented(RenameBody, {"old": "apple", "new": "pear"}),
    )
    async def rename(request: Request) -> Response:
        body = await _read(served, request, RenameBody)
        return await changed(request, lambda space: space.rename(body.old, body.new))

    @app.delete(
        "/v1/classes",
        summary="Forget a class.",
        openapi_extra=_documented(RemoveBody, {"name": "apple"}),
    )
    async def remove(request: Request) -> Response:
        body = await _read(served, request, RemoveBody)
        return await changed(request, lambda space: space.remove(body.name))

    @app.post("/v1/classes/undo", summary="Take the last teaching back.")
    async def undo(request: Request) -> Response:
        words = await _aside(served, request, classes.change, lambda space: space.history.undo())
        return await _listing(served, request, classes.documents, undone=words)
