"""Programs of strangers, in TorchScript and torch.export: they compute, and do nothing else.

Each attack would leave a file behind, or read one; its payload works where it is trusted.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import penult
from penult.cli.main import run
from penult.errors import ModelError, PenultError, UntrustedCode
from penult.models import weight_files
from penult.models.operators import computes

RATE = 100


class Net(nn.Module):
    """A second of sound to three classes, with what scripts have: loops, calls, packed weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(RATE, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        for _ in range(2):
            hidden = nn.functional.layer_norm(hidden, [8])
        return self.last(hidden)


@pytest.fixture(scope="module")
def script() -> dict[str, bytes]:
    """The parts of a TorchScript archive."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Net().eval()), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def code_of(parts: dict[str, bytes]) -> str:
    return next(n for n in parts if n.endswith(".py") and b"class Net(" in parts[n])


def archive(path: Path, parts: dict[str, bytes], **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as new:
        for name, content in [*parts.items(), *more.items()]:
            new.writestr(name, content)
    return path


def line(text: str) -> Callable[[str], str]:
    """Put a line into forward."""
    return lambda code: code.replace("    return ", f"    {text}\n    return ", 1)


def default(text: str) -> Callable[[str], str]:
    """Give an argument a default, which torch computes while it reads the archive."""
    return lambda code: code.replace("x: Tensor)", f"x: Tensor, more: {text})", 1)


def state(text: str) -> Callable[[str], str]:
    """Give the module code for its state, which runs while torch reads the archive."""
    return lambda code: (
        f"{code}\n  def __getstate__(self) -> int:\n    return 1\n"
        f"  def __setstate__(self, state: int) -> NoneType:\n    {text}\n    return None\n"
    )


MARK = "MARK"
ATTACKS = {
    "plain": line('torch.save(x, "MARK")'),
    "space": line('torch . save (x, "MARK")'),
    "line breaks": line('torch.save(\n  x,\n  "MARK")'),
    "library": line('ops.aten.save(x, "MARK")'),
    "spaced library": line('ops . aten . save(x, "MARK")'),
    "brackets": line('(torch).save(x, "MARK")'),
    "a name for torch": line('t = torch\n    t.save(x, "MARK")'),
    "a name for ops": line('t = ops.aten\n    t.save(x, "MARK")'),
    "a name for save": line('t = torch.save\n    t(x, "MARK")'),
    "getattr": line('getattr(torch, "save")(x, "MARK")'),
    "unicode": line('torch.\uff53ave(x, "MARK")'),
    "read": line('y = torch.from_file("MARK", False, 4, dtype=0)'),
    "read out": line('y = ops.aten.from_file("MARK")'),
    "torchvision": line('y = ops.image.read_file("MARK")'),
    "python": line("y = ops.prim.PythonOp()"),
    "another machine": line('y = ops.prim.rpc_sync("a", "b", (), {}, 1.)'),
    "remote value": line("y = torch.to_here(x)"),
    "memory": line("y = ops.inductor._reinterpret_tensor(x, [99], [1], 4096)"),
    "address": line("y = ops.mkldnn.data_ptr(x)"),
    "connection": line('y = ops.c10d.barrier(x, "a", [0], 1)'),
    "profiler": line('y = ops.profiler._record_function_enter("a", None)'),
    "video": line('y = __torch__.torch.classes.torchvision.Video("MARK", "a")'),
    "default": default('Tensor=torch.from_file("MARK", False, 4, dtype=0)'),
    "spaced default": default('NoneType=torch . save(1, "MARK")'),
    "state": state('torch.save(1, "MARK")'),
    "spaced state": state('torch . save(1, "MARK")'),
    "hidden in a comment": line('y = "#" + str(torch.save(x, "MARK"))'),
    "hidden behind a string": line('y = """\n"""; torch.save(x, "MARK")'),
    "nested": line(
        'if bool(torch.any(x)):\n      for i in range(3):\n        torch.save(x, "MARK")'
    ),
    "branch": line("if False:\n      y = ops.prim.PythonOp()"),
    "import": lambda code: f"import os\n{code}",
    "try": line('try:\n      torch.save(x, "MARK")\n    except Exception:\n      pass'),
    "function": lambda code: f'def f(x: Tensor):\n  torch.save(x, "MARK")\n{code}',
}


def refused(path: Path, kind: type[PenultError] = UntrustedCode, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        penult.load(path, sample_rate=RATE, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_code_of_a_script(script: dict[str, bytes], tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    code = code_of(script)
    changed = ATTACKS[name](script[code].decode()).replace(MARK, str(mark))
    assert changed != script[code].decode()
    path = archive(tmp_path / "m.pt", {**script, code: changed.encode()})
    assert "--trust" in refused(path)
    assert not mark.exists()


def test_the_attacks_would_work(script: dict[str, bytes], tmp_path: Path) -> None:
    """With torch alone, and where the user says so."""
    mark, code = tmp_path / "mark", code_of(script)
    for name in ("space", "getattr"):
        changed = ATTACKS[name](script[code].decode()).replace(MARK, str(mark))
        path = archive(tmp_path / "m.pt", {**script, code: changed.encode()})
        penult.load(path, sample_rate=RATE, trust=True).classify(sound())
        assert mark.exists()
        mark.unlink()


def sound() -> Any:
    return [(np.linspace(-1, 1, RATE, dtype=np.float32), RATE)]


def upper(name: str) -> str:
    top, _, part = name.partition("/")
    return f"{top}/{part.upper()}"


def test_archives_that_two_readers_see_differently(
    script: dict[str, bytes], tmp_path: Path
) -> None:
    code = code_of(script)
    bad = ATTACKS["space"](script[code].decode()).encode()
    path = tmp_path / "m.pt"
    archive(path, script, **{upper(code): bad})  # torch finds parts by any case
    assert "no archive as torch.jit.save" in refused(path)
    others = {upper(name): part for name, part in {**script, code: bad}.items()}
    assert refused(archive(path, others), ModelError)
    older = f"{code.partition('/')[0]}/model.json"
    archive(path, script, **{older: b"{}"})
    assert "no archive as torch.jit.save" in refused(path)
    front = archive(path, script).read_bytes()
    path.write_bytes(b"\0" * 64 + front)
    assert refused(path, ModelError)


def test_objects_of_cpp(script: dict[str, bytes], tmp_path: Path) -> None:
    data = next(name for name in script if name.endswith("data.pkl"))
    made = script[data].replace(b"c__torch__.test_programs\nNet\n",
                                b"c__torch__.torch.classes.torchvision\nVideo\n")  # fmt: skip
    changed = made if made != script[data] else b"\x80\x02c__torch__.torch.classes.x\nVideo\n."
    path = archive(tmp_path / "m.pt", {**script, data: changed})
    assert "torch.classes" in refused(path)


def save_script(program: Any, path: Path) -> Path:
    torch.jit.save(program, path)
    return path


def test_what_a_script_prints_is_no_result(tmp_path: Path, capsys: Any) -> None:
    class Loud(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("\x1b]52;c;YQ==\x07", x.shape)
            return self.last(torch.relu(self.first(x)))

    path = save_script(torch.jit.script(Loud().eval()), tmp_path / "m.pt")
    assert run(["inspect", str(path), "--sample-rate", str(RATE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin"] == "torchscript"


class Rich(nn.Module):
    """Functions, classes and warnings that real scripts have."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.LSTM(10, 8, batch_first=True), nn.Linear(8, 3)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def save(self, x: torch.Tensor) -> torch.Tensor:
        """A name that an operator has too."""
        return x * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(x.reshape(x.shape[0], 10, 10))
        names = {"a": hidden, "b": torch.einsum("btc->bct", hidden).transpose(1, 2)}
        later = torch.jit.fork(nn.functional.gelu, names["a"])
        if hidden.shape[1] > 99:
            raise ValueError(f"too long: {hidden.shape}")
        mixed = self.attend(torch.jit.wait(later) + names["b"])
        small = nn.functional.interpolate(mixed[:, None], scale_factor=0.5)[:, 0]
        return self.last(self.save(mixed).mean(1)) + small.sum()


@pytest.mark.filterwarnings("ignore")
def test_honest_scripts_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rich, x = Rich().eval(), torch.from_numpy(sound()[0][0])[None]
    scripted = torch.jit.script(rich)
    forms = {
        "script": scripted,
        "frozen": torch.jit.freeze(scripted),
        "trace": torch.jit.trace(rich, x, check_trace=False),
    }
    for name, program in forms.items():
        path = save_script(program, tmp_path / f"{name}.pt")
        found = penult.load(path, sample_rate=RATE, seconds=1).classify(sound())[0].logits
        np.testing.assert_allclose(found, rich(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


class Marked(Net):
    """Marks of time around its layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.profiler.record_function("front"):
            hidden = torch.relu(self.first(x))
        return self.last(hidden)


@pytest.mark.filterwarnings("ignore")
def test_what_stands_beside_a_script_and_marks_of_time(tmp_path: Path) -> None:
    """Files that were saved with a script, which torch makes nothing of: names of any kind."""
    path, net = tmp_path / "m.pt", Marked().eval()
    beside = {"prepare.py": "import os\nos.abort()", "x.pkl": "no pickle of classes", "l.txt": "a"}
    torch.jit.save(torch.jit.script(net), path, _extra_files=beside)
    found = penult.load(path, sample_rate=RATE, seconds=1).classify(sound())[0].logits
    x = torch.from_numpy(sound()[0][0])[None]
    np.testing.assert_allclose(found, net(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_load(tmp_path: Path) -> None:
    """Objects of C++, whose state is set while the archive is read."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch cannot multiply in eight bits")
    torch.backends.quantized.engine = "fbgemm"
    small = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)
    path = save_script(torch.jit.script(small), tmp_path / "m.pt")
    x = torch.from_numpy(sound()[0][0])[None]
    found = penult.load(path, sample_rate=RATE, seconds=1).classify(sound())[0].logits
    np.testing.assert_allclose(found, small(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


SCRIPT_OF_BOXES = """
import sys, torch, penult
if sys.argv[2] == "save":
    import torchvision
    class Boxes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(100, 16), torch.nn.Linear(16, 3)
        def forward(self, x):
            maps = self.first(x).reshape(-1, 1, 4, 4)
            zeros, ones = torch.zeros_like(maps[:, 0, 0, :1]), torch.ones_like(maps[:, 0, 0, :1])
            number = torch.cumsum(ones, 0) - 1
            boxes = torch.cat([number, zeros, zeros, 3 * ones, 3 * ones], 1)
            parts = torchvision.ops.roi_align(maps, boxes, [4, 4])
            return self.last(parts.flatten(1))
    torch.jit.save(torch.jit.script(Boxes().eval()), sys.argv[1])
else:
    assert "torchvision" not in sys.modules
    print(len(penult.load(sys.argv[1], sample_rate=100).labels))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_operators_of_torchvision(tmp_path: Path) -> None:
    """A file that names them opens where torchvision is installed, and takes no other one."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("open('ran', 'w')")
    (tmp_path / "script.py").write_text(SCRIPT_OF_BOXES)

    def python(*args: str, path: str = "") -> subprocess.CompletedProcess[str]:
        where = [path, str(Path(penult.__file__).parent.parent)]
        own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, where))}
        command = [sys.executable, "-W", "ignore", "-P", "../script.py", "m.pt", *args]
        return subprocess.run(
            command, cwd=tmp_path / "in", env=own, capture_output=True, text=True, check=False
        )

    (tmp_path / "in").mkdir()
    assert python("save").returncode == 0
    found = python("load")
    assert found.stdout.strip() == "3", found.stderr
    found = python("load", path=str(tmp_path))
    assert found.returncode and "torchvision" in found.stderr
    assert not (tmp_path / "in" / "ran").exists()


def test_operators_that_take_a_name_do_not_compute() -> None:
    """Each operator of torch that takes a text: none of them is allowed unless the text is known
    to be a way of computing."""
    for schema in torch._C._jit_get_all_schemas():
        names = {a.name for a in schema.arguments if "str" in str(a.type)}
        if names & {"filename", "path", "file", "url", "dst", "src", "group_name", "name", "tag"}:
            # the name of a mark of time is a label for whoever measures
            mark = schema.name == "profiler::_record_function_enter_new"
            assert computes(schema.name) is mark, schema
    assert not computes("aten::save") and not computes("aten::from_file")
    for name in ("linear", "conv2d", "scaled_dot_product_attention", "einsum", "format", "pad"):
        assert computes(f"aten::{name}")


@pytest.fixture(scope="module")
def export() -> dict[str, bytes]:
    """The parts of a torch.export archive, with a free batch."""
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Net().eval(), (torch.zeros(2, RATE),), dynamic_shapes={"x": {0: batch}}
    )
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Payload:
    """A pickle that leaves a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path(self.mark).touch, ()


def part_of(parts: dict[str, bytes], end: str) -> str:
    return next(name for name in parts if name.endswith(end))


def every(value: Any, key: str, new: Any) -> int:
    """Put a value in the place of each of a name; how many there were."""
    if isinstance(value, list):
        return sum(every(one, key, new) for one in value)
    if not isinstance(value, dict):
        return 0
    count = 0
    for name, one in value.items():
        if name == key:
            value[name] = new
            count += 1
        else:
            count += every(one, key, new)
    return count


SPEC = '[1, {{"type": {0}, "context": {1}, "children_spec": []}}]'
FACTORY = {"default_factory_module": "payload", "default_factory_name": "f", "dict_context": []}
PROGRAMS = {
    "os": ("target", "torch.serialization.os.system"),
    "hub": ("target", "torch.hub.load"),
    "load": ("target", "torch.load"),
    "call": ("target", "_operator.call"),
    "attrgetter": ("target", "_operator.attrgetter"),
    "methodcaller": ("target", "_operator.methodcaller"),
    "globals": ("target", "torch.ops.aten.relu.default.__init__.__globals__.get"),
    "namespace": ("target", "torch.ops.aten.__class__"),
    "packet": ("target", "torch.ops.aten.relu.__class__"),
    "write": ("target", "torch.ops.aten.from_file.default"),
    "libraries": ("target", "torch.ops.load_library"),
    "compiled": ("target", "torch.ops.higher_order.aoti_call_delegate"),
    "foreign": ("target", "torch.ops.mylib.custom.default"),
    "math": ("target", "math.__loader__.load_module"),
    "extension": ("target", "#payload"),
    "size": ("expr_str", "__import__('os').system('true')"),
    "sympy": ("expr_str", "Symbol('s0').__class__"),
    "parsed": ("expr_str", "S('s0')"),
    "evaluated": ("expr_str", "Lambda('x', 'x')"),
    "endless": ("expr_str", "Integer(9)**Integer(9)**Integer(9)**Integer(9)"),
    "endless too": ("expr_str", "9^9^9^9^9"),
    "a large exponent": ("expr_str", "Pow(Integer(9), Mul(Integer(60), Integer(60)))"),
    "endless powers": ("expr_str", "Pow(Integer(9), Pow(Integer(60), Integer(60)))"),
    "guard": ("guards_code", ["__import__('os').system('true')"]),
    "guard of a file": ("guards_code", ["open('MARK', 'w')"]),
    "guard with words": ("guards_code", ['L["x\'] or open(1)"].size()[0] == 1']),
    "factory": ("in_spec", SPEC.format('"collections.defaultdict"', json.dumps(FACTORY))),
    "choice": ("out_spec", SPEC.format(
        '"builtins.dict"', json.dumps(json.dumps({"__enum__": True, "fqn": "payload:E",
                                                  "name": "A"})))),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_names(
    export: dict[str, bytes], tmp_path: Path, monkeypatch: Any, name: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    model = part_of(export, "models/model.json")
    program = json.loads(export[model])
    key, value = PROGRAMS[name]
    assert every(program, key, value)
    path = archive(tmp_path / "m.pt2", {**export, model: json.dumps(program).encode()})
    assert "--trust" in refused(path)
    assert not (tmp_path / "mark").exists()


def test_pickles_of_a_program(export: dict[str, bytes], tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "m.pt2"
    bad = pickle.dumps(Payload(str(mark)))
    inputs = part_of(export, "sample_inputs/model.pt")
    weights = part_of(export, "weights_config.json")
    top = inputs.partition("/")[0]
    listed = json.loads(export[weights])
    entry = next(iter(listed["config"].values()))
    forms: list[dict[str, bytes]] = [
        {**export, inputs: bad},
        {**export, inputs: b"junk"},  # torch reads again, with code, what it cannot read without
        {**{n: c for n, c in export.items() if n != inputs}, inputs.replace(".pt", ".PT"): bad},
        {**export, f"{top}/data/weights/model.pt": bad},
        {**export, f"{top}/data/constants/model.pt": bad},
        {**export, f"{top}/data/constants/opaque_obj_0": bad},
    ]
    for name in ("../../extra/x.pt", "opaque_obj_0", "custom_obj_0", "/x.pt", "w"):
        entry |= {"use_pickle": True, "path_name": name}
        where = f"{top}/data/weights/{name}"
        forms.append({**export, weights: json.dumps(listed).encode(), where: bad})
    for parts in forms:
        assert "--trust" in refused(archive(path, parts))
        assert not mark.exists()
    archive(path, export, version=b"8.14", **{"serialized_exported_program.json": b"{}"})
    assert "no archive as torch.export.save" in refused(path)


def older_parts() -> dict[str, bytes]:
    """The parts of an archive as torch 2.7 wrote it."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    x = torch.from_numpy(sound()[0][0])[None]
    found = serialize(torch.export.export(Net().eval(), (x,)))
    return {
        "serialized_exported_program.json": found.exported_program,
        "serialized_state_dict.pt": found.state_dict,
        "serialized_constants.pt": found.constants,
        "serialized_example_inputs.pt": found.example_inputs,
        "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
        "extra_files/prepare.py": b"import os",
    }


@pytest.mark.filterwarnings("ignore")
def test_programs_of_older_versions(export: dict[str, bytes], tmp_path: Path) -> None:
    parts = older_parts()
    path = archive(tmp_path / "m.pt2", parts)
    found = penult.load(path, sample_rate=RATE).classify(sound())[0].logits
    expected = Net().eval()(torch.from_numpy(sound()[0][0])[None])[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    mark, name = tmp_path / "mark", "serialized_exported_program.json"
    bad = pickle.dumps(Payload(str(mark)))
    aside = {f"extra_files/{n.partition('/')[2]}": export[n] for n in export}
    for odd in (
        {**parts, "serialized_constants.pt": bad},
        {**parts, "serialized_example_inputs.pt": bad},
        {**parts, name: parts[name].replace(b"torch.ops.aten.relu", b"torch.hub.load")},
        {**aside, **parts},  # a program of today, where torch looks first
    ):
        assert "--trust" in refused(archive(path, odd))
    assert not mark.exists()


def test_an_honest_program_loads(export: dict[str, bytes], tmp_path: Path) -> None:
    found = penult.load(archive(tmp_path / "m.pt2", export), sample_rate=RATE).classify(sound())
    expected = Net().eval()(torch.from_numpy(sound()[0][0])[None])[0].detach().numpy()
    np.testing.assert_allclose(found[0].logits, expected, rtol=1e-4, atol=1e-5)


class Free(nn.Module):
    """Sizes, conditions and branches that the program has to carry."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 4, 5, stride=3), nn.Linear(4, 3)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.conv(x["sound"][:, None])
        hidden = hidden[..., : hidden.shape[-1] // 2 * 2].reshape(*hidden.shape[:2], -1, 2).mean(-1)
        hidden = torch.cond(hidden.sum() > 0, lambda h: h + 1, lambda h: h - 1, (hidden,))
        return self.last(hidden.mean(-1))


def test_sizes_and_conditions_of_honest_programs(tmp_path: Path) -> None:
    from penult.models.exported_code import refuse_exported_code

    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        Free().eval(), ({"sound": torch.randn(2, 400)},),
        dynamic_shapes=({"sound": {0: auto, 1: auto}},),
    )  # fmt: skip
    torch.export.save(program, tmp_path / "m.pt2")
    refuse_exported_code(tmp_path / "m.pt2")


def test_a_small_archive_that_would_fill_the_memory(
    script: dict[str, bytes], export: dict[str, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("penult.data.files.EXPANDED", 1 << 22)
    for name, parts in (("m.pt", script), ("m.pt2", export), ("m.keras", {"config.json": b"{}"})):
        path = archive(tmp_path / name, parts)
        top = next(iter(parts)).partition("/")[0]
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as new,
            new.open(f"{top}/data/zeros", "w") as file,
        ):
            file.write(bytes(1 << 24))
        assert path.stat().st_size < 1 << 20
        assert "unpacked" in refused(path, ModelError)


class Stretched(torch.nn.Module):
    """A buffer that is one number, shown as four million."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)
        self.register_buffer("mask", torch.zeros(1).expand(2048, 2048))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.mask[0, 0]


@pytest.mark.filterwarnings("ignore")
def test_few_numbers_that_are_shown_as_many(tmp_path: Path, monkeypatch: Any) -> None:
    model = Stretched().eval()
    torch.jit.save(torch.jit.script(model), tmp_path / "m.pt")
    torch.export.save(torch.export.export(model, (torch.randn(1, 8),)), tmp_path / "m.pt2")
    torch.save(dict(model.state_dict()), tmp_path / "weights.pt")
    for name in ("m.pt", "m.pt2"):
        assert penult.load(tmp_path / name, sample_rate=8).labels  # a mask of this size is honest
    monkeypatch.setattr("penult.data.files.EXPANDED", 1 << 22)
    for name in ("m.pt", "m.pt2"):
        assert "unpacked" in refused(tmp_path / name, ModelError)
    with pytest.raises(ModelError, match="unpacked"):
        weight_files.read(tmp_path / "weights.pt")


def doubled(samples: np.ndarray) -> torch.Tensor:
    return 2 * torch.from_numpy(samples)


@pytest.mark.filterwarnings("ignore")
def test_options_beside_a_saved_recipe(tmp_path: Path) -> None:
    """What the recipe leaves open is as typed; what it says otherwise is refused."""
    net, folder = Net().eval(), tmp_path / "saved"
    path = save_script(torch.jit.script(net), tmp_path / "m.pt")
    folder.mkdir()
    penult.load(path, sample_rate=RATE, seconds=1).save(folder)
    x = torch.from_numpy(sound()[0][0])[None]
    found = penult.load(folder, preprocess=doubled, sample_rate=RATE).classify(sound())[0].logits
    np.testing.assert_allclose(found, net(2 * x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(PenultError, match="saved with --sample-rate 100, and --sample-rate 200"):
        penult.load(folder, sample_rate=2 * RATE)
