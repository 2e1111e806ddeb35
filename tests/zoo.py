"""Tiny checkpoints of transformers' classification classes, saved as their libraries save them.

Weights are random but large enough that two inputs give clearly different logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 7  # a prime that no tiny width equals
WIDTH = 32

_TRANSFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": CLASSES,
}
_SPEECH = {
    **_TRANSFORMER,
    "conv_dim": (WIDTH, WIDTH, WIDTH),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 24,
    "tdnn_dim": (24, 24, 24, 24, 24),
    "xvector_output_dim": 24,
}
_WHISPER = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": 24,
    "num_labels": CLASSES,
}
AUDIO: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {
        **_TRANSFORMER,
        "patch_size": 2,
        "max_length": 24,
        "num_mel_bins": 16,
        "frequency_stride": 2,
        "time_stride": 2,
    },
    "data2vec-audio": {**_SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "hubert": _SPEECH,
    "sew": {**_SPEECH, "squeeze_factor": 2},
    "sew-d": {
        **_SPEECH,
        "squeeze_factor": 2,
        "max_position_embeddings": 64,
        "position_buckets": 16,
    },
    "unispeech": _SPEECH,
    "unispeech-sat": _SPEECH,
    "wav2vec2": _SPEECH,
    "wav2vec2-bert": {
        **_TRANSFORMER,
        "feature_projection_input_dim": 16,
        "output_hidden_size": WIDTH,
        "conv_depthwise_kernel_size": 5,
        "classifier_proj_size": 24,
        "tdnn_dim": (24, 24, 24, 24, 24),
        "xvector_output_dim": 24,
    },
    "wav2vec2-conformer": _SPEECH,
    "wavlm": _SPEECH,
    "whisper": _WHISPER,
}


def audio_config(kind: str, **extra: Any) -> Any:
    """A tiny configuration of an audio model type."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**{**AUDIO[kind], **extra})


def audio_extractor(kind: str, **extra: Any) -> Any:
    """The feature extractor that goes with it."""
    import transformers

    if kind == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, **extra)
    if kind == "audio-spectrogram-transformer":
        return transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=24, **extra)
    if kind == "wav2vec2-bert":
        return transformers.SeamlessM4TFeatureExtractor(
            feature_size=8, num_mel_bins=8, stride=2, **extra
        )
    return transformers.Wav2Vec2FeatureExtractor(
        **{"return_attention_mask": True, "do_normalize": True, **extra}
    )


def build(auto: str, config: Any, seed: int = 0) -> nn.Module:
    """A model of the auto class, with weights that let every input count."""
    import transformers

    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, auto).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original" not in name:
                parameter.mul_(3.0)
    return model


def save_audio(
    folder: Path,
    kind: str,
    auto: str = "AutoModelForAudioClassification",
    extractor: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A saved tiny audio checkpoint: config.json, weights, preprocessor_config.json."""
    model = build(auto, audio_config(kind, **config))
    model.save_pretrained(folder)  # type: ignore[operator]
    audio_extractor(kind, **(extractor or {})).save_pretrained(folder)
    return folder


def save_graph(folder: Path) -> Path:
    """A saved embedder of a graph that takes raw sound of any length: its commands need a second,
    and those of the classifiers above three times as much."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    import penult

    def values(name: str, *shape: int) -> Any:
        random = np.random.default_rng([len(shape), *shape])
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Reshape", ["x", "as_channels"], ["sound"]),
        helper.make_node("Conv", ["sound", "kernels"], ["frames"], strides=[160], pads=[0, 400]),
        helper.make_node("Relu", ["frames"], ["active"]),
        helper.make_node("ReduceMean", ["active"], ["pooled"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weights"], ["y"]),
    ]
    weights = [values("kernels", 16, 1, 400), values("weights", 16, CLASSES)]
    weights.append(numpy_helper.from_array(np.array([0, 1, -1], np.int64), "as_channels"))
    sound = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", "samples"))
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", CLASSES))
    graph = helper.make_graph(nodes, "sound", [sound], [scores], weights)
    file = folder.with_suffix(".onnx")
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file
    )
    classifier = penult.load(file, sample_rate=16_000)
    penult.Embedder.from_classifier(classifier, device="cpu").save(folder)
    return folder


def save_image(folder: Path) -> Path:
    """A tiny ViT."""
    from transformers import ViTConfig, ViTImageProcessor

    config = ViTConfig(**_TRANSFORMER, image_size=32, patch_size=8)
    build("AutoModelForImageClassification", config).save_pretrained(folder)  # type: ignore[operator]
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_video(folder: Path) -> Path:
    """A tiny VideoMAE."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor

    config = VideoMAEConfig(**_TRANSFORMER, image_size=32, patch_size=8, num_frames=4)
    build("AutoModelForVideoClassification", config).save_pretrained(folder)  # type: ignore[operator]
    VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


WORDS = [
    "the",
    "a",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "while",
    "seven",
    "grey",
    "whales",
    "sing",
    "and",
    "rain",
    "falls",
]


def save_text(folder: Path, kind: str = "bert") -> Path:
    """A tiny BERT or RoBERTa with a word-level vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    settings = {**_TRANSFORMER, "vocab_size": len(vocabulary), "pad_token_id": 0}
    config = (
        BertConfig(**settings, max_position_embeddings=32)
        if kind == "bert"
        else RobertaConfig(**{**settings, "pad_token_id": 1}, max_position_embeddings=34)
    )
    build("AutoModelForSequenceClassification", config).save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder
