"""Which positions of the hidden states are valid, by the backbone's own frame arithmetic.

Knows the model's inputs and hidden states, not where they come from or how they are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def frame_mask(
    backbone: nn.Module | None, tensors: Mapping[str, Tensor], positions: int
) -> Tensor | None:
    """(B, positions) of the valid positions, or None where the model is given no mask for them.

    A mask that the model takes at the resolution of its hidden states serves as it is; one over
    samples is reduced by the model itself, the way its own head does it (see also
    huggingface/transformers#25307, which asks for this mask).
    """
    mask = next((value for name, value in tensors.items() if name.endswith("attention_mask")), None)
    if mask is None or mask.ndim != 2:
        return None
    if mask.shape[1] == positions:
        return mask.bool()
    reduce = getattr(backbone, "_get_feature_vector_attention_mask", None)
    if reduce is None:
        return None
    with torch.no_grad():
        return torch.as_tensor(reduce(positions, mask)).bool()
