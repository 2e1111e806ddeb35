"""Turn the weights of a recorded graph into whole numbers of eight bits.

What is multiplied with them is rounded to eight bits in the pass itself, some neighbouring numbers
at a time with a scale of their own: so no items are needed to find scales, and an item's vector
does not depend on others. Knows graphs; whether the vectors survive it is measured elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

from penult.errors import EngineError, first_line
from penult.extras import require

# Numbers that share a scale: more of them are faster, and rounded more coarsely.
GROUPS = {"int8 by 128": 128, "int8 by 64": 64, "int8 by 32": 32}


def quantise(recorded: Path, target: Path) -> None:
    """Write a recorded OpenVINO graph again with weights in eight bits.

    Raises:
        EngineError: a graph that cannot be quantised.
        MissingExtra: the tool for it is not installed.
    """
    nncf = require("nncf")
    import openvino

    model = openvino.Core().read_model(recorded)
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            smaller = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    except Exception as error:  # its own errors, and those of the runtime below
        raise EngineError(f"the model cannot be quantised: {first_line(error)}") from error
    openvino.save_model(smaller, target, compress_to_fp16=False)
