"""Operators of an ONNX file: those that compute run, others are refused before anything is."""

from __future__ import annotations

import contextlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult.cli.main import run
from penult.errors import ModelError

needed = import_module if os.environ.get("CI") == "true" else pytest.importorskip
onnx, _ = needed("onnx"), needed("onnxruntime")
from onnx import helper, numpy_helper  # noqa: E402

SAMPLES, MS = 6, "com.microsoft"
info = helper.make_tensor_value_info


def weight(name: str, *shape: int) -> Any:
    random = np.random.default_rng([*map(ord, name)])
    return numpy_helper.from_array(random.standard_normal(shape).astype("f4"), name)


def model(*between: Any, functions: Any = (), domains: Any = ()) -> Any:
    """Six samples to three classes: two layers, and what lies between them (`h` to `r`)."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), *between,
             helper.make_node("MatMul", ["r", "w1"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "test", [info("x", 1, ["n", SAMPLES])], [info("y", 1, ["n", 3])],
        [weight("w0", SAMPLES, 8), weight("w1", 8, 3), weight("bias", 8)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def function(name: str, *nodes: Any, domain: str = "own") -> Any:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], [*nodes], opsets)


def opened(made: Any, folder: Path) -> penult.Classifier:
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return penult.load(folder / "m.onnx", sample_rate=SAMPLES)


def refused(made: Any, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        opened(made, folder)
    assert run(["inspect", str(folder / "m.onnx"), "--sample-rate", str(SAMPLES)]) == 2
    return str(caught.value)


def test_every_operator_that_computes_is_taken() -> None:
    """Of all that ONNX Runtime has, in every version, two name compiled code of a device."""
    from penult.tracing import onnx_files

    schemas = needed("onnxruntime.capi._pybind_state").get_all_operator_schema()
    kinds = {(one.domain, one.name) for one in schemas}
    taken = set()
    for domain, name in kinds:
        node = helper.make_node(name, [], [], domain=domain)
        graph = helper.make_model(helper.make_graph([node], "one", [], []))
        with contextlib.suppress(ModelError):
            onnx_files.refuse_operators(graph, "one")
            taken.add((domain, name))
    known = {kind for kind in kinds if kind[0] in ("", "ai.onnx.ml", MS)}
    assert ("", "Cast") in known and len(known) > 300
    assert known - taken == {(MS, "EPContext"), (MS, "Snpe")}


def test_compiled_code_of_a_device_is_not_opened(tmp_path: Path) -> None:
    """EPContext names a file; whichever library of a device is installed would load it."""
    node = helper.make_node("EPContext", ["h"], ["r"], domain=MS, embed_mode=0,
                            ep_cache_context="../../secret.bin", source="QNN")  # fmt: skip
    assert "EPContext, which may reach files" in refused(model(node, domains=[MS]), tmp_path)


def test_it_is_seen_inside_of_branches_and_functions(tmp_path: Path) -> None:
    inner = helper.make_node("Snpe", ["h"], ["out"], domain=MS, DLC="code")
    branch = helper.make_graph([inner], "b", [], [info("out", 1, None)])
    other = helper.make_graph([helper.make_node("Relu", ["h"], ["out"])], "b", [],
                              [info("out", 1, None)])  # fmt: skip
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(False)))
    node = helper.make_node("If", ["yes"], ["r"], then_branch=branch, else_branch=other)
    assert "Snpe" in refused(model(yes, node, domains=[MS]), tmp_path)
    inner = helper.make_node("EPContext", ["a"], ["b"], domain=MS, ep_cache_context="x")
    call = helper.make_node("Front", ["h"], ["r"], domain="own")
    made = model(call, functions=[function("Front", inner)], domains=[MS, "own"])
    made.functions[0].opset_import.add(domain=MS, version=1)
    assert "EPContext" in refused(made, tmp_path)


@pytest.mark.parametrize("domain, op", [
    ("pyop", "PyOp"), ("org.pytorch.aten", "ATen"), ("ai.onnx.contrib", "AzureTextToText"),
    ("ai.onnx.preview.training", "Gradient"), ("mine\x1b[2J", "Any"),
])  # fmt: skip
def test_operators_of_other_libraries(tmp_path: Path, domain: str, op: str) -> None:
    node = helper.make_node(op, ["h"], ["r"], domain=domain)
    assert "a library of its own" in refused(model(node, domains=[domain]), tmp_path)


def test_functions_that_call_each_other_without_end(tmp_path: Path) -> None:
    call = helper.make_node("F0", ["h"], ["r"], domain="own")
    one = function("F0", helper.make_node("F1", ["a"], ["b"], domain="own"))
    two = function("F1", helper.make_node("F0", ["a"], ["b"], domain="own"))
    made = model(call, functions=[one, two], domains=["own"])
    assert "without end" in refused(made, tmp_path)


@pytest.mark.parametrize("deep", [40, 5000])
def test_functions_that_double_at_each_level(tmp_path: Path, deep: int) -> None:
    call = helper.make_node("F0", ["h"], ["r"], domain="own")
    doubled = [
        function(f"F{i}", helper.make_node(f"F{i + 1}", ["a"], ["m"], domain="own"),
                 helper.make_node(f"F{i + 1}", ["m"], ["b"], domain="own"))
        for i in range(deep)
    ]  # fmt: skip
    last = function(f"F{deep}", helper.make_node("Neg", ["a"], ["b"]))
    made = model(call, functions=[*doubled, last], domains=["own"])
    assert "more than 1,000,000 times" in refused(made, tmp_path)


@pytest.mark.parametrize("domain, op", [("", "Relu"), ("ai.onnx", "Relu"), (MS, "Gelu")])
def test_a_function_in_the_place_of_an_operator(tmp_path: Path, domain: str, op: str) -> None:
    """ONNX Runtime runs its own operator, others the function: two models in one file."""
    call = helper.make_node(op, ["h"], ["r"], domain=domain)
    body = function(op, helper.make_node("Neg", ["a"], ["b"]), domain=domain)
    made = model(call, functions=[body], domains=[domain] if domain else [])
    assert f"in the place of {f'{domain}.{op}'.removeprefix('.')}" in refused(made, tmp_path)


def test_honest_functions_and_fused_operators(tmp_path: Path) -> None:
    call = helper.make_node("Front", ["h"], ["r"], domain="own")
    inside = function("Inner", helper.make_node("Relu", ["a"], ["b"]))
    outside = function("Front", helper.make_node("Inner", ["a"], ["b"], domain="own"))
    unused = function("Elu", helper.make_node("Neg", ["a"], ["b"]), domain="")
    plain = opened(model(helper.make_node("Relu", ["h"], ["r"])), tmp_path)
    made = model(call, functions=[outside, inside, unused], domains=["own"])
    sound = np.random.default_rng(0).standard_normal((2, SAMPLES)).astype("f4")

    def vectors(classifier: penult.Classifier) -> Any:
        return np.array([one.logits for one in classifier.classify([*sound])])

    np.testing.assert_allclose(vectors(opened(made, tmp_path)), vectors(plain), atol=1e-6)
    fused = helper.make_node("BiasGelu", ["h", "bias"], ["r"], domain=MS)
    found = vectors(opened(model(fused, domains=[MS]), tmp_path))
    add = helper.make_node("Add", ["h", "bias"], ["s"])
    apart = helper.make_node("Gelu", ["s"], ["r"], domain=MS)
    expected = vectors(opened(model(add, apart, domains=[MS]), tmp_path))
    np.testing.assert_allclose(found, expected, atol=1e-6)
