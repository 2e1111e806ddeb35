"""Writes the files beside it: everything that Penult keeps on a disk, as version 0.1.0 kept it.

Written with version 0.1.0; never run again with a later version, or the test would only show that a
version reads what it wrote itself. All data are generated here, with fixed seeds. The work is done
in a folder of one fixed name, because collections and embedders remember where they were made.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = Path("/srv/penult-fixture")
RATE = 8_000
KINDS = ("low", "high", "noise")

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path[:0] = [str(ROOT), str(HERE.parent)]

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

import penult  # noqa: E402
from penult.cli import run  # noqa: E402


def ask(*arguments: object) -> None:
    """The command line; the run's record says `penult …`, as if it had been typed."""
    sys.argv = ["penult", *map(str, arguments)]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run(sys.argv[1:])
    if code not in (0, 3):
        raise SystemExit(f"{' '.join(sys.argv)}: {code}\n{out.getvalue()}{err.getvalue()}")


def sound(kind: str, seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """A low tone, a high one, or noise."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    time = np.arange(round(seconds * rate)) / rate
    pitch = {"low": 180 + 15 * seed, "high": 1400 + 60 * seed, "noise": 0}[kind]
    noise = random.standard_normal(len(time)) * (0.2 if kind == "noise" else 0.02)
    return (0.4 * np.sin(2 * np.pi * pitch * time) + noise).astype(np.float32)


def write_sounds() -> None:
    """Short clips of three kinds, one long one, one that is broken, and tables of them."""
    (ROOT / "wavs").mkdir(parents=True)
    lines = ["path,id,kind_of_call,site,depth,night"]
    for place, kind in enumerate(KINDS):
        for seed in range(5):
            rate = 2 * RATE if seed == 4 else RATE  # one of each kind is resampled
            samples = sound(kind, 0.2 + 0.03 * seed + 0.01 * place, seed, rate)
            soundfile.write(ROOT / f"wavs/{kind}_{seed}.wav", samples, rate, subtype="PCM_16")
            row = f"{kind}_{seed}.wav,{kind}-{seed},{kind},{'AB'[seed % 2]},{seed / 4}"
            lines.append(f"{row},{seed > 2}")
    (ROOT / "wavs/broken.wav").write_bytes(b"no sound\n")
    lines.append("broken.wav,broken,low,A,0,false")
    (ROOT / "wavs/calls.csv").write_text("\n".join(lines) + "\n")
    long = np.concatenate([sound(kind, 0.3, 9) for kind in KINDS])
    soundfile.write(ROOT / "wavs/long.wav", long, RATE, subtype="PCM_16")
    (ROOT / "wavs/long.csv").write_text("path,id,site\nlong.wav,long,C\n")
    cuts = "path,id,start,end,site\nlong.wav,cut-1,0.05,0.25,C\nlong.wav,cut-2,0.35,0.6,C\n"
    (ROOT / "wavs/cuts.csv").write_text(cuts)


def write_transformers(folder: Path) -> Path:
    """A tiny wav2vec2 as transformers saves it."""
    import transformers

    config = transformers.Wav2Vec2Config(  # type: ignore[call-arg]
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        conv_dim=(16, 24, 24), conv_stride=(5, 4, 2), conv_kernel=(10, 8, 3),
        num_feat_extract_layers=3, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        classifier_proj_size=12, vocab_size=8, num_labels=5,
        id2label=dict(enumerate(["moan", "click", "buzz", "song", "rain"])),
    )  # fmt: skip
    torch.manual_seed(8)
    model = transformers.AutoModelForAudioClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original" not in name:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, return_attention_mask=True, do_normalize=True
    ).save_pretrained(folder)
    return folder


def write_onnx(path: Path) -> Path:
    """A graph of 2,000 samples: frames, one layer, a mean, one more layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(13)
    shapes = {"w0": (100, 20), "b0": (20,), "w": (20, 4), "b": (4,)}
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([-1, 20, 100]), "rows"))
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["frames"]),
        helper.make_node("MatMul", ["frames", "w0"], ["product"]),
        helper.make_node("Add", ["product", "b0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["z"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["z", "w", "b"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, ("n", 2000)), value("y", TensorProto.FLOAT, ("n", 4))
    graph = helper.make_graph(nodes, "sound", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_embedders() -> None:
    """Of a transformers folder, plain and with two taps and a space; of a factory; of ONNX."""
    from penult.space import fit
    from safetensors.torch import save_file

    made, clip = ROOT / "embedders", ROOT / "wavs/low_0.wav"
    tiny = write_transformers(ROOT / "tiny")
    ask("convert", tiny, made / "transformers", "--verify", clip)

    clips = sorted((ROOT / "wavs").glob("*_?.wav"))
    how: dict[str, Any] = {"tap": "layer:1,layer:2", "pooling": "first,mean+std", "device": "cpu"}
    raw = penult.Embedder.from_classifier(penult.load(tiny), **how)
    space = fit("scale+l2", raw.embed(clips))
    penult.Embedder.from_classifier(penult.load(tiny), space=space, **how).save(made / "joined")

    import saved_factory

    torch.manual_seed(15)
    net = saved_factory.build()
    save_file(net.state_dict(), ROOT / "factory.safetensors")
    (ROOT / "names.txt").write_text("a\nb\nc\nd\ne\n")
    ask("convert", "saved_factory:build", made / "factory",
        "--checkpoint", ROOT / "factory.safetensors", "--preprocess", "saved_factory:to_tensor",
        "--labels", ROOT / "names.txt", "--sample-rate", RATE, "--seconds", 0.25,
        "--tap", "prelogits")  # fmt: skip

    onnx = write_onnx(ROOT / "sound.onnx")
    ask("convert", onnx, made / "onnx", "--sample-rate", RATE, "--kind", "multi-label")


def write_collection() -> None:
    """Rows of three runs, a failure, marks, spaces, clusters, a map; too few rows for an index."""
    store, wavs, embedder = ROOT / "calls.lance", ROOT / "wavs", ROOT / "embedders/transformers"
    plain = ("--into", store, "--engine", "torch", "--device", "cpu", "--workers", 0)
    ask("embed", embedder, wavs / "calls.csv", *plain)
    cut = ("--window", "200ms", "--hop", "100ms", "--summary", "mean")
    ask("embed", embedder, wavs / "long.csv", *cut, *plain)
    ask("embed", embedder, wavs / "cuts.csv", *plain)
    for kind in KINDS:
        ask("teach", store, kind, *(f"{kind}-{number}" for number in range(3)))
    ask("teach", store, "low", "high-3", "--mark", "no")
    ask("teach", store, "noise", "low-4", "--mark", "unsure")
    ask("teach", store, "hum", "low-3")
    ask("classes", store, "--rename", "noise", "hiss")
    penult.Collection.open(store).fit_space("pca:4+l2", name="small", where="site <> 'C'")
    ask("search", store, "low-0", "--space", "scale+l2")
    ask("cluster", store, "--method", "kmeans", "--clusters", 3, "--name", "three")
    ask("map", store, ROOT / "map.html", "--method", "pca", "--by", "kind_of_call")
    ask("classes", store, "--save", ROOT / "classes.npz")
    # Its rows are called by their paths; halves of vectors, two logits each, a space of its own.
    clips = [wavs / f"{kind}_0.wav" for kind in KINDS] + [wavs / "broken.wav"]
    ask("embed", ROOT / "embedders/joined", *clips, "--into", ROOT / "paths.lance", "--fp16",
        "--logits", "top:2", *plain[2:])  # fmt: skip
    for name in ("probe.skops", "probe.onnx"):
        probe = ("--where", "kind = 'whole'", "--folds", 3, "--save", ROOT / name)
        ask("probe", store, "--by", "kind_of_call", *probe)


def write_head() -> None:
    """A class space that belongs to no collection: a classifier's own classes and one more."""
    factory = penult.Embedder.load(ROOT / "embedders/factory", device="cpu")
    space = penult.ClassSpace(factory, unknown=0.2)
    space.add_head()
    space.add("hum", [ROOT / "wavs/low_0.wav", (ROOT / "wavs/long.wav", 0.05, 0.25)])
    space.save(ROOT / "head.npz")


def write_pickle() -> None:
    """A fitted transformer for scikit-learn; it names its model by a relative path."""
    from penult.sklearn import EmbeddingTransformer

    clips = sorted((ROOT / "wavs").glob("*_?.wav"))
    made = EmbeddingTransformer("embedders/transformers", tap="layer:1", space="scale+l2")
    (ROOT / "transformer.pickle").write_bytes(pickle.dumps(made.fit(clips), protocol=4))


def main() -> None:
    """All files, and what this version says when it opens them in another place."""
    if (HERE / "expected.json").exists():
        raise SystemExit("these files are there already; they are never written again")
    if ROOT.exists():
        raise SystemExit(f"{ROOT} is in the way")
    ROOT.mkdir(parents=True)
    torch.set_num_threads(1)
    shutil.copyfile(HERE / "saved_factory.py", ROOT / "saved_factory.py")
    write_sounds()
    os.chdir(ROOT)
    write_embedders()
    write_collection()
    write_head()
    write_pickle()
    for name in ("tiny", "factory.safetensors", "names.txt", "sound.onnx", "map.html"):
        gone = ROOT / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    kept = shutil.ignore_patterns("__pycache__", "writer.lock")
    shutil.copytree(ROOT, HERE, dirs_exist_ok=True, ignore=kept)
    shutil.rmtree(ROOT)

    from test_saved_files import READINGS

    expected = {}
    for name, read in READINGS.items():
        with tempfile.TemporaryDirectory() as moved:
            shutil.copytree(HERE, moved, dirs_exist_ok=True)
            os.chdir(moved)
            expected[name] = read(Path(moved))
            os.chdir(HERE)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
