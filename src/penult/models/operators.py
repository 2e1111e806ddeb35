"""Operators of stored programs: which of torch's own do nothing but compute."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

import torch

# Where operators come from that compute; `image` of torchvision reads files, `c10d` opens
# connections, `inductor` reads memory by address, `prim` has Python and other machines in it.
_LIBRARIES = frozenset(
    {"aten", "prims", "quantized", "_quantized", "quantized_decomposed", "torchvision",
     "torchaudio", "prepacked", "sparse"}
)  # fmt: skip
# What has to be imported for the operators of a library to be there.
_REGISTERED = {
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
}
# Texts that such an operator may take: a way to compute, a text to compute with, a message. One
# that takes another text (a `filename`, whatever a later torch adds) is refused.
_TEXTS = frozenset(
    "UPLO a activation algorithm api_name approximate assert_msg b chars cls device_type dict "
    "driver el equation fillchar idx ind indexing input inputs interpolation item key l message "
    "mode msg new norm old ord p pad_mode padding padding_side reduce rounding_mode s self "
    "separator side string substr t to_add type values".split()
)
# Those that reach other processes, or print, though they take no name of anything.
_BEYOND = frozenset(
    {"aten::_print", "aten::save", "aten::from_file", "aten::to_here", "aten::local_value",
     "aten::owner", "aten::owner_name", "aten::is_owner", "aten::confirmed_by_owner",
     "aten::_cufft_set_plan_cache_max_size", "aten::_cufft_clear_plan_cache"}
)  # fmt: skip
# Marks for whoever measures the time: `with torch.profiler.record_function("front")`.
_MARKS = frozenset(
    {"profiler::_record_function_enter_new", "profiler::_record_function_exit",
     "profiler::_call_end_callbacks_on_jit_fut"}
)  # fmt: skip
# What holds a program together: control, containers, its own objects.
_CONTROL = frozenset(
    "AutogradZero BroadcastSizes CallFunction CallMethod ChunkSizes Closure Constant "
    "ConstantChunk CreateObject DictConstruct Drop Enter EnumName EnumValue Exit FusedConcat "
    "GetAttr HasAttr If IfThenElse ListConstruct ListUnpack Load Loop ModuleContainerIndex "
    "NumToTensor Print RaiseException Return SetAttr Store StringIndex TimePoint TupleConstruct "
    "TupleIndex TupleSlice TupleUnpack Uninitialized VarConcat VarStack abs awaitable "
    "awaitable_nowait awaitable_wait data device dtype fork grad id index is_cpu is_cuda is_ipu "
    "is_maia is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr "
    "is_vulkan is_xla is_xpu isinstance itemsize layout max min name nbytes rangelist "
    "requires_grad tolist type unchecked_cast unchecked_unwrap_optional".split()
)


@cache
def computes(name: str) -> bool:
    """Whether `library::operator` can be run without a word: it computes, and does nothing else.

    What torch does not have is true where it would compute: nothing of it can run.
    """
    library, _, operator = name.partition("::")
    if library == "prim":
        return operator in _CONTROL
    if name in _MARKS:
        return True
    if library not in _LIBRARIES or name in _BEYOND:
        return False
    _register(library)
    schemas = torch._C._jit_get_schemas_for_operator(name)
    taken = [argument for schema in schemas for argument in schema.arguments]
    return all(one.name in _TEXTS for one in taken if "str" in _words(str(one.type)))


def _words(kind: str) -> list[str]:
    return "".join(sign if sign.isalnum() else " " for sign in kind).split()


@cache
def _register(library: str) -> None:
    """Import what brings a library's operators, if it is installed where packages are: a file
    that names them is no reason to import what lies in some other folder."""
    name = _REGISTERED.get(library, "torch")
    with suppress(ImportError, ValueError, OSError, RuntimeError):  # as its own code may fail
        spec = find_spec(name.partition(".")[0])
        origin = spec and spec.origin
        if origin and Path(origin).resolve().parent.parent in _places():
            import_module(name)


def _places() -> set[Path]:
    beside = Path(torch.__file__).resolve().parent.parent
    return {beside, *(Path(get_path(kind)).resolve() for kind in ("purelib", "platlib"))}
