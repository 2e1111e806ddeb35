"""Weights in files: safetensors and torch's archives, read without running code."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penult.data.files import expanded
from penult.errors import ModelError, UntrustedCode, cause
from penult.models.options import existing_file, refuse_expanding
from penult.models.processors import quiet

Weights = Mapping[str, Tensor]

# Where training scripts keep the weights, in the order in which they are preferred.
ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file's weights. where: the entry that they were taken from. others: further copies of
    weights in it. beside: its other entries. training: what it was trained with, as far as the
    file names it: `architecture`, `size` (pixels)."""

    weights: Weights
    where: str = ""
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)


def read(path: Path, entry: str | None = None, *, trust: bool = False) -> Checkpoint:
    """Open a checkpoint file. entry: which of several copies to take (`state_dict_ema`, …).

    Raises:
        ModelError: no such file, not a checkpoint, or no such entry; the message lists those there.
        UntrustedCode: it is a pickle that asks to run code.
    """
    if not path.is_file() and not path.is_symlink():
        raise ModelError(f"no checkpoint {str(path)!r}: there is no such file")
    path = existing_file(path)
    if path.suffix == ".safetensors":
        return Checkpoint(_safetensors(path))
    refuse_expanding(path)
    content, left_out = _unpickled(path, trust)
    found = _copies(content)
    if not found and left_out:
        raise _untrusted(path, f"the weights lie in an object of {left_out[0]}")
    if not found:
        raise ModelError(f"{path} holds no weights: expected a mapping of names to tensors")
    entry = _preferred(found) if entry is None else entry
    if entry not in found:
        raise ModelError(f"{path} has no entry {entry!r}; it has {', '.join(map(repr, found))}")
    refuse_stretched(path, found[entry].values())
    return Checkpoint(
        found[entry],
        entry,
        tuple(name for name in found if name != entry),
        _beside(content, found),
        _training(content),
    )


def refuse_stretched(path: Path, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that are a few numbers, shown as many: whatever copies them fills the memory.

    Raises:
        ModelError: a file has such.
    """
    own = [one for one in tensors if isinstance(one, Tensor) and one.layout == torch.strided]
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in own}
    total = sum(one.numel() * one.element_size() for one in own)
    if reason := expanded(total, sum(storages.values())):
        raise ModelError(f"{path} {reason}")


def _safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: Weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not readable as safetensors: {cause(error)}") from error
    return weights


class StandIn:
    """In the place of an object that lies beside the weights: takes anything, holds nothing, and
    runs nothing."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        """Whatever the object was made of."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _mapping(*_: object) -> OrderedDict[str, object]:
    return OrderedDict()


# Objects that training scripts keep beside the weights, and that are values more than code: they
# are left out, not built. Anything else is named and refused.
_VALUES = re.compile(
    r"numpy(\._?core)?(\.multiarray|\.numeric)?\.\w+|numpy\.dtypes\.\w+|numpy\.random\.\w+\.\w+"
    r"|builtins\.(int|float|bool|str|bytes|list|tuple|dict|object|slice|range|frozenset)"
    r"|pathlib\.\w+|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|enum\.\w+"
    r"|types\.SimpleNamespace|collections\.(deque|namedtuple)|typing\.\w+"
    r"|(omegaconf|easydict|yacs|addict|munch|ml_collections|pytorch_lightning|lightning)\.[\w.]+"
    r"|torch\.(optim\.[\w.]+|torch_version\.TorchVersion)"
)
_MAPPINGS = {"collections.defaultdict"}
_NAMED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_ROUNDS = 100


def _unpickled(path: Path, trust: bool) -> tuple[Any, list[str]]:
    """(what a file of torch holds, the objects that were left out of it)."""
    allowed: dict[str, Any] = {"argparse.Namespace": argparse.Namespace}
    for _ in range(_ROUNDS):
        try:
            with quiet(), torch.serialization.safe_globals([(f, n) for n, f in allowed.items()]):
                content = torch.load(path, map_location="cpu", weights_only=not trust)
            return content, [name for name, put in allowed.items() if put is StandIn]
        except pickle.UnpicklingError as error:
            name = refused_global(error)
            if name in _MAPPINGS:
                allowed[name] = _mapping
            elif name and name not in allowed and _VALUES.fullmatch(name):
                allowed[name] = StandIn
            else:
                raise _untrusted(path, _reason(name, error)) from error
        except Exception as error:  # torch reads a damaged file as far as it goes
            raise ModelError(f"{path} is not readable as a checkpoint: {_last(error)}") from error
    raise _untrusted(path, f"it names more than {_ROUNDS} kinds of objects")


def _last(error: Exception) -> str:
    """What torch finds wrong with a damaged file; it has no words for one of another kind."""
    if isinstance(error, (RuntimeError, OSError)):
        return cause(error)
    return "it is damaged, cut off, or no file that torch.save wrote"


def refused_global(error: Exception) -> str:
    """The object, by its dotted name, that a pickle asked for and was not given; or nothing."""
    found = _NAMED.search(str(error))
    if found is None:
        return ""
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


def _reason(name: str, error: Exception) -> str:
    if name:
        return f"it asks for {name}"
    if "Unsupported operand" in str(error):
        return "it was written by pickle itself, in a form that holds more than tensors"
    return "it is a pickle that is damaged, or asks for more than torch reads safely"


def _untrusted(path: Path, reason: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path} is a pickle that asks for more than tensors ({reason}); nothing was run. Save its "
        "state_dict alone, as safetensors, or if you trust whoever made it say --trust"
    )


def _copies(value: Any, name: str = "") -> dict[str, Weights]:
    """Every mapping of names to tensors in a loaded file, by the name of its entry."""
    if isinstance(value, nn.Module):  # only a trusted file gives one
        return {name: value.state_dict()}
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, Weights] = {}
    for key, item in value.items():
        found |= _copies(item, f"{name}.{key}" if name else str(key))
    found = {key: item for key, item in found.items() if not key.startswith("optim")}
    tensors = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
    # An accuracy or a mean that lies beside the weights as a tensor makes no weights.
    largest = max(map(len, found.values()), default=0)
    if len(tensors) > largest and len(tensors) >= len(value) / 2 and _any_axis(tensors):
        return {name: tensors, **found} if largest > 1 else {name: tensors}
    return found


def _any_axis(tensors: Weights) -> bool:
    return any(tensor.ndim and tensor.is_floating_point() for tensor in tensors.values())


def _preferred(found: Mapping[str, Weights]) -> str:
    """The entry that is taken where none is named: the file's own tensors, the usual name, else
    the one with the most tensors, of equals the first."""
    usual = next((name for name in ("", *ENTRIES) if name in found), None)
    return max(found, key=lambda name: len(found[name])) if usual is None else usual


def _beside(content: Any, found: Mapping[str, Weights]) -> tuple[str, ...]:
    """The entries of a file that hold no weights."""
    if not isinstance(content, Mapping) or "" in found:
        return ()
    held = {name.partition(".")[0] for name in found}
    return tuple(str(key) for key in content if str(key) not in held)


def _training(content: Any) -> dict[str, str]:
    """The architecture and the size in pixels that a training script wrote beside the weights."""
    if not isinstance(content, Mapping):
        return {}
    settings = [content, *_settings(content)]
    names = (one.get(key) for key in ("arch", "architecture", "model", "model_name")
             for one in settings)  # fmt: skip
    sizes = (one.get(key) for key in ("input_size", "img_size", "image_size") for one in settings)
    name = next((value for value in names if isinstance(value, str)), None)
    size = next((text for value in sizes if (text := _pixels(value))), None)
    found = {"architecture": name, "size": size}
    return {key: value for key, value in found.items() if value}


def _settings(content: Mapping[Any, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("args", "hyper_parameters", "config", "cfg", "opt", "hparams"):
        value = content.get(key)
        if isinstance(value, argparse.Namespace):
            yield vars(value)
        elif isinstance(value, Mapping):
            yield value


def _pixels(value: Any) -> str:
    """`224 × 224` of 224, (224, 224) or (3, 224, 224)."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return f"{value} × {value}"
    if isinstance(value, list | tuple) and len(value) in (2, 3) and all(map(_whole, value)):
        return " × ".join(map(str, value[-2:]))
    return ""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and value > 0
