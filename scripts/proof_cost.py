"""What a proof takes beside a plain pass: peak memory, and forward passes.

    python scripts/proof_cost.py [MODEL …]     (names of timm; by default two)

Each figure is from a process of its own: its peak less that of the imports, weights included.
"""

from __future__ import annotations

import json
import subprocess
import sys

MODELS = ("vit_base_patch16_224", "gemma4_vit_167m_enc")
CHILD = """
import json, sys
import timm, torch
from penult.tracing.split import split

name, what = sys.argv[1:]
status = lambda: open("/proc/self/status").read()  # getrusage begins with the parent's peak
peak = lambda: int(status().split("VmHWM:")[1].split()[0]) / 2**20
before = peak()
model = timm.create_model(name, pretrained=False, num_classes=10).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3.0)
x = torch.randn(2, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))
passes = []
model.register_forward_pre_hook(lambda *_: passes.append(1))
if what == "plain":
    with torch.no_grad():
        model(x)
else:
    split(model, x)
print(json.dumps([peak() - before, len(passes)]))
"""


def main(names: list[str]) -> None:
    """Print a line for each model."""
    for name in names or MODELS:
        found = {}
        for what in ("plain", "proof"):
            command = [sys.executable, "-c", CHILD, name, what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[what] = json.loads(done.stdout.splitlines()[-1])
        (plain, _), (proof, passes) = found["plain"], found["proof"]
        print(
            f"{name}: a plain pass {plain:.2f} GiB, the proof {proof:.2f} GiB "
            f"({proof / plain:.1f} times), {passes} passes",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
