"""Tiny models in place of those that the recipes name: of the same class where a library has it,
else of the same layout as the project's own code, with random weights."""

# Modules of other projects as they are laid out.
# ruff: noqa: E501
from __future__ import annotations

import importlib
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from conftest import clip
from zoo import audio_config, audio_extractor, save_audio, save_text

# Modules of other projects, as far as a recipe uses them: path → text. Signatures, outputs and the
# layers of the heads are those of the projects' code.
CED = {
    "models.py": """
        import torch
        from torch import nn

        class AudioTransformer(nn.Module):
            def __init__(self, outputdim=527, embed_dim=24):
                super().__init__()
                self.patch_embed = nn.Conv1d(1, embed_dim, 400, 160)
                self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
                self.outputlayer = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, outputdim))

            def forward_features(self, x):
                return self.norm(torch.tanh(self.patch_embed(x[:, None])).transpose(1, 2))

            def forward_head(self, x):
                return self.outputlayer(x.mean(1)).sigmoid()

            def forward(self, x):
                return self.forward_head(self.forward_features(x))

        def ced_mini(pretrained=True):
            torch.manual_seed(0)
            return AudioTransformer()
    """,
}
EFFICIENTAT = {
    "models/mn/model.py": """
        import torch
        import torch.nn.functional as F
        from torch import nn

        class MN(nn.Module):
            def __init__(self, num_classes=527):
                super().__init__()
                self.features = nn.Sequential(
                    nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 24, 3, 2)
                )
                self.classifier = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(start_dim=1), nn.Linear(24, 32),
                    nn.Hardswish(inplace=True), nn.Dropout(p=0.2, inplace=True), nn.Linear(32, num_classes),
                )

            def forward(self, x):
                for layer in self.features:
                    x = layer(x)
                features = F.adaptive_avg_pool2d(x, (1, 1)).squeeze()
                x = self.classifier(x).squeeze()
                if features.dim() == 1 and x.dim() == 1:
                    features, x = features.unsqueeze(0), x.unsqueeze(0)
                return x, features

        def get_model(num_classes=527, pretrained_name=None, width_mult=1.0):
            torch.manual_seed(0)
            return MN(num_classes)
    """,
    "models/preprocess.py": """
        import torch
        from torch import nn

        class AugmentMelSTFT(nn.Module):
            def __init__(self, n_mels=128, sr=32000, win_length=800, hopsize=320):
                super().__init__()
                self.n_mels, self.win_length, self.hopsize = n_mels, win_length, hopsize

            def forward(self, x):
                window = torch.hann_window(self.win_length)
                power = torch.stft(x, 1024, self.hopsize, self.win_length, window, return_complex=True).abs() ** 2
                if self.training:
                    power = power * torch.rand(power.shape[1], 1)
                return ((power[:, : self.n_mels] + 1e-5).log() + 4.5) / 5
    """,
}
PANNS = {
    "models.py": """
        import torch
        import torch.nn.functional as F
        from torch import nn

        class Cnn14(nn.Module):
            def __init__(self, sample_rate, window_size, hop_size, mel_bins, fmin, fmax, classes_num):
                super().__init__()
                self.hop_size = hop_size
                self.conv_block1 = nn.Conv1d(1, 32, window_size, hop_size)
                self.fc1 = nn.Linear(32, 24, bias=True)
                self.fc_audioset = nn.Linear(24, classes_num, bias=True)

            def forward(self, input, mixup_lambda=None):
                x = F.relu_(self.conv_block1(input[:, None]))
                x = F.dropout(x, p=0.2, training=self.training)
                (x1, _) = torch.max(x, dim=2)
                x = x1 + torch.mean(x, dim=2)
                x = F.relu_(self.fc1(x))
                embedding = F.dropout(x, p=0.5, training=self.training)
                clipwise_output = torch.sigmoid(self.fc_audioset(x))
                return {"clipwise_output": clipwise_output, "embedding": embedding}
    """,
}
SSAST = {
    "models.py": """
        import torch
        from torch import nn

        class Body(nn.Module):
            def __init__(self, wide):
                super().__init__()
                self.proj = nn.Conv2d(1, wide, 16, 10)
                self.norm = nn.LayerNorm(wide)

        class ASTModel(nn.Module):
            def __init__(self, label_dim=527, fshape=128, tshape=2, fstride=128, tstride=2, input_fdim=128,
                         input_tdim=1024, model_size="base", pretrain_stage=True, load_pretrained_mdl_path=None):
                super().__init__()
                self.v = Body(24)
                self.mlp_head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, label_dim))

            def forward(self, x, task, cluster=True, mask_patch=400):
                assert task == "ft_avgtok"
                x = x.unsqueeze(1).transpose(2, 3)
                x = self.v.norm(torch.tanh(self.v.proj(x)).flatten(2).transpose(1, 2))
                return self.mlp_head(torch.mean(x, dim=1))
    """,
}
MONAI = {
    "monai/networks/nets.py": """
        from collections import OrderedDict

        import torch
        from torch import nn

        class DenseNet121(nn.Module):
            def __init__(self, spatial_dims, in_channels, out_channels):
                super().__init__()
                conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if spatial_dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
                self.features = nn.Sequential(OrderedDict(conv0=conv(in_channels, 16, 5, 2), norm5=nn.BatchNorm2d(16)
                                              if spatial_dims == 2 else nn.BatchNorm3d(16)))
                self.class_layers = nn.Sequential(OrderedDict(
                    relu=nn.ReLU(), pool=pool(1), flatten=nn.Flatten(1), out=nn.Linear(16, out_channels)))

            def forward(self, x):
                return self.class_layers(self.features(x))
    """,
}


def write(files: dict[str, str]) -> None:
    """The modules, in the working folder."""
    for name, text in files.items():
        for folder in list(Path(name).parents)[:-1]:  # before an installed package of that name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        Path(name).write_text(dedent(text), "utf-8")


def save_items() -> None:
    """What stands in for the user's own files."""
    for folder in ("recordings", "pictures", "arrays"):
        Path(folder).mkdir()
    for number in range(2):
        soundfile.write(f"recordings/{number}.wav", clip(3.2, number), 16_000)
        random = np.random.default_rng(number)
        pixels = random.integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number}.png")
        np.save(f"arrays/{number}.npy", random.random((32, 32, 3)).astype("float32"))
    Path("texts.csv").write_text("text\nthe quick brown fox\na lazy dog\n", "utf-8")


def _weights(name: str, wrap: str = "", prefix: str = "") -> None:
    """Weights of the recipe's own network, as its project keeps them."""
    importlib.invalidate_caches()
    nets: Any = importlib.import_module("nets")
    torch.manual_seed(0)
    model = (nets.Tagger if hasattr(nets, "Tagger") else nets.network)()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    if name.endswith(".ckpt"):
        state = {"state_dict": state, "epoch": 3, "hyper_parameters": {"classes": 5},
                 "pytorch-lightning_version": "2.6.6", "optimizer_states": []}  # fmt: skip
    torch.save({"iteration": 1, wrap: state} if wrap else state, name)


def _tflite(name: str, samples: int, classes: int) -> None:
    from tflite_models import SpectrogramNet

    SpectrogramNet(samples, classes).save(Path(name))


def _ast() -> None:
    save_audio(Path("ast"), "audio-spectrogram-transformer")


def _emotion() -> None:
    """The standard class, and the card's class filled with random weights."""
    save_audio(Path("superb"), "wav2vec2")
    Path("emotion-model").mkdir()
    audio_config("wav2vec2", num_labels=3).save_pretrained("emotion-model")
    audio_extractor("wav2vec2").save_pretrained("emotion-model")
    nets: Any = importlib.import_module("nets")
    torch.manual_seed(0)
    nets.network().save_pretrained("emotion-model")


def _ssast() -> None:
    np.save("fbank.npy", np.random.default_rng(0).random((128, 257)))
    _weights("fine-tuned.pth", prefix="module.")


def _birdnet() -> None:
    _tflite("BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite", 144_000, 7)
    _names("BirdNET_GLOBAL_6K_V2.4_Labels.txt", 7)


def _yamnet() -> None:
    _tflite("yamnet.tflite", 15_600, 9)
    _names("yamnet_class_map.txt", 9)


def _names(file: str, count: int) -> None:
    Path(file).write_text("\n".join(f"class {n}" for n in range(count)), "utf-8")


def _any_tflite() -> None:
    from tflite_models import FloatNet

    FloatNet(softmax=True).save(Path("model.tflite"))


def _timm() -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")


def _peft() -> None:
    """A base without a trained head, and an adapter that has one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    save_text(Path("base"))
    base = AutoModelForSequenceClassification.from_pretrained("base")
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained("adapter")


# Page → modules beside it; what makes its files, once `nets.py` is there; names replaced.
STAND_INS: dict[str, tuple[dict[str, str], Any, dict[str, str]]] = {
    "ast": ({}, _ast, {"MIT/ast-finetuned-audioset-10-10-0.4593": "ast"}),
    "emotion": ({}, _emotion, {"superb/wav2vec2-base-superb-er": "superb"}),
    "ced": (CED, None, {}),
    "efficientat": (EFFICIENTAT, None, {}),
    "panns": (PANNS, lambda: _weights("Cnn14_mAP=0.431.pth", wrap="model"), {}),
    "ssast": (SSAST, _ssast, {}),
    "birdnet": ({}, _birdnet, {}),
    "yamnet": ({}, _yamnet, {}),
    "tflite": ({}, _any_tflite, {}),
    "timm": ({}, _timm, {}),
    "plain-torch": (MONAI, lambda: _weights("weights.pt"), {}),
    "lightning": ({}, lambda: _weights("best.ckpt", prefix="net."), {}),
    "peft": ({}, _peft, {}),
}
