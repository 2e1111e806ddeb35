"""Documents that the routes answer with, and errors as a status and words. No path of this machine
is in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from pydantic_core import to_json

from penult.data.items import Failure
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, prediction_of
from penult.errors import ItemError, PassingFault, PenultError, StoreError, UsageError
from penult.server.admission import TurnedAway
from penult.server.service import ItemAnswer, ItemFailed, Service

JSON = "application/json"
_PATH = re.compile(r"(?<![\w/:.])~?(?:/[^\s/'\",;:()]+)+/?([^\s/'\",;:()]*)")


class UnknownModel(UsageError):
    """A model of another name than the server's."""


def as_json(document: Any) -> bytes:
    """A document; values that are not finite become null."""
    return to_json(document, inf_nan_mode="null")


def without_paths(words: str) -> str:
    """Words without folders of this machine: of a path its last name stays."""
    return _PATH.sub(lambda found: Path(found[0]).name or "…", words)


def error_document(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_answer(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, document and headers for what went wrong."""
    kind, code = "invalid_request_error", type(error).__name__
    words = without_paths(str(error))
    if isinstance(error, TurnedAway):
        document = error_document(words, "rate_limit_error", "overloaded")
        return 429, document, {"Retry-After": str(error.after)}
    if isinstance(error, UnknownModel):
        return 404, error_document(words, kind, "model_not_found", "model"), {}
    if isinstance(error, ItemFailed):
        words = without_paths(error.failure.message)
        if error.failure.passing:
            document = error_document(words, "server_error", PassingFault.__name__)
            return 503, document, {"Retry-After": "1"}
        return 400, error_document(words, kind, error.failure.error, f"input[{error.at}]"), {}
    if isinstance(error, ValidationError):
        return 400, _invalid(error), {}
    if isinstance(error, TimeoutError):
        return 408, error_document("the request took too long", kind, "timeout"), {}
    if isinstance(error, StoreError):
        return 503, error_document(words, "server_error", code), {"Retry-After": "1"}
    if isinstance(error, UsageError | ItemError):
        return 400, error_document(words, kind, code), {}
    named = f": {code}" if isinstance(error, PenultError) else ""
    return 500, error_document(f"the server failed{named}", "server_error", None), {}


def _invalid(error: ValidationError) -> dict[str, Any]:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    words = f"{place}: {first['msg']}" if place else str(first["msg"])
    if first["type"] == "extra_forbidden":
        words = f"there is no field {place!r} here; GET /openapi.json lists those that there are"
    if first["type"] == "model_type":
        words = "the body is no JSON object; GET /openapi.json has an example of each body"
    return error_document(words, "invalid_request_error", first["type"], place or None)


def model_document(service: Service, name: str, created: int) -> dict[str, Any]:
    """The model, as /v1/models lists it."""
    embedder = service.embedder
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "penult",
        "modality": service.modality,
        "dim": embedder.dim,
        "tap": embedder.tap.name,
        "pooling": embedder.pooling,
        "space": embedder.space.recipe if embedder.space else None,
        "kind": embedder.classifier.kind,
        "labels": list(embedder.classifier.labels),
        "fingerprint_id": embedder.fingerprint_id,
    }


def item_rows(
    answers: Sequence[ItemAnswer], documents: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Documents of rows, numbered, with the place of their item in the input, and in their order
    the items and regions that failed. documents: one for each row of those that did not."""
    found: list[dict[str, Any]] = []
    rows = iter(documents)
    for at, answer in enumerate(answers):
        for part in answer.found or filter(None, [answer.error]):
            place = {"index": len(found), "item": at}
            if isinstance(part, Failure):
                error = {"message": without_paths(part.message), "code": part.error}
                found.append({**place, "region": part.region, "error": error})
            else:
                found.append({**place, **next(rows)})
    return found


def embedding_rows(
    embedder: Embedder,
    rows: Sequence[Outcome],
    vectors: npt.NDArray[np.float32],
    encoding: str,
    logits: bool,
) -> list[dict[str, Any]]:
    """A document for each row: the vector, and what the same pass gave beside it."""
    documents = []
    for row, vector in zip(rows, vectors, strict=True):
        found = prediction_of(embedder.classifier, row)
        seconds = None if row.end is None else row.end - (row.start or 0.0)
        document = {
            "object": "embedding",
            "embedding": encoded(vector, encoding),
            "id": row.item.id,
            "region": row.region.key,
            "start": row.start,
            "end": row.end,
            "seconds": seconds,
            "truncated": row.truncated,
            "label": found.label,
            "score": found.score,
        }
        if logits:
            document["logits"] = row.class_logits.tolist()
        documents.append(document)
    return documents


def encoded(vector: npt.NDArray[np.float32], encoding: str) -> Any:
    """A list of numbers, or float32, the lowest byte first, in base64."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def usage(service: Service, answers: Sequence[ItemAnswer]) -> dict[str, Any]:
    """Tokens of texts, as the model's own tokenizer counts them; of sound and video, none."""
    tokens = sum(one.size for one in answers) if service.modality == "text" else 0
    return {"prompt_tokens": tokens, "total_tokens": tokens}
