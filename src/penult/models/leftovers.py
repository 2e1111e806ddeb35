"""Tensors of a checkpoint that a model has no place for: which of them the trained network computed
with. Knows names and the modules that ran, no file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penult.errors import IncompleteWeights

# Tensors by their last name that no network learns: counters, positions, masks, angles, and what is
# put in the place of masked inputs in training alone.
_BOOKKEEPING = re.compile(
    r"num_batches_tracked|total_(ops|params)|n_averaged|(token_type|position)_ids|_metadata"
    r"|relative_(position_index|coords_table)|(attn|causal|attention)_mask|masked_bias"
    r"|(original_)?inv_freq|freqs_cis|(cos|sin)_cached|periods|_float_tensor|version|_extra_state"
    r"|mask(ed)?_(token|time_emb|spec_embed|emb|embedding)|min_val|max_val|observer_enabled"
    r"|fake_quant_enabled"
)
_ROTARY = re.compile(r"(.*\.)?(rope|rotary)\w*\.\w+")
# GPT-2 and its kin saved their causal mask under the name of a bias.
_MASK = re.compile(r"(.*\.)?\w*(attn|attention)\.(masked_)?bias")

# Parts that hang beside the way to the logits: heads of pretraining, decoders, copies of the
# network, losses.
_BRANCH = re.compile(
    r"(?i)pooler|(\w+_)?decoder(_\w+)?|(lm|mlm|nsp|cpc|mim)_?head\w*|cls|predictions?|predictor"
    r"|seq_relationship|(generator|discriminator)(_\w+)?|aux(_?(classifier|logits|head))?\w*"
    r"|quantizer|project_(q|hid)|contrastive\w*|queue(_ptr)?|prototypes|(dino|ibot)_head"
    r"|(\w+_)?(momentum|teacher|target|ema|averaged)(_\w+)?|(encoder|model)_k"
    r"|(\w+_)?(loss(es)?|criterion|metrics?|accuracy)(_\w+)?|(train|valid?|test)_(acc|auroc|f1)\w*"
    r"|text_\w+|(projection|simclr|ssl)_head|logit_(scale|bias)|temperature|optimizer\w*"
)
_ADAPTER = re.compile(
    r"(.*\.)?(lora_\w+|lo(ha|kr)_\w+|hada_w\w+|oft_\w+|boft_\w+|ia3_\w+|vera_\w+|modules_to_save"
    r"|original_module|base_layer|prompt_encoder|prefix_encoder|adapters|adapter_\w+)(\..*)?"
)
_QUANTISED = re.compile(
    r"(.*\.)?(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|W_q"
    r"|quant_state\.\S+|weight_format|weight_scale(_inv)?|weight_zero_point|weight_packed"
    r"|_packed_params\S*)"
)
NAMED = 12  # names, or modules, that a message lists


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Names of tensors without a place. needed: inside of modules on the way to the logits.
    uncertain: of parts that the model lacks as a whole. harmless: bookkeeping, and branches beside
    that way. adapters: of PEFT. quantised: of weights in few bits."""

    needed: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    quantised: tuple[str, ...] = ()

    def facts(self, modules: Set[str]) -> dict[str, Any]:
        """For `Classifier.describe`: numbers of tensors by the part that the model lacks."""
        found = {"unused_weights": self.harmless, "uncertain_weights": self.uncertain}
        return {key: by_part(names, modules) for key, names in found.items() if names}


@dataclass(frozen=True, slots=True)
class Way:
    """The way to the logits. modules: every module of the model, by path. ran: those in which, or
    inside of which, operations ran that the logits depend on. widths: sizes of the axes of their
    weights."""

    modules: Set[str]
    ran: Set[str]
    widths: Set[int]

    def siblings(self, part: str) -> bool:
        """Whether a part goes on with a row of parts on the way: `layer5` behind `layer4`."""
        parent, _, name = part.rpartition(".")
        row = re.sub(r"\d+", "#", name)
        return "#" in row and any(
            re.sub(r"\d+", "#", other.rpartition(".")[2]) == row and other in self.ran
            for other in self.modules
            if other and other.rpartition(".")[0] == parent
        )


def sort(names: Mapping[str, Tensor | None], way: Way) -> Leftovers:
    """Tell leftovers apart. names: with their tensors, where they are known."""
    found: dict[str, list[str]] = {}
    norms = _norms(names, way)
    for name, tensor in names.items():
        found.setdefault(_sort(name, tensor, way, norms), []).append(name)
    return Leftovers(**{kind: tuple(sorted(values)) for kind, values in found.items()})


def _sort(name: str, tensor: Tensor | None, way: Way, norms: Set[str]) -> str:
    parent = longest_prefix(name, way.modules)
    inside = name.removeprefix(f"{parent}.") if parent else name
    part = inside.partition(".")[0]
    if _ADAPTER.fullmatch(inside):
        return "adapters"
    leaf = name.rpartition(".")[2]
    if _BOOKKEEPING.fullmatch(leaf) or _ROTARY.fullmatch(name) or _is_constant(name, tensor):
        return "harmless"
    if parent and _QUANTISED.fullmatch(inside):
        return "quantised"
    if _BRANCH.fullmatch(part) or (parent and parent not in way.ran):
        return "harmless"
    whole = f"{parent}.{part}" if parent else part
    if parent or way.siblings(whole) or whole in norms:
        return "needed"
    token = inside == part and re.search(r"token|embed", part) is not None
    return "needed" if token else "uncertain"


def _is_constant(name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor is a whole number, positions, or a causal mask."""
    if tensor is None:
        return _MASK.fullmatch(name) is not None
    if tensor.dtype == torch.bool:
        return True
    if not tensor.is_floating_point():
        return not tensor.ndim or bool((tensor == torch.arange(tensor.shape[-1])).all())
    square = tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2] > 1
    return square and bool((tensor == torch.ones_like(tensor).tril()).all())


def _norms(names: Mapping[str, Tensor | None], way: Way) -> set[str]:
    """Parts beside those at the top that are norms of a width on the way to the logits."""
    parts: dict[str, list[Tensor | None]] = {}
    for name, tensor in names.items():
        parts.setdefault(name.rpartition(".")[0], []).append(tensor)
    return {
        part
        for part, tensors in parts.items()
        if part and "." not in part and re.search(r"norm|^bn|^ln|_ln$|_bn$", part)
        and all(t is None or (t.ndim < 2 and (not t.ndim or len(t) in way.widths)) for t in tensors)
    }  # fmt: skip


def longest_prefix(name: str, modules: Set[str]) -> str:
    """The innermost module of the model that a tensor's name lies in; empty for the whole model."""
    parent = name.rpartition(".")[0]
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    return parent


def by_part(names: Iterable[str], modules: Set[str]) -> dict[str, int]:
    """Numbers of tensors by the outermost part of their names that the model lacks."""
    return dict(Counter(_part(name, modules) for name in names))


def _part(name: str, modules: Set[str]) -> str:
    parent = longest_prefix(name, modules)
    inside = name.removeprefix(f"{parent}.") if parent else name
    part = inside.partition(".")[0]
    return f"{parent}.{part}" if parent else part


def listed(names: Iterable[str], modules: Set[str]) -> str:
    """A few names as they are, many by part with numbers."""
    names = list(names)
    if len(names) <= NAMED:
        return ", ".join(names)
    return counted(by_part(names, modules))


def counted(parts: Mapping[str, int]) -> str:
    """`layer1.2 (12 tensors), …`."""
    first = [
        f"{part} ({number} tensors)" if number > 1 else part
        for part, number in [*parts.items()][:NAMED]
    ]
    rest = [*parts.values()][NAMED:]
    more = f" and {len(rest)} further parts ({sum(rest)} tensors)" if rest else ""
    return ", ".join(first) + more


def refuse_adapters(left: Leftovers, spec: str, modules: Set[str]) -> None:
    """Refuse matrices of an adapter, and weights in few bits.

    Raises:
        IncompleteWeights: they are named, with what would work.
    """
    if left.adapters:
        raise IncompleteWeights(
            f"{spec!r} has matrices of an adapter beside the base weights, which this model would "
            f"leave out: {listed(left.adapters, modules)}. Merge them and save again (PEFT: "
            "model.merge_and_unload().save_pretrained(folder)), or name a factory that gives the "
            "model with its adapter and say --weights-inside"
        )
    if left.quantised:
        raise IncompleteWeights(
            f"{spec!r} holds quantised weights, which this model cannot read: "
            f"{listed(left.quantised, modules)}. Give the weights before they were quantised, or "
            "name a factory that opens them with their own library and say --weights-inside"
        )


def refuse_needed(left: Leftovers, spec: str, kind: str, modules: Set[str], trained: str) -> None:
    """Refuse tensors inside of modules on the way to the logits.

    kind: the model's class. trained: the architecture that the checkpoint names; or nothing.

    Raises:
        IncompleteWeights: they are named, with what would work.
    """
    if not left.needed:
        return
    number = len(left.needed)
    told = f" The checkpoint says that it is a {trained}." if trained else ""
    raise IncompleteWeights(
        f"{spec!r} has {number} tensor{'s' if number > 1 else ''} in modules that lead to the "
        f"logits, for which {kind} has no place: {listed(left.needed, modules)}. The trained "
        f"network computed with them, and without them the answers would be another network's."
        f"{told} Open it as it was trained: another name or configuration, or a factory of your "
        "own with --checkpoint; if it never used them, save the weights without them"
    )


def notes_of(facts: Mapping[str, Any]) -> list[str]:
    """In words, which weights a classifier has, and what its checkpoint has that the model has no
    place for. facts: as `Classifier.describe` gives them."""
    notes = []
    if name := facts.get("checkpoint"):
        others = ", ".join(facts.get("other_copies") or ())
        file = name.partition("#")[0]
        more = f"; the file has further copies: {others} (take one with {file}#NAME)"
        beside = ", ".join(facts.get("beside_weights") or ())
        notes.append(
            f"weights of {name}{more if others else ''}"
            + (f"; beside them, not used: {beside}" if beside else "")
        )
    if trained := facts.get("trained"):
        name, size = trained.get("architecture"), trained.get("size")
        words = [f"architecture {name}" if name else "", f"size {size} pixels" if size else ""]
        notes.append(f"its training script wrote: {', '.join(filter(None, words))}")
    if parts := facts.get("uncertain_weights"):
        notes.append(
            f"the model has no place for these parts of the checkpoint: {counted(parts)}. If the "
            "trained network passes its features through them, the answers here are not its own"
        )
    if parts := facts.get("unused_weights"):
        notes.append(
            "the checkpoint has tensors that do not lead to the logits, and are not used: "
            f"{counted(parts)}"
        )
    if drawn := facts.get("random_scores"):
        notes.append(
            f"random numbers reach the scores ({', '.join(drawn)}), so one item gets others in "
            "every pass: give a functional dropout training=self.training, or export the model in "
            "eval mode"
        )
    return notes
