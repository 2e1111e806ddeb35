"""What a Keras file asks for, looked through before Keras reads it: classes and functions by their
modules, files that it would read, data that lies outside of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from penult.data.files import expanded
from penult.extras import require

# Parts of Keras that compute. Others fetch files, load other models, or loosen what may be loaded.
_PARTS = "layers|models|engine|initializers|regularizers|constraints|activations|dtype_policies" \
    "|mixed_precision|quantizers|random|ops|losses|metrics|optimizers"  # fmt: skip
_CLASSES = re.compile(
    rf"keras(\.src)?(\.({_PARTS})(\.\w+)*)?|tensorflow\.keras\.({_PARTS})"
    r"|keras\.src\.backend\.\w+\.optimizers\.\w+|keras\.(_|src\.)legacy\.(layers|losses)"
)
_FUNCTIONS = re.compile(
    r"builtins|keras(\.src)?\.(activations|ops|initializers|losses|metrics|regularizers"
    r"|constraints|random)(\.\w+)*"
)
# Layers of published architectures; beside them stand functions that fetch weights.
_PUBLISHED = {("convnext", "LayerScale"), ("convnext", "StochasticDepth"),
              ("inception_resnet_v2", "CustomScaleLayer")}  # fmt: skip
_APPLICATION = re.compile(r"keras(?:\.src)?\.applications\.(\w+)")
# Layers that hold code of Python or of another library.
_CODE = {"TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "__lambda__", "__typespec__"}
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
# Settings that are a list, a number or nothing, and where they are a text name a file to read.
_FILES = {"vocabulary", "idf_weights", "filepath", "file_path", "filename", "fname", "origin",
          "url", "preset", "vocabulary_file"}  # fmt: skip


def beyond(settings: Any) -> Iterator[str]:
    """What settings of a model ask for beyond computing, in words."""
    for one in _objects(settings):
        named = [key for key in _FILES & one.keys() if isinstance(one[key], str)]
        yield from (f"reads a file of this machine ({one[key][:80]!r})" for key in named)
        kind = one.get("class_name")
        if kind == "function":
            yield from _beyond_function(one)
        elif isinstance(kind, str):
            yield from _beyond_class(kind, one)


def _objects(settings: Any) -> Iterator[dict[str, Any]]:
    pending = [settings]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            yield one
            pending += one.values()


def _beyond_function(one: dict[str, Any]) -> Iterator[str]:
    module, name = one.get("module"), one.get("config")
    if not (_FUNCTIONS.fullmatch(str(module)) or _registered(name, one)):
        yield f"calls {f'{module}.{name}'[:80]}"


def _beyond_class(kind: str, one: dict[str, Any]) -> Iterator[str]:
    module, own = one.get("module"), one.get("config")
    if kind == "Lambda":
        function = own.get("function") if isinstance(own, dict) else None
        if not isinstance(function, dict) or function.get("class_name") != "function":
            yield "brings code of its own (a Lambda layer)"
    elif kind in _CODE:
        yield f"brings code of its own ({kind.strip('_')})"
    elif _registered(kind, one):
        return
    elif ">" not in kind and not kind[:1].isupper() and kind not in _VALUES and "config" in one:
        yield f"calls {f'{module}.{kind}'[:80]}"
    elif str(module).startswith(("keras", "tensorflow")) and not _is_keras(str(module), kind):
        yield f"has an object of {f'{module}.{kind}'[:80]}"


def _is_keras(module: str, kind: str) -> bool:
    """Whether a class is one of Keras that computes."""
    found = _APPLICATION.fullmatch(module)
    published = found is not None and (found[1], kind) in _PUBLISHED
    return published or _CLASSES.fullmatch(module) is not None


def _registered(name: Any, one: dict[str, Any]) -> bool:
    """Whether the caller has made an object known to Keras, in this process."""
    find = require("keras").saving.get_registered_object
    return any(find(key) is not None for key in (one.get("registered_name"), name)
               if isinstance(key, str))  # fmt: skip


def unknown(settings: Any) -> Iterator[str]:
    """Classes of modules that are not of Keras, and that nobody has made known: they are not
    looked for."""
    for one in _objects(settings):
        kind, module = one.get("class_name"), one.get("module")
        others = isinstance(module, str) and not _is_keras(module, str(kind))
        # HDF5 has registered names alone, `package>Class`, and no module beside them.
        others = others or (isinstance(kind, str) and ">" in kind)
        if others and module != "builtins" and not _registered(kind, one):
            yield str(kind)


def outside(file: Any) -> Iterator[str]:
    """Parts of an open HDF5 file that lie in other files, or that are larger than a file can be
    meant to be. They may be found by any of the names that lead to them."""
    import_h5: Any = require("h5py")
    pending, seen, total = [file], set(), 0
    while pending:
        group = pending.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, import_h5.HardLink):
                yield f"reads another file for {name[:80]!r} of it"
                continue
            part = group[name]
            place = import_h5.h5o.get_info(part.id).addr
            if isinstance(part, import_h5.Group) and place not in seen:
                pending.append(part)
            elif isinstance(part, import_h5.Dataset) and place not in seen:
                total += part.nbytes
                if part.external or part.is_virtual:
                    yield f"reads another file for {name[:80]!r} of it"
                elif part.nbytes > _EXPANDED + 1000 * part.id.get_storage_size():
                    yield f"holds {part.nbytes:,} bytes in {name[:80]!r}, most of which it lacks"
            seen.add(place)
    if reason := expanded(total, file.id.get_filesize()):
        yield reason


_EXPANDED = 1 << 28  # bytes that a part may have without a byte of it being stored
