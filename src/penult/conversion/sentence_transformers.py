"""An embedder as a folder for `SentenceTransformer(OUT)`.

Its stock modules are taken where they give the embedder's vectors alone and in batches, which is
measured; elsewhere a module of Penult's, which needs `pip install penult` and no code of the
folder. From version 6 on the library imports no class of another package unless it is told
`trust_remote_code=True`, so that such a folder is opened by `open_model`. The stock modules pool
sound of different lengths with a mask of ones (6.2): a clip's vector changes with its batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from penult.conversion.base import FACTS, VECTOR, ConversionRequest, Draft, Trial
from penult.conversion.card import write_card
from penult.conversion.checkpoint import write_base
from penult.conversion.parity import measure
from penult.embedding.embedder import Embedder
from penult.extras import require
from penult.models.processors import quiet

MODULE = "penult.integrations.sentence_transformers.EmbedderModule"

_STOCK = {"mean": "mean", "max": "max", "first": "cls", "last": "lasttoken"}

EXAMPLE = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("OUT")
vectors = model.encode(ITEMS)
"""
OWN_EXAMPLE = """\
from penult.integrations.sentence_transformers import open_model

model = open_model("OUT")  # a SentenceTransformer; as is SentenceTransformer("OUT",
vectors = model.encode(ITEMS)  # trust_remote_code=True), which runs no code of the folder either
"""
_ITEMS = {
    "text": '["one text", "a longer second text"]',
    "audio": '["one.wav", "two.wav"]',
    "image": '["one.jpg", "two.jpg"]',
}


def write(request: ConversionRequest, path: Path) -> Draft:
    """Write the stock modules, or Penult's own where these give other vectors."""
    embedder = request.embedder
    own = not _is_stock(request, path)
    if own:
        _write_own(embedder, path)
    model = _open(path, own)
    facts = {"modules": [type(one).__name__ for one in model], "needs_penult": own}
    items = _ITEMS.get(embedder.classifier.modality, '["one", "two"]')
    example = (OWN_EXAMPLE if own else EXAMPLE).replace("ITEMS", items)

    def finish(facts: Mapping[str, Any]) -> None:
        (path / FACTS).write_text(json.dumps(facts, indent=2), "utf-8")
        write_card(path, facts, example, "sentence-transformers")

    return Draft(facts, _trial(model, embedder), finish, example)


def _open(path: Path, own: bool) -> Any:
    with quiet():
        if own:
            from penult.integrations.sentence_transformers import open_model

            return open_model(path, device="cpu")
        library: Any = require("sentence_transformers")
        return library.SentenceTransformer(str(path), device="cpu", local_files_only=True)


def _trial(model: Any, embedder: Embedder) -> Trial:
    rate = embedder.classifier.rate

    def run(contents: Sequence[Any]) -> dict[str, Any]:
        given = [_as_input(one, rate) for one in contents]
        found = model.encode(given, batch_size=len(given), show_progress_bar=False)
        return {VECTOR: np.asarray(found)}

    return Trial(run)


def _as_input(content: Any, rate: int | None) -> Any:
    if rate is not None:
        return {"array": np.asarray(content), "sampling_rate": rate}
    return content


def _is_stock(request: ConversionRequest, path: Path) -> bool:
    """Write the library's own modules, and see whether they give these vectors."""
    if not _is_plain(request.embedder):
        return False
    modules: Any = require("sentence_transformers.sentence_transformer.modules")
    library: Any = require("sentence_transformers")
    with suppress(Exception), TemporaryDirectory() as base:  # whatever a model means to it
        write_base(request.embedder.classifier, Path(base))
        with quiet():
            transformer = modules.Transformer(base)
            mode = _STOCK[request.embedder.pooling]
            pooling = modules.Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
            made = library.SentenceTransformer(modules=[transformer, pooling], device="cpu")
            made.save(str(path), create_model_card=False)
        if measure(request, _trial(_open(path, False), request.embedder)).ok:
            return True
    for left in path.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return False


def _is_plain(embedder: Embedder) -> bool:
    """Whether the library's modules can say as much: texts, one reading, no space."""
    readings = embedder.runner.readings
    return (
        embedder.classifier.modality == "text"
        and len(readings) == 1
        and embedder.space is None
        and embedder.pooling in _STOCK
    )


def _write_own(embedder: Embedder, path: Path) -> None:
    embedder.save(path / "embedder")
    modules = [{"idx": 0, "name": "0", "path": "embedder", "type": MODULE}]
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (path / "modules.json").write_text(json.dumps(modules, indent=2), "utf-8")
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings, indent=2), "utf-8")
