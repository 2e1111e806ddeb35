"""What commands about a model share: its items, its proof, its facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.cli.output import shown, working

if TYPE_CHECKING:
    from penult.data.decode import Decoding
    from penult.data.sources import Source
    from penult.embedding.embedder import Embedder


def items_of(
    model: str, asked: dict[str, Any], paths: list[str], channel: str | None = None
) -> Source:
    """The items for a model, so that a wrong path is told before weights are loaded."""
    return source_of(paths, channel, modality_for(model, asked))


def modality_for(model: str, asked: dict[str, Any]) -> str:
    """What kind of items a model takes, told before its weights are loaded."""
    from penult.models.specs import modality_of

    with working(f"opening {model}"):
        return modality_of(model, **asked)


def source_of(paths: list[str], channel: str | None, modality: str) -> Source:
    """The items that a command was given."""
    from penult.data.sources import from_paths
    from penult.errors import UsageError

    if channel is None or channel == "each":
        return from_paths(paths, modality, channel)  # type: ignore[arg-type]
    if not channel.isdigit():
        raise UsageError(f"--channel {channel!r} is neither a number from 0 nor 'each'")
    return from_paths(paths, modality, int(channel))


def require_proof(
    embedder: Embedder, items: Source | None = None, decoding: Decoding | None = None
) -> None:
    """Prove the head, on the first of these items if there are any.

    Only an unproved head stops the prelogits; every other tap is what it says it is.
    """
    from penult.data.decode import Decoding
    from penult.errors import HeadNotFound

    with working("proving the head"):
        if items is not None:
            embedder.prove_on(items, decoding or Decoding())
        proof = embedder.certificate
    if "prelogits" in embedder.tap.name.split(",") and not proof.ok:
        raise HeadNotFound(
            f"the head is not proved, so there are no prelogits: {proof.refusal}. "
            "Another tap works: --tap backbone"
        )


def proof_line(embedder: Embedder) -> str:
    """The head's proof and what it was measured on, in a line."""
    proof = embedder.certificate
    if proof.ok:
        return (
            f"[dim]head proved{named(embedder.proved_on)}: {len(proof.checks)} checks, "
            f"largest error {proof.max_error:.1g}[/]"
        )
    return f"[dim]head not proved: {shown(proof.refusal)}[/]"


def named(ids: list[str]) -> str:
    """` on a.wav and b.wav`, or nothing."""
    return f" on {shown(' and '.join(dict.fromkeys(Path(id).name for id in ids)))}" if ids else ""


def embedder_facts(embedder: Embedder) -> dict[str, Any]:
    """What a JSON document says of an embedder."""
    return {
        "model": embedder.classifier.spec,
        "tap": embedder.tap.name,
        "pooling": embedder.pooling,
        "dim": embedder.dim,
        "fingerprint": embedder.fingerprint,
        "fingerprint_id": embedder.fingerprint_id,
        "certificate": embedder.certificate.to_dict(),
        "proved_on": embedder.proved_on,
        "batching": embedder.batching.to_dict(),
        "precision": embedder.precision,
        "engine": embedder.way.words,
        "choice": embedder.choice.to_dict() if embedder.choice else None,
    }


def failed(failure: Any) -> dict[str, Any]:
    """What a JSON document says of an item that failed."""
    return {
        "id": failure.id,
        "region": failure.region,
        "error": failure.error,
        "message": failure.message,
    }
