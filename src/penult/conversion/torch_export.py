"""An embedder as one .pt2 file of torch.export, run by torch alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from penult.conversion.base import ConversionRequest, Draft
from penult.conversion.graph import EmbedderGraph
from penult.conversion.recorded import describe, graph_trial, program_of, python_of

EXAMPLE = """\
import soundfile, torch

embed = torch.export.load("OUT").module()
clips = [soundfile.read(name, dtype="float32")[0] for name in ("one.wav", "two.wav")]  # RATE
lengths = torch.tensor([len(clip) for clip in clips])
samples = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], True)
with torch.no_grad():
    vector, logits = embed(samples, lengths)
"""


def write(request: ConversionRequest, path: Path) -> Draft:
    """Record and write it.

    Raises:
        EngineError: torch cannot record the model.
    """
    graph = EmbedderGraph(request.embedder, request.classes)
    program = program_of(graph)
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(values: list[Any]) -> list[Any]:
        with torch.no_grad():
            return [value.numpy() for value in module(*map(torch.from_numpy, values))]

    def finish(facts: Mapping[str, Any]) -> None:
        torch.export.save(program, path, extra_files={"penult.json": json.dumps(facts)})

    example = python_of(EXAMPLE, request, graph)
    return Draft(describe(graph), graph_trial(graph, request, run), finish, example)
