"""Tiny random configurations of nearly every transformers classifier, and inputs that fit them.

A model type's own needs stand in OVERRIDES; everything else follows from COMMON.
"""

# One line per model type: the table is to be read down, not across.
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CLASSES = 7  # a prime that no tiny width equals
DROP = object()  # leave what the library has by default
# fmt: off
COMMON: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "emb_dim": 32,
    "d_embed": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "d_head": 8,
    "attention_head_dim": 8,
    "intermediate_size": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_ff": 48,
    "ffn_dim": 48,
    "hidden_dim": 48,
    "dff": 48,
    "d_inner": 48,
    "n_inner": 48,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "n_ctx": 64,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "type_vocab_size": 2,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 4,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "sep_token_id": 2,
    "cls_token_id": 1,
    "classifier_proj_size": 24,
    "tdnn_dim": (24, 24, 24, 24, 24),
    "xvector_output_dim": 24,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SPEECH: dict[str, Any] = {
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 3),
    "conv_bias": False,
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "hidden_size": 32,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
}
VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"patch_size": 2, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 2, "time_stride": 2},
    "wav2vec2": {**SPEECH},
    "hubert": {**SPEECH},
    "unispeech": {**SPEECH},
    "unispeech-sat": {**SPEECH},
    "wavlm": {**SPEECH},
    "data2vec-audio": {**SPEECH},
    "wav2vec2-conformer": {**SPEECH},
    "sew": {**SPEECH, "squeeze_factor": 2},
    "sew-d": {**SPEECH, "squeeze_factor": 2, "max_position_embeddings": 64, "position_buckets": 16},
    "wav2vec2-bert": {"feature_projection_input_dim": 16, "apply_spec_augment": False, "output_hidden_size": 32, "conv_depthwise_kernel_size": 5},
    "whisper": {"num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 20, "apply_spec_augment": False},
    "beit": {**VIT},
    "data2vec-vision": {**VIT, "out_indices": [0, 1, 1, 1]},
    "deit": {**VIT},
    "dinov2": {**VIT},
    "dinov2_with_registers": {**VIT},
    "ijepa": {**VIT},
    "vit": {**VIT},
    "vit_msn": {**VIT},
    "bit": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "num_groups": 4},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_scale_init_value": 0.5},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "cvt": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "dinat": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "dilations": [[1], [1]], "kernel_size": 3},
    "donut-swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 2},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 2},
    "swinv2": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 2},
    "efficientnet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2, "kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 20], "strides": [1, 1, 2], "num_block_repeats": [1, 1, 2], "expand_ratios": [1, 6, 6], "hidden_dim": 320},
    "focalnet": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 2, 1], "focal_levels": [2, 2, 2], "focal_windows": [3, 3, 3]},
    "hgnet_v2": {"embedding_size": 16, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 24, 32, 40], "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 24, 32], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 24, 32, 40], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2]},
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3], "masked_unit_size": [8, 8], "num_query_pool": 3, "query_stride": [2, 2]},
    "imagegpt": {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 98},
    "levit": {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1], "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]]},
    "mobilenet_v1": {"image_size": 32, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25},
    "mobilevit": {"image_size": 32, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [4, 8, 8, 16, 16, 24, 40], "num_attention_heads": 4},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [64, 64, 64]},
    "poolformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_scale_init_value": 0.5},
    "pp_lcnet": {"scale": 0.25, "class_expand": 40},
    "pvt": {"image_size": 64, "hidden_sizes": [8, 16, 16, 24], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1]},
    "pvt_v2": {"image_size": [64, 64], "hidden_sizes": [8, 16, 16, 24], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "groups_width": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "segformer": {"hidden_sizes": [8, 16, 16, 24], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16},
    "swiftformer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "layer_scale_init_value": 0.5},
    "textnet": {"stem_out_channels": 8, "image_size": [32, 32], "hidden_sizes": [8, 8, 16, 24, 32]},
    "timm_wrapper": {"architecture": "resnet18"},
    "perceiver": {"num_latents": 8, "d_latents": 32, "d_model": 24, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 16, "vocab_size": 99, "max_position_embeddings": 32, "num_frames": 2},
    "timesformer": {**VIT, "num_frames": 2},
    "videomae": {**VIT, "num_frames": 4},
    "vivit": {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]},
    "videoprism_vision_model": {"image_size": 32, "num_frames": 4, "tubelet_size": [1, 8, 8], "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_spatial_layers": 2, "num_temporal_layers": 2, "num_auxiliary_layers": 1},
    "vjepa2": {"patch_size": 8, "crop_size": 32, "frames_per_clip": 4, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_ratio": 2.0, "num_pooler_layers": 1, "pred_hidden_size": 48, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1},
    "clip": {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}},
    "metaclip_2": {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}},
    "siglip": {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}},
    "siglip2": {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_patches": 16, "patch_size": 8}},
    "axk1": {"num_key_value_heads": 4, "head_dim": DROP},
    "axk2": {"num_key_value_heads": 4, "head_dim": DROP},
    "deepseek_v2": {"num_key_value_heads": 4, "head_dim": DROP},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": DROP},
    "minicpm3": {"num_key_value_heads": 4, "head_dim": DROP},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 8, "rotary_dim": DROP, "qk_rope_head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}},
    "bros": {"hidden_size": 128, "num_attention_heads": 4},
    "esmc": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32, "patch_size": 16},
    "lilt": {"hidden_size": 24, "num_attention_heads": 4, "channel_shrink_ratio": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4], "attn_layers": ["local", "local"], "local_attn_chunk_length": 4, "local_num_chunks_before": 1, "num_buckets": 4, "is_decoder": False, "feed_forward_size": 48},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 8},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 32},
    "roc_bert": {"pronunciation_vocab_size": 50, "shape_vocab_size": 50, "pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 16, "adapter_rank": 4, "num_mem_blocks": 1, "num_key_value_heads": 4, "chunk_size": 8},
    "t5": {"decoder_start_token_id": 0},
    "nemotron3_diarization": {"head_config": {"audio_hidden_size": 32}},
}
# fmt: on


def make_config(model_type: str, over: Mapping[str, Any] | None = None) -> Any:
    """A tiny configuration with CLASSES labels."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    settings = _merged(kind, {**OVERRIDES.get(model_type, {}), **(over or {})})
    return kind(**settings, num_labels=CLASSES)  # type: ignore[call-arg]


def _merged(kind: Any, over: Mapping[str, Any]) -> dict[str, Any]:
    """What to give a configuration class, its sub-configurations included."""
    try:
        default = vars(kind())
    except Exception:  # a class that has no defaults of its own
        default = {}
    aliases = getattr(kind, "attribute_map", {}) or {}
    made = {k: v for k, v in COMMON.items() if k in default and k not in aliases}
    for name in getattr(kind, "sub_configs", {}) or {}:
        sub = default.get(name)
        if sub is not None and not isinstance(sub, dict):
            made[name] = _merged(type(sub), over.get(name, {}))
            made[name]["model_type"] = type(sub).model_type
    _layer_types(made, default)
    for name, value in over.items():
        if value is DROP:
            made.pop(name, None)
        elif isinstance(value, dict) and isinstance(made.get(name), dict):
            made[name].update(value)
            made[name] = {k: v for k, v in made[name].items() if v is not DROP}
        else:
            made[name] = value
    for alias, target in aliases.items():  # never both an attribute and its alias
        if alias in over and alias in made and target in made and target not in over:
            made.pop(target)
    return made


def _layer_types(made: dict[str, Any], default: Mapping[str, Any]) -> None:
    """One layer of every type that the model has."""
    layers = made.get("num_hidden_layers", 2)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(default.get(name), list | tuple) and default[name]:
            kinds = list(dict.fromkeys(default[name]))
            made[name] = (kinds * layers)[:layers]


def make_inputs(task: str, model_type: str, config: Any) -> dict[str, Tensor]:
    """A batch of two; the second sample is padded where the class takes a mask."""
    random = torch.Generator().manual_seed(0)
    if task.startswith("AUDIO"):
        return _audio(model_type, config, random)
    if task.startswith("IMAGE"):
        return _images(model_type, config, random)
    if task.startswith("VIDEO"):
        side = getattr(config, "image_size", None) or config.crop_size
        frames = getattr(config, "num_frames", None) or config.frames_per_clip
        key = "pixel_values"
        if model_type in {"vjepa2", "videoprism_vision_model"}:
            key = "pixel_values_videos"
        return {key: torch.randn(2, frames, 3, side, side, generator=random)}
    return _text(model_type, random)


def _audio(model_type: str, config: Any, random: torch.Generator) -> dict[str, Tensor]:
    if model_type == "audio-spectrogram-transformer":
        shape = (2, config.max_length, config.num_mel_bins)
        return {"input_values": torch.randn(shape, generator=random)}
    if model_type == "whisper":
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(shape, generator=random)}
    if model_type == "nemotron3_diarization":
        features = torch.randn(2, 40, config.audio_config.num_mel_bins, generator=random)
        return {"input_features": features, "attention_mask": torch.ones(2, 40, dtype=torch.long)}
    if model_type == "wav2vec2-bert":
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[1, 28:] = 0
        features = torch.randn(2, 40, config.feature_projection_input_dim, generator=random)
        return {"input_features": features, "attention_mask": mask}
    samples, mask = torch.randn(2, 2400, generator=random), torch.ones(2, 2400, dtype=torch.long)
    samples[1, 1700:], mask[1, 1700:] = 0, 0
    return {"input_values": samples, "attention_mask": mask}


_FREE_SIZE = {
    "bit", "resnet", "regnet", "hgnet_v2", "convnext", "convnextv2", "cvt", "poolformer",
    "pp_lcnet", "segformer", "timm_wrapper", "mobilenet_v1", "mobilenet_v2", "textnet",
    "mobilevit",
}  # fmt: skip


def _images(model_type: str, config: Any, random: torch.Generator) -> dict[str, Tensor]:
    if model_type == "imagegpt":
        return {"input_ids": torch.randint(0, 97, (2, 16), generator=random)}
    vision = getattr(config, "vision_config", None)
    if model_type == "siglip2":
        patches = torch.randn(2, 16, 3 * vision.patch_size**2, generator=random)
        mask = torch.ones(2, 16, dtype=torch.long)
        shapes = torch.tensor([[4, 4], [4, 4]])
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    size = getattr(config, "image_size", None) or getattr(vision, "image_size", None) or 64
    size = 64 if model_type in _FREE_SIZE else size
    side = size[0] if isinstance(size, list | tuple) else size
    return {"pixel_values": torch.randn(2, 3, side, side, generator=random)}


def _text(model_type: str, random: torch.Generator) -> dict[str, Tensor]:
    length = 16 if model_type in {"canine", "reformer"} else 12
    ids = torch.randint(5, 97, (2, length), generator=random)
    mask = torch.ones(2, length, dtype=torch.long)
    ids[:, 0], ids[:, -1] = 1, 2
    if model_type != "reformer":
        ids[1, -4:], mask[1, -4:], ids[1, -5] = 0, 0, 2
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model_type in {"layoutlm", "lilt", "layoutlmv3", "layoutlmv2"}:
        box = torch.randint(0, 60, (2, length, 4), generator=random)
        box[..., 2:] = box[..., :2] + 3
        inputs["bbox"] = box
    if model_type == "bros":
        inputs["bbox"] = torch.rand(2, length, 4, generator=random)
    if model_type == "tapas":
        inputs["token_type_ids"] = torch.zeros(2, length, 7, dtype=torch.long)
    if model_type == "perceiver":
        inputs["inputs"] = inputs.pop("input_ids")
    return inputs
