"""The card of a converted folder: what it is, how near it is to the classifier, how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from penult.conversion.parity import ConversionParity
from penult.publishing.cards import task_of

_NAMED = 20  # labels that a card lists


def write_card(folder: Path, facts: Mapping[str, Any], example: str, library: str) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads at its head."""
    parity = ConversionParity(**{name: v for name, v in facts["parity"].items() if name != "ok"})
    labels = facts["labels"]
    more = f", and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    proved = "proved" if facts["head_proved"] else "not proved; the reading needs no proof of it"
    metadata = ModelCardData(
        library_name=library,
        pipeline_tag=task_of(facts["modality"]),
        tags=["penult", "embeddings"],
    )
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# Embeddings of {Path(str(facts['model'])).name}",
        "",
        f"A classifier of {len(labels)} classes ({', '.join(labels[:_NAMED])}{more}), cut before "
        f"its head by [Penult](https://github.com/penult/penult) {facts['penult']}: each item of "
        f"{facts['modality']} gives a vector of {facts['dim']} numbers.",
        "",
        "```python",
        example.rstrip("\n").replace("OUT", facts["name"]),
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| reading | {facts['tap']}, pooling {facts['pooling']} |",
        f"| head | {proved} |",
        f"| fingerprint | `{facts['fingerprint']}` |",
        f"| against torch | {parity.words} |",
        *([f"| sound | mono, {facts['rate']:,} samples a second |"] if facts["rate"] else []),
        *([f"| batches | {facts['padding']} |"] if "padding" in facts else []),
        *(["| needs | `pip install penult` |"] if facts.get("needs_penult") else []),
        "",
        "Vectors of another fingerprint are not comparable with these. They say how alike items "
        "are to this classifier, and nothing about what it never learned to tell apart. The "
        "licence is that of the classifier.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), "utf-8")
