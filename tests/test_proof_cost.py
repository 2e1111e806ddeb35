"""What a proof costs beside a plain pass: memory of the process, and forward passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import sweep
from conftest import thinned
from odd_heads import CASES, waves
from penult.tracing import cut as cut_of_pass
from penult.tracing import living
from penult.tracing.graph_anatomy import GraphCut
from penult.tracing.graph_proof import prove
from penult.tracing.onnx_graph import OnnxGraph
from penult.tracing.split import Split, split
from test_splitting import ALL, Counting, built

# A deep model whose activations take far more than its weights. Prints, in MB, by how much the
# process grew at most in a plain pass, then in that and a proof.
DEEP = """
import json, sys
import torch
from torch import nn
from penult.tracing.split import split

torch.set_num_threads(1)
torch.manual_seed(0)

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(8, 1, 1) + 0.7) for _ in range(16))
        self.first, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        for weight in (self.first.weight, self.fc.weight):
            nn.init.normal_(weight)

    def forward(self, x):
        x = self.first(x)
        for scale in self.scales:
            x = nn.functional.relu(x * scale)
        return self.fc(x.mean((2, 3)))

def peak():  # in MB; that of getrusage begins with what the starting process had
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10

split(Deep().eval(), torch.randn(2, 3, 32, 32))  # what a first proof loads is no cost of it
before = peak()
model, x = Deep().eval(), torch.randn(2, 3, 640, 640)
with torch.no_grad():
    model(x)
plain = peak()
cut = split(model, x)
print(json.dumps([plain - before, peak() - before, cut.certificate.ok]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak is told")
def test_a_proof_takes_at_most_three_times_the_memory_of_a_plain_pass() -> None:
    # Large tensors straight from the system: what is alive counts, not how the C library packs it.
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-c", DEEP],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=own,
    )
    plain, proof, proved = json.loads(done.stdout)
    assert proved
    assert plain > 16  # a pass that can be measured
    assert proof <= 3 * plain


# Scores of every pixel, after two layers: prelogits and scores take what a pass takes.
SCORES = (
    DEEP.replace(
        "split(Deep()",
        """
class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 21, 1)

    def forward(self, x):
        return self.fc(torch.relu(self.first(x)))

Deep = Dense
split(Deep()""",
    )
    .replace("640, 640", "384, 384")
    .replace(
        "before = peak()",
        """
import pathlib
from penult.memory import _resident, trim
trim()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = _resident("VmRSS") / 2**20
""",
    )
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak is told")
def test_scores_of_every_pixel_are_let_go() -> None:
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", SCORES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=own)
    plain, proof, proved = json.loads(done.stdout)
    assert proved
    assert plain > 16
    assert proof <= 3 * plain


@pytest.mark.slow
def test_what_was_let_go_is_run_again_where_another_program_has_to_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every number goes: the same heads, certificates and prelogits come out."""
    for name in [*ALL][::9]:
        case = ALL[name]
        monkeypatch.setattr(cut_of_pass, "_LARGE", 2**20)
        _, cut = counted(built(case), case.inputs(), **case.how)
        monkeypatch.setattr(cut_of_pass, "_LARGE", 0)
        _, again = counted(built(case), case.inputs(), **case.how)
        assert again.certificate.to_dict() == cut.certificate.to_dict() or not cut.certificate.ok
        assert again.certificate.ok == cut.certificate.ok and again.head == cut.head


def test_batches_of_a_smaller_input_are_told() -> None:
    """One item more of the example's size is too large: the certificate tells the shapes."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 40, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.first(x)))

    passes, cut = counted(Dense().eval(), torch.randn(2, 3, 256, 256))
    notes = [check.note for check in cut.certificate.checks]
    assert cut.certificate.ok, cut.certificate
    assert "batch 1 and another length, (1, 3, 129, 113)" in notes
    assert "batch 3, (3, 3, 129, 113)" in notes
    assert passes <= NINE + 1


def counted(model: nn.Module, inputs: Any, **how: Any) -> tuple[int, Split]:
    """How many forward passes a proof takes, and what it gives."""
    counting = Counting(model)
    cut = split(counting, inputs, **how)
    return counting.passes.count, cut


# Passes of a proof: a plain and a recorded one over the example, another input, one interchanged,
# another batch and another length, two held out, and the example once more; then what the model's
# own kind adds.
NINE = 9


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("linear", NINE),
        ("conv, relu, pool", NINE),
        ("einsum", NINE + 1),  # another length that it refuses
        ("values looked at", NINE + 2),  # each branch inverted
        ("one sample, squeezed", NINE + 4),  # batches of further sizes; shapes that it refuses
    ],
)
def test_passes_of_a_proof(name: str, most: int) -> None:
    passes, cut = counted(built(ALL[name]), ALL[name].inputs(), **ALL[name].how)
    assert cut.certificate.ok, cut.certificate
    assert passes <= most


@pytest.mark.parametrize("kind", ["bert", "wav2vec2", "vit"])
def test_passes_of_a_proof_of_a_transformer(kind: str) -> None:
    """A mask; a variable length; one length alone, of which two others are refused."""
    task = {"bert": sweep.TEXT, "wav2vec2": sweep.AUDIO, "vit": sweep.IMAGE}[kind]
    passes, cut = counted(*sweep.build_transformers(task, kind))
    assert cut.certificate.ok, cut.certificate
    assert passes <= 13


def test_a_state_adds_no_pass() -> None:
    """`Counting` keeps a number in a buffer, which every pass changes."""
    passes, cut = counted(built(CASES["linear"]), waves())
    assert passes == NINE
    assert "without what earlier calls left behind" in str(cut.certificate)


@pytest.mark.parametrize("name", thinned([*ALL][::12], [*ALL][::48]))
def test_what_is_not_kept_is_read_in_one_more_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large models: the recorded pass keeps no tensor that it made."""
    case = ALL[name]
    passes, cut = counted(built(case), case.inputs(), **case.how)
    monkeypatch.setattr(living, "YOUNGEST", 0)
    more, again = counted(built(case), case.inputs(), **case.how)
    assert again.certificate.ok == cut.certificate.ok
    assert again.head == cut.head and again.taps == cut.taps
    assert more <= passes + (1 if cut.certificate.ok else 2)
    if cut.certificate.ok:
        assert again.certificate.to_dict() == cut.certificate.to_dict()
        assert again.statements() == cut.statements()
        x = case.inputs()
        values = [
            z if isinstance(z, tuple) else (z,) for z in (cut.prelogits(x), again.prelogits(x))
        ]
        assert all(map(torch.equal, *values))


def graph_of_maps(path: Path, side: int) -> OnnxGraph:
    """Four maps of 8 channels, one after the other, pooled, then a linear head."""
    random = np.random.default_rng(0)
    shapes = {"c": (8, 3, 1, 1), "a": (1,), "w": (8, 5)}
    weights = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    held = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    nodes: list[tuple[str, list[str], str]] = [("Conv", ["x", "c"], "h0")]
    nodes += [("Relu" if n % 2 else "Add", [f"h{n}", "a"][: 2 - n % 2], f"h{n + 1}")
              for n in range(3)]  # fmt: skip
    nodes += [
        ("GlobalAveragePool", ["h3"], "p"),
        ("Flatten", ["p"], "z"),
        ("MatMul", ["z", "w"], "y"),
    ]
    made = [helper.make_node(op, [*reads], [write]) for op, reads, write in nodes]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, side, side]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 5]),
    ]
    graph = helper.make_graph(made, "g", ports[:1], ports[1:], held)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return OnnxGraph.read(path)


@pytest.mark.parametrize(("side", "sizes"), [(16, [5, 17]), (640, [3])])
def test_batches_of_a_graph_fit_into_memory(side: int, sizes: list[int], tmp_path: Path) -> None:
    graph = graph_of_maps(tmp_path / "g.onnx", side)
    random = np.random.default_rng(1)
    feeds = [{"x": scale * random.standard_normal((1, 3, side, side)).astype(np.float32) + scale}
             for scale in (1, 2, 3)]  # fmt: skip
    cut = GraphCut(graph, "y", "y", feeds)
    # Two maps are there at once: one is read, the other written.
    assert graph.memory(cut.shapes) == (4 * (24 + 1 + 40), 2 * 4 * 8 * side**2)
    certificate = prove(cut)
    assert certificate.ok, certificate
    tried = [check.note for check in certificate.checks if check.name == "held out"]
    assert tried == [f"a batch of {size} against the same items alone" for size in sizes]
