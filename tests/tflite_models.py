"""TFLite files, built tensor by tensor: small networks of the layouts that people publish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "complex64": 8,
         "int8": 9}  # fmt: skip


class TfliteModel:
    """A file in the making: tensors and operators, each in its order."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.codes: list[Any] = []
        self.operators: list[Any] = []
        self.graphs: list[Any] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str = "float32",
        scale: Any = None,
        zero: Any = 0,
        axis: int = 0,
    ) -> int:
        """A tensor that is computed or given; -1 is a length that is free."""
        one = self.schema.TensorT()
        one.name, one.type, one.hasRank = name, TYPES[kind], True
        one.shape = np.array([max(size, 1) for size in shape], np.int32)
        if -1 in shape:
            one.shapeSignature = np.array(shape, np.int32)
        if scale is not None:
            one.quantization = self.schema.QuantizationParametersT()
            one.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            one.quantization.zeroPoint = np.resize(zero, len(one.quantization.scale)).astype("i8")
            one.quantization.quantizedDimension = axis
        self.tensors.append(one)
        return len(self.tensors) - 1

    def constant(self, name: str, value: Any, **quantised: Any) -> int:
        """A tensor whose values the file holds."""
        value = np.ascontiguousarray(value)
        at = self.tensor(name, value.shape, str(value.dtype), **quantised)
        values = np.frombuffer(value.tobytes(), np.uint8)
        self.buffers.append(self.schema.BufferT(values))
        self.tensors[at].buffer = len(self.buffers) - 1
        return at

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any
    ) -> None:
        """An operator. options: `of` names their table in the schema; the rest are its fields.
        CUSTOM:name is an operator of the file's own."""
        schema = self.schema
        kind, _, own = kind.partition(":")
        number = getattr(schema.BuiltinOperator, kind)
        code = schema.OperatorCodeT(min(number, 127), own or None, 1, number)
        self.codes.append(code)
        one = schema.OperatorT(len(self.codes) - 1, [*inputs], [*outputs])
        if table := options.pop("of", None):
            one.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            one.builtinOptions = getattr(schema, f"{table}T")(**options)
        self.operators.append(one)

    def save(self, path: Path, inputs: Sequence[int], outputs: Sequence[int], **names: int) -> Path:
        """The file. names: what a signature calls outputs."""
        import flatbuffers

        schema = self.schema
        graph = schema.SubGraphT(self.tensors, [*inputs], [*outputs], self.operators, "main")
        model = schema.ModelT(3, self.codes, [graph, *self.graphs], "test", self.buffers)
        if names:
            maps = [schema.TensorMapT(name, at) for name, at in names.items()]
            model.signatureDefs = [schema.SignatureDefT([], maps, "serving_default", 0)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(builder.Output())
        return path


def dense(
    model: TfliteModel, entering: int, weight: Array, bias: Array, name: str, fused: int = 0
) -> int:
    """A fully connected layer of floats; the tensor that it gives."""
    rows = model.tensors[entering].shape[0]
    free = model.tensors[entering].shapeSignature is not None
    y = model.tensor(name, (-1 if free else rows, len(weight)))
    own = model.constant(f"{name}/weight", weight.astype(np.float32))
    shift = model.constant(f"{name}/bias", bias.astype(np.float32))
    model.operator(
        "FULLY_CONNECTED", [entering, own, shift], [y],
        of="FullyConnectedOptions", fusedActivationFunction=fused,
    )  # fmt: skip
    return y


def weights(*shape: int, seed: int = 0) -> Array:
    """Weights that keep numbers at their size."""
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) / np.sqrt(max(math.prod(shape[1:]), 1))


class FloatNet:
    """Pictures (32, 32, 3) → convolution, ReLU, mean, five classes, softmax if asked; and the same
    in numpy."""

    def __init__(self, nudge: float = 0.0, softmax: bool = False, batch: int = -1) -> None:
        self.kernel = 2 * weights(8, 8, 8, 3).astype(np.float32)
        self.kernel[0, 0, 0, 0] += nudge
        self.weight, self.bias = 4 * weights(5, 8, seed=1), weights(5, 1, seed=2)[:, 0]
        self.softmax, self.batch = softmax, batch

    def save(self, path: Path) -> Path:
        """The file."""
        m, n = TfliteModel(), self.batch
        x = m.tensor("picture", (n, 32, 32, 3))
        hidden, z = m.tensor("hidden", (n, 4, 4, 8)), m.tensor("pooled", (n, 8))
        k, b = m.constant("kernel", self.kernel), m.constant("shift", np.zeros(8, np.float32))
        m.operator("CONV_2D", [x, k, b], [hidden], of="Conv2DOptions", padding=1, strideW=8,
                   strideH=8, fusedActivationFunction=1)  # fmt: skip
        axes = m.constant("axes", np.array([1, 2], np.int32))
        m.operator("MEAN", [hidden, axes], [z], of="ReducerOptions", keepDims=False)
        y = dense(m, z, self.weight, self.bias, "logits")
        if self.softmax:
            p = m.tensor("scores", (n, 5))
            m.operator("SOFTMAX", [y], [p], of="SoftmaxOptions", beta=1.0)
            y = p
        return m.save(path, [x], [y])

    def hidden(self, x: Array) -> Array:
        """(n, 4, 4, 8) in float64."""
        parts = x.reshape(len(x), 4, 8, 4, 8, 3).astype(np.float64)
        return np.maximum(np.einsum("nahbwc,khwc->nabk", parts, self.kernel), 0)

    def logits(self, x: Array) -> Array:
        """(n, 5) in float64."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return self.hidden(x).mean(axis=(1, 2)) @ weight.T.astype(np.float64) + bias


class IntegerNet:
    """Features (24,) → two fully connected layers of eight bits, six classes; and the same in
    integers by numpy. The file takes and gives integers, or floats (`floats`)."""

    def __init__(self, floats: bool = False) -> None:
        random = np.random.default_rng(3)
        self.floats = floats
        self.w1 = random.integers(-127, 128, (16, 24)).astype(np.int8)
        self.b1 = random.integers(-2000, 2000, 16).astype(np.int32)
        self.w2 = random.integers(-127, 128, (6, 16)).astype(np.int8)
        self.b2 = random.integers(-2000, 2000, 6).astype(np.int32)
        self.x, self.z, self.y = (0.031, 4), (0.05, -9), (0.11, 7)  # scale, zero point
        self.s1 = random.uniform(0.003, 0.006, 16)  # of each row
        self.s2 = 0.009

    def save(self, path: Path) -> Path:
        """The file."""
        m = TfliteModel()
        whole = {name: {"scale": s, "zero": z} for name, (s, z) in
                 zip("xzy", (self.x, self.z, self.y), strict=True)}  # fmt: skip
        into = x = m.tensor("features", (1, 24), "int8", **whole["x"])
        if self.floats:
            into = m.tensor("numbers", (1, 24))
            m.operator("QUANTIZE", [into], [x], of="QuantizeOptions")
        z = m.tensor("inner", (1, 16), "int8", **whole["z"])
        y = m.tensor("logits", (1, 6), "int8", **whole["y"])
        w1 = m.constant("w1", self.w1, scale=self.s1)
        b1 = m.constant("b1", self.b1, scale=self.s1 * self.x[0])
        w2, b2 = (
            m.constant("w2", self.w2, scale=self.s2),
            m.constant("b2", self.b2, scale=self.s2 * self.z[0]),
        )
        m.operator("FULLY_CONNECTED", [x, w1, b1], [z], of="FullyConnectedOptions")
        m.operator("FULLY_CONNECTED", [z, w2, b2], [y], of="FullyConnectedOptions")
        out = y
        if self.floats:
            out = m.tensor("scores", (1, 6))
            m.operator("DEQUANTIZE", [y], [out], of="DequantizeOptions")
        return m.save(path, [into], [out])

    def stored(self, numbers: Array) -> Array:
        """The integers of an input."""
        scale, zero = np.float32(self.x[0]), self.x[1]
        return np.clip(np.round(numbers / scale) + zero, -128, 127).astype(np.int64)

    def inner(self, integers: Array) -> Array:
        """The integers of the inner layer, exact up to the last rounding."""
        sums = (integers - self.x[1]) @ self.w1.astype(np.int64).T + self.b1
        factor = np.float32(self.s1).astype(float) * np.float32(self.x[0]) / np.float32(self.z[0])
        return np.clip(np.round(sums * factor) + self.z[1], -128, 127).astype(np.int64)

    def outer(self, integers: Array) -> Array:
        """The integers of the logits out of those of the inner layer."""
        sums = (integers - self.z[1]) @ self.w2.astype(np.int64).T + self.b2
        factor = float(np.float32(self.s2)) * np.float32(self.z[0]) / np.float32(self.y[0])
        return np.clip(np.round(sums * factor) + self.y[1], -128, 127).astype(np.int64)


class SpectrogramNet:
    """Sound (n,) → frames, |FFT|, log, mean over time, embedding, classes: the layout of the
    networks of bird sounds, with the front end in the graph. two: the embedding is an output, too,
    and a signature names both."""

    FRAME, STEP, BANDS, WIDE = 512, 256, 24, 20

    def __init__(self, samples: int, classes: int, two: bool = False) -> None:
        self.samples, self.classes, self.two = samples, classes, two
        self.window = np.hanning(self.FRAME).astype(np.float32)
        edges = np.linspace(0, self.FRAME // 2, self.BANDS + 1).astype(int)
        self.bands = np.zeros((self.BANDS, self.FRAME // 2 + 1), np.float32)
        for number, (low, high) in enumerate(pairwise(edges)):
            self.bands[number, low:high] = 1 / (high - low)
        self.inner = weights(self.WIDE, self.BANDS, seed=4).astype(np.float32)
        self.weight = 3 * weights(classes, self.WIDE, seed=5).astype(np.float32)
        self.bias = 0.1 * weights(classes, 1, seed=6)[:, 0].astype(np.float32)
        self.frames = 1 + (samples - self.FRAME) // self.STEP

    def save(self, path: Path) -> Path:
        """The file."""
        m, t = TfliteModel(), self.frames
        x = m.tensor("INPUT", (-1, self.samples))
        places = np.arange(t)[:, None] * self.STEP + np.arange(self.FRAME)
        at = m.constant("places", places.astype(np.int32))
        framed = m.tensor("framed", (-1, t, self.FRAME))
        m.operator("GATHER", [x, at], [framed], of="GatherOptions", axis=1)
        shaped = m.tensor("shaped", (-1, t, self.FRAME))
        window = m.constant("window", self.window)
        m.operator("MUL", [framed, window], [shaped], of="MulOptions")
        image, back = m.tensor("image", (-1, t, 1, self.FRAME)), self.FRAME // 2 + 1
        shape = m.constant("shape", np.array([-1, t, 1, self.FRAME], np.int32))
        m.operator("RESHAPE", [shaped, shape], [image], of="ReshapeOptions")
        lengths = m.constant("fft", np.array([1, self.FRAME], np.int32))
        waves = m.tensor("waves", (-1, t, 1, back), "complex64")
        m.operator("RFFT2D", [image, lengths], [waves], of="Rfft2dOptions")
        sizes = m.tensor("sizes", (-1, t, 1, back))
        m.operator("COMPLEX_ABS", [waves], [sizes])
        flat = m.tensor("flat", (-1, t, back))
        three = m.constant("three", np.array([-1, t, back], np.int32))
        m.operator("RESHAPE", [sizes, three], [flat], of="ReshapeOptions")
        mel = m.tensor("mel", (-1, t, self.BANDS))
        bands = m.constant("bands", self.bands)
        m.operator("FULLY_CONNECTED", [flat, bands, -1], [mel], of="FullyConnectedOptions",
                   keepNumDims=True)  # fmt: skip
        least, raised = m.constant("least", np.float32(1e-3)), m.tensor("raised", (-1, t, 24))
        m.operator("ADD", [mel, least], [raised], of="AddOptions")
        logs = m.tensor("logs", (-1, t, self.BANDS))
        m.operator("LOG", [raised], [logs])
        hidden = m.tensor("hidden", (-1, t, self.WIDE))
        own = m.constant("inner", self.inner)
        m.operator("FULLY_CONNECTED", [logs, own, -1], [hidden], of="FullyConnectedOptions",
                   keepNumDims=True, fusedActivationFunction=1)  # fmt: skip
        z, one = m.tensor("GLOBAL_AVG_POOL", (-1, self.WIDE)), m.constant("one", np.int32([1]))
        m.operator("MEAN", [hidden, one], [z], of="ReducerOptions", keepDims=False)
        y = dense(m, z, self.weight, self.bias, "CLASS_DENSE_LAYER")
        if self.two:
            return m.save(path, [x], [z, y], embedding=z, label=y)
        return m.save(path, [x], [y])

    def embedding(self, samples: Array) -> Array:
        """(n, 20) of (n, samples), in float64."""
        places = np.arange(self.frames)[:, None] * self.STEP + np.arange(self.FRAME)
        sizes = np.abs(np.fft.rfft(samples.astype(np.float64)[:, places] * self.window))
        logs = np.log(sizes @ self.bands.T.astype(np.float64) + 1e-3)
        return np.maximum(logs @ self.inner.T, 0).mean(axis=1)

    def logits(self, samples: Array) -> Array:
        """(n, classes) in float64."""
        return self.embedding(samples) @ self.weight.T.astype(np.float64) + self.bias
