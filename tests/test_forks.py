"""A process that was forked from one that has used a model: it works, or says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penult.errors import UsedBeforeFork
from penult.locking import Guard, HomeProcess

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")

# Two threads of torch, which a forked process does not have; a lock held by a thread of the parent.
SCRIPT = """
import multiprocessing, os, sys, threading, time
import numpy as np, torch
import penult
torch.set_num_threads(2)
emb = penult.Embedder.from_classifier(penult.load(sys.argv[1]), device="cpu")
clips = [np.random.default_rng(n).standard_normal(16_000).astype(np.float32) / 9 for n in range(3)]
expected = emb.embed(clips)
store = penult.Collection.open(sys.argv[2])
store.add(emb, clips)
assert torch.get_num_threads() == 2

def same(number=0):
    assert np.abs(emb.embed(clips) - expected).max() < 1e-4
    return number

def whole():
    opened = penult.Embedder.from_classifier(penult.load(sys.argv[1]), device="cpu").embed(clips)
    assert np.abs(opened - expected).max() < 1e-4
    assert emb.certificate.ok
    for use in (lambda: store.search(expected[0], k=1), lambda: store.add(emb, clips),
                store.vectors, lambda: penult.Collection.open(sys.argv[2]).get(clip_id)):
        try:
            use()
        except penult.errors.UsedBeforeFork as error:
            assert "a collection was used before this process was forked" in str(error)
            assert "spawn" in str(error)
        else:
            raise AssertionError("LanceDB may crash here")

clip_id = store.search(expected[0], k=1)[0].id
held = threading.Event()
def hold():
    with emb._guard:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
pid = os.fork()
if pid == 0:
    same()
    whole()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("forked", flush=True)

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(same, [1, 2]) == [1, 2]
print("pool", flush=True)

class Clips(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, number): return torch.as_tensor(emb.embed([clips[number]])[0])
for number, row in enumerate(torch.utils.data.DataLoader(Clips(), batch_size=None, num_workers=1,
                                                         multiprocessing_context="fork")):
    assert np.abs(row.numpy() - expected[number]).max() < 1e-4
print("loader", flush=True)
assert torch.get_num_threads() == 2
"""


@needs_fork
def test_an_embedder_that_was_used_works_in_a_forked_process(tiny: Path, tmp_path: Path) -> None:
    where = os.pathsep.join(p for p in sys.path if p.endswith("src"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tiny), str(tmp_path / "c.lance")],
        env={**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.split() == ["forked", "pool", "loader"], done.stderr[-2000:]


@needs_fork
def test_a_lock_is_free_unless_the_forking_thread_holds_it() -> None:
    one = Guard()
    with one:
        pid = os.fork()
        if pid == 0:
            with one:  # still its own
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    with one:
        pass


def test_a_model_on_an_accelerator_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    home = HomeProcess("the model on cuda:0")
    home.require()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsedBeforeFork, match=r"the model on cuda:0 was used before .* spawn"):
        home.require()
