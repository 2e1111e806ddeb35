"""The card of a repository: README.md with the metadata that the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penult.engines.parity import Parity
from penult.extras import package_versions
from penult.publishing.preparation import CLASS_SPACE, COLLECTION, EMBEDDER, Kind, Prepared

_TASKS = {"image": "image-feature-extraction"}  # by modality; others are feature-extraction
_TASK = "feature-extraction"
_LISTED = 100  # labels; the files have all


def task_of(modality: Any) -> str:
    """The task of embeddings of a modality, as the Hub names it."""
    return _TASKS.get(str(modality), _TASK)


def card_of(prepared: Prepared, repo: str, license: str | None = None) -> str:
    """The text of README.md. repo: `owner/name`. license: as the Hub names it, `apache-2.0`."""
    writers = {EMBEDDER: _embedder, CLASS_SPACE: _class_space, COLLECTION: _collection}
    facts = prepared.facts
    parts = [
        f"# {repo.rpartition('/')[2]}",
        *writers[prepared.kind](facts, repo),
        f"Written by Penult {package_versions()['penult']}.",
        *([f"Not part of it: {'; '.join(prepared.notes)}."] if prepared.notes else []),
    ]
    return f"---\n{_metadata(prepared.kind, facts, license)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(kind: Kind, facts: Mapping[str, Any], license: str | None) -> str:
    from huggingface_hub import DatasetCardData, ModelCardData

    tags = ["penult", "embeddings", *([str(facts["modality"])] if facts.get("modality") else [])]
    base = str(facts.get("source") or "")
    if kind == COLLECTION:
        return DatasetCardData(license=license, tags=[*tags, "lance"]).to_yaml()
    model = base.partition("@")[0]
    return ModelCardData(
        license=license,
        library_name="penult",
        tags=[*tags, *(["few-shot"] if kind == CLASS_SPACE else [])],
        base_model=model if _is_hub_id(model) else None,
        pipeline_tag=task_of(facts.get("modality")) if kind == EMBEDDER else None,
    ).to_yaml()


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith("/") and ":" not in name


def _embedder(facts: Mapping[str, Any], repo: str) -> list[str]:
    about = facts["classifier"]
    certificate = facts["certificate"]
    lines = [
        f"An embedder of Penult: {facts['modality'] or 'items'} in, vectors out, by the classifier "
        f"`{about.get('class', facts['source'])}` cut before its head.",
        _table(
            {
                "made of": f"`{facts['source']}`",
                "revision": about.get("revision"),
                "tap": f"`{facts['tap']}`",
                "pooling": f"`{facts['pooling']}`",
                "space": f"`{facts['space']}`",
                "sample rate": about.get("rate") and f"{about['rate']:,} Hz",
                "parameters": about.get("parameters") and f"{about['parameters']:,}",
                "engine": facts["engine"],
                "precision": facts["precision"],
                "parity": _parity(facts["choice"]),
                "fingerprint": f"`{facts['fingerprint']}`",
            }
        ),
        "## Certificate",
        _certificate(certificate),
        "## Labels of the classifier",
        _names(facts["labels"]),
        "## Use",
        "Vectors for search, clusters, maps and classes taught by a few examples. Vectors are "
        "comparable to those of the same fingerprint alone. The classifier's own license and "
        "limits hold for it and for its vectors.",
        f"```sh\npenult embed {repo} FOLDER --into vectors.lance\n```",
        "```python\nfrom penult.embedding.embedder import open_embedder\n\n"
        f'embedder = open_embedder("{repo}")\nvectors = embedder.embed(["file"])\n```',
    ]
    if facts["code"]:
        lines.append(
            "It carries Python code, which runs where you trust it alone: download the "
            f"repository (`hf download {repo} --local-dir FOLDER`), read `code/`, then name FOLDER "
            "with `--trust`."
        )
    return lines


def _certificate(certificate: Mapping[str, Any]) -> str:
    checks = certificate.get("checks") or []
    if not certificate:
        return "None was saved."
    if not certificate.get("ok"):
        return f"The head is not proved: {certificate.get('refusal') or 'no reason was saved'}."
    passed = sum(bool(one.get("passed")) for one in checks)
    return (
        f"The head was proved where the embedder was saved: {passed} of {len(checks)} checks, "
        f"largest error {certificate.get('max_error', 0):.3g}. Whoever opens it proves it again "
        f"(`penult inspect`)."
    )


def _parity(choice: Mapping[str, Any]) -> str | None:
    """How near the vectors of the chosen engine are to those of torch, as it was saved."""
    try:
        return f"{choice['engine']} {choice['numbers']}: {Parity(**choice['parity']).words}"
    except (KeyError, TypeError, ValueError):  # none was measured, or another version saved it
        return None


def _class_space(facts: Mapping[str, Any], repo: str) -> list[str]:
    counts = {name: f"{count:,} examples" for name, count in facts["counts"].items()}
    return [
        f"A class space of Penult: {len(counts)} class{'' if len(counts) == 1 else 'es'} taught by "
        f"{facts['examples']:,} examples, kept as vectors.",
        _table(
            {
                "embedder": f"`{facts['source']}`",
                "tap": f"`{facts['tap']}`",
                "pooling": f"`{facts['pooling']}`",
                "numbers in a vector": facts["dim"],
                "fingerprint of the embedder": f"`{facts['fingerprint']}`",
                **{name: value for name, value in facts["settings"].items() if value is not None},
            }
        ),
        "## Classes",
        _table(counts),
        "## Use",
        "Names the classes of items that the same embedder embeds (the fingerprint is compared), "
        "or calls them unknown. It was taught by a few examples: measure it on items of yours "
        "before you rely on it.",
        f"```sh\npenult predict {repo} FOLDER --model MODEL\n```",
        f'```python\nimport penult\n\nclasses = penult.ClassSpace.load("{repo}")\n```',
    ]


def _collection(facts: Mapping[str, Any], repo: str) -> list[str]:
    lines = [
        f"A collection of Penult: {facts['rows']:,} rows with vectors of {facts['dim']} numbers, "
        "metadata and marks. The files themselves are not part of it.",
        _table(
            {
                "embedder": f"`{facts['source']}`",
                "revision": facts["revision"],
                "tap": f"`{facts['tap']}`",
                "pooling": f"`{facts['pooling']}`",
                "rows": ", ".join(f"{n:,} {kind}" for kind, n in facts["kinds"].items()),
                "metadata": ", ".join(f"`{name}`" for name in facts["columns"]) or None,
                "roots of ids": ", ".join(f"`{name}`" for name in facts["roots"]) or None,
                "marks": f"{facts['marks']:,}" if facts["marks"] else None,
                "fingerprint": f"`{facts['fingerprint']}`",
            }
        ),
    ]
    if facts["labels"]:
        lines += ["## Marked classes", _names(facts["labels"])]
    if facts["classes"]:
        lines += ["## Labels of the classifier", _names(facts["classes"])]
    return [
        *lines,
        "## Use",
        "For search, clusters, maps and teaching of classes with the same embedder. Terms of the "
        "files that it was made of hold for their vectors and metadata too.",
        f"```sh\npenult pull {repo} vectors.lance\npenult info vectors.lance\n```",
        f'```python\nimport penult\n\ncollection = penult.pull("{repo}", "vectors.lance")\n```',
    ]


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(name)} | {_cell(v)} |" for name, v in values.items() if v not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _names(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(_cell(name) for name in names[:_LISTED]) + more + "."


def _cell(value: Any) -> str:
    """A value as text of Markdown in one line; nothing of it is markup of HTML."""
    text = " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
