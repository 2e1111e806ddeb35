"""Rows in words and numbers: in short for lists, and all that is known of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import schema
from penult.collection.manifest import Manifest, fingerprint_in
from penult.data.text import text_in
from penult.explorer.media import COLUMNS
from penult.explorer.rows import NoSuchRow
from penult.explorer.session import Explorer
from penult.tracing.scores import SIGMOID, Activation

SHOWN = 50  # classes of a row
_SAFE = 1 << 53  # whole numbers that a page can hold
_SHORT = (*COLUMNS, "label", "score")
_CUT = 400  # characters of a text in a list


def short_rows(explorer: Explorer, rows: Sequence[int]) -> list[dict[str, Any]]:
    """For JSON: rows as lists have them, in their order; rows that are gone are left out."""
    found = explorer.rows.records(rows, _SHORT, ("text",))
    return [_short(row, one) for row, one in zip(rows, found, strict=True) if one is not None]


def _short(row: int, found: Mapping[str, Any]) -> dict[str, Any]:
    own = ("id", "region", "start", "end", "label", "score")
    text = text_in(found, found["region"])
    text = text[:_CUT] if isinstance(text, str) else None
    return {"row": row, **{name: found[name] for name in own}, "text": text}


def found_rows(explorer: Explorer, text: str, k: int) -> list[int]:
    """The first k rows whose id, label or metadata contain a text, in any case of letters."""
    rows, values = explorer.rows, explorer.values
    inside = np.zeros(len(rows), bool)
    for name in ("id", "label", *values.metadata_names()):
        column = values.by_number(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            continue
        texts = column if pa.types.is_string(column.type) else column.cast(pa.string())
        found = pc.match_substring(texts, text, ignore_case=True).fill_null(False)
        own = found.to_numpy(zero_copy_only=False)
        inside[: len(own)] |= own
    inside &= rows.there[: len(inside)]
    return [int(row) for row in np.flatnonzero(inside)[:k]]


def row_document(explorer: Explorer, row: int) -> dict[str, Any]:
    """For JSON: all that is known of a row.

    Raises:
        NoSuchRow: it is gone, or never was there.
    """
    reader = explorer.collection.reader
    names = [name for name in reader.schema.names if name != "vector"]
    found = explorer.rows.records([row], names)[0]
    if found is None:
        raise NoSuchRow(f"there is no row {row}, or not any more")
    manifest, values = reader.require_manifest(), explorer.values
    own = [name for name in names if name not in schema.COLUMNS]
    metadata = {name: plain(found[name]) for name in own}
    later = [name for name in values.metadata_names() if name not in own]
    metadata |= {name: plain(values.by_number(name)[row].as_py()) for name in later}
    media = explorer.media.document(found)
    taught = [one["name"] for one in explorer.records.classes() if one["yes"]]
    document = _short(row, found)
    return {
        **document,
        "text": document["text"] if media["text"] is None else media["text"],
        **{name: found[name] for name in ("kind", "channel", "truncated")},
        "scores": class_scores(manifest, found),
        "classes": explorer.teaching.probabilities(taught, row),
        "marks": explorer.records.marks((found["id"], found["region"])),
        "metadata": metadata,
        "origin": _origin(explorer, manifest, found),
        "media": media,
    }


def plain(value: Any) -> str | float | bool | None:
    """A value as a page shows it: a text, a number that it can hold, true or false, or nothing."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _SAFE else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, date | Decimal):
        return str(value)
    return value if isinstance(value, str) else repr(value)


def class_scores(manifest: Manifest, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classifier's own scores of a row, the highest first, SHOWN at most; only the label's
    where no logits are kept."""
    logits, labels = row.get("logits"), manifest.labels
    alone = [{"name": row["label"], "score": plain(row["score"])}] if row["label"] else []
    if logits is None or not len(logits):
        return alone
    kind = str(manifest.model.get("kind", ""))
    activation = Activation(str(manifest.model.get("scores", "")))
    if isinstance(logits[0], Mapping):  # the highest ones alone
        places = [one["index"] for one in logits]
        values = np.array([one["logit"] for one in logits], np.float32)
        scores = _of_some(activation, kind, values, row["score"])
    else:
        scores = activation.scores(kind, np.asarray(logits, np.float32))
        places = list(range(len(scores)))
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    return [{"name": labels[places[at]], "score": plain(float(scores[at]))} for at in order]


def _of_some(
    activation: Activation, kind: str, logits: npt.NDArray[np.float32], highest: float | None
) -> npt.NDArray[np.float64]:
    """Scores of the highest logits: of classes that exclude each other by that of the label, since
    the sum over all is not known."""
    all_of_them: npt.NDArray[np.float64] = activation.scores(kind, logits)
    if (
        activation.name == SIGMOID
        or highest is None
        or math.isclose(float(all_of_them.max()), highest, rel_tol=1e-4)
    ):
        return all_of_them
    return highest * np.exp(logits.astype(np.float64) - float(logits.max()))


def _origin(explorer: Explorer, manifest: Manifest, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where the numbers of a row come from, in words."""
    model = manifest.model
    run = explorer.records.run(row["run_id"])
    revision = model.get("revision")
    reading = " ".join(filter(None, [str(model.get("tap", "")), str(model.get("pooling", ""))]))
    found = {
        "model": f"{model.get('spec')}{f' at {revision}' if revision else ''}",
        "vector": f"{reading}, {manifest.dim:,} numbers",
        "fingerprint": fingerprint_in(manifest).id,
        "engine": run.get("engine") or manifest.engine,
        "precision": run.get("precision") or manifest.precision,
        "device": run.get("device"),
        "embedded": f"{run['started']:%Y-%m-%d %H:%M} UTC" if run.get("started") else None,
        "run": row["run_id"],
        "command": run.get("command"),
        "file": _file(explorer, row),
    }
    return [{"title": name, "value": str(value)} for name, value in found.items() if value]


def _file(explorer: Explorer, row: Mapping[str, Any]) -> str | None:
    if row["size"] is None:
        return None
    changed = ", changed since" if explorer.media.is_changed(row) else ""
    return f"{row['size']:,} bytes, SHA-256 {(row['content_hash'] or '')[:12]}…{changed}"
