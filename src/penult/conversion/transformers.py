"""An embedder as a folder for transformers' `AutoModel`: the model below the head, its processor,
and a card with the lines that give the vector.

Where the reading lies among the outputs of `AutoModel` is measured: each is held against what the
embedder reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from penult.conversion.base import FACTS, VECTOR, ConversionRequest, Draft, Trial
from penult.conversion.card import write_card
from penult.conversion.checkpoint import write_base
from penult.embedding.embedder import Embedder
from penult.engines.batching import Batch
from penult.engines.parity import relative_error
from penult.engines.torch import TorchEngine
from penult.errors import EngineError, cause, listed
from penult.models.hub import closed
from penult.models.processors import quiet

_SAME = 1e-5  # relative; one library's module, run twice


class Pooled(NamedTuple):
    """A pooling of hidden states (1, P, C), as code and as what the code does."""

    code: str
    function: Callable[[Tensor], Tensor]


_POOLINGS = {
    "mean": Pooled("hidden.mean(dim=1)", lambda hidden: hidden.mean(dim=1)),
    "max": Pooled("hidden.amax(dim=1)", lambda hidden: hidden.amax(dim=1)),
    "first": Pooled("hidden[:, 0]", lambda hidden: hidden[:, 0]),
    "last": Pooled("hidden[:, -1]", lambda hidden: hidden[:, -1]),
}
_FLAT = Pooled("hidden.flatten(1)", lambda hidden: hidden.flatten(1))
_MAPS = "hidden = hidden.flatten(2).transpose(1, 2)  # maps → positions\n"

# Of a modality: imports, the class of the processor, how an item is opened, and prepared.
_ITEMS = {
    "audio": (
        "import soundfile, torch",
        "AutoFeatureExtractor",
        'samples = soundfile.read("one.wav", dtype="float32")[0]  # mono, RATE Hz\n',
        'processor(samples, sampling_rate=RATE, return_tensors="pt")',
    ),
    "text": ("import torch", "AutoTokenizer", "", 'processor("a text", return_tensors="pt")'),
    "image": (
        "import torch\nfrom PIL import Image",
        "AutoImageProcessor",
        "",
        'processor(Image.open("one.jpg"), return_tensors="pt")',
    ),
}
_EXAMPLE = """\
{imports}
from transformers import AutoModel, {processor}

model, processor = AutoModel.from_pretrained("OUT").eval(), {processor}.from_pretrained("OUT")
{opened}inputs = {prepared}
with torch.no_grad():
    hidden = model(**inputs, output_hidden_states=True).{place}
{maps}vector = {pooled}[0].numpy()
"""


class Output(NamedTuple):
    """One of what `AutoModel` gives. code: how it is named there."""

    code: str
    value: Tensor


def write(request: ConversionRequest, path: Path) -> Draft:
    """Write the model below the head.

    Raises:
        EngineError: the classifier is none of transformers, or the reading is not among what
            `AutoModel` gives.
    """
    embedder = request.embedder
    classifier = embedder.classifier
    if embedder.space is not None or len(embedder.runner.readings) > 1:
        raise EngineError(
            "--format transformers holds one reading and no space; --format onnx holds them"
        )
    write_base(classifier, path)
    try:
        model = _opened(path)
    except Exception as error:  # whatever another class makes of the folder
        raise EngineError(f"AutoModel does not open the model: {cause(error)}") from error
    code, maps, pooled = _reading_of(embedder, model)

    def run(contents: Sequence[Any]) -> dict[str, Any]:
        rows = []
        for content in contents:  # one at a time, as the card has it
            tensors = _tensors(classifier.preprocess(content).tensors)
            hidden = next(one.value for one in _outputs(model, tensors) if one.code == code)
            hidden = hidden.flatten(2).transpose(1, 2) if maps else hidden
            rows.append(pooled.function(hidden)[0].numpy())
        return {VECTOR: np.stack(rows)}

    facts = {"hidden": code, "padding": "give one item at a time, as the example does"}
    imports, processor, opened, prepared = _ITEMS.get(classifier.modality, _ITEMS["image"])
    example = _EXAMPLE.format(
        imports=imports,
        processor=processor,
        opened=opened,
        prepared=prepared,
        place=code,
        maps=_MAPS if maps else "",
        pooled=pooled.code,
    ).replace("RATE", str(classifier.rate))

    def finish(facts: Mapping[str, Any]) -> None:
        (path / FACTS).write_text(json.dumps(facts, indent=2), "utf-8")
        write_card(path, facts, example, "transformers")

    return Draft(facts, Trial(run), finish, example)


def _opened(path: Path) -> Any:
    import transformers

    with quiet(), closed(False):
        return transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()


def _reading_of(embedder: Embedder, model: Any) -> tuple[str, bool, Pooled]:
    """Where the reading lies: how it is named, whether it is maps, and how it is pooled.

    Raises:
        EngineError: it is not among what the model gives, or is pooled otherwise.
    """
    classifier, reading = embedder.classifier, embedder.runner.readings[0]
    tensors = _tensors(classifier.example().tensors)
    engine = TorchEngine(classifier, [reading])
    expected = engine.hidden_states(Batch(tensors))[0][0].float()
    outputs = [*_outputs(model, tensors)]
    named = next((one for one in outputs if _is_same(one.value, expected)), None)
    if named is None:
        raise EngineError(
            f"tap {reading.tap.name!r} is not among what AutoModel gives "
            f"({listed([one.code for one in outputs])}); --format onnx takes any tap"
        )
    if expected.ndim == 2 or (expected.ndim == 4 and reading.tap.channel == 1
                              and expected.shape[2:] == (1, 1)):  # fmt: skip
        return named.code, False, _FLAT
    maps = expected.ndim == 4 and reading.tap.channel % 4 == 1
    pooled = _POOLINGS.get(reading.pooling)
    if pooled is None or not (maps or (expected.ndim == 3 and reading.tap.channel % 3 == 2)):
        raise EngineError(
            f"pooling {reading.pooling} of tap {reading.tap.name!r} is no line of code here; "
            f"{listed([*_POOLINGS])} of sequences and maps are, and --format onnx takes any"
        )
    return named.code, maps, pooled


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in values.items()}


def _outputs(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[Output]:
    """What the model gives that may be read, the usual ones first."""
    with torch.no_grad():
        found = model(**tensors, output_hidden_states=True)
    for name in ("last_hidden_state", "pooler_output"):
        if isinstance(value := getattr(found, name, None), Tensor):
            yield Output(name, value.float())
    for number, value in enumerate(getattr(found, "hidden_states", None) or ()):
        yield Output(f"hidden_states[{number}]", value.float())


def _is_same(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape:
        return False
    return relative_error([value.numpy()], [expected.cpu().numpy()]) <= _SAME
