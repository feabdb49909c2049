"""Networks of real architectures with few seeded weights, saved as Hugging Face saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from uvd.renderers.estimators.normals import ThreeChannelDPT

SIDE = 64
NUM_LABELS = 5
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_SIZE = {"height": SIDE, "width": SIDE}
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
_FOUR: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 2}


def _dpt_config() -> Any:
    return hf.DPTConfig(
        hidden_size=32,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
        num_labels=NUM_LABELS,
        use_auxiliary_head=False,
        **_NECK,
        **_FOUR,
    )


def _depth_anything() -> tuple[Any, Any]:
    backbone = hf.Dinov2Config(
        hidden_size=24, image_size=56, patch_size=14, out_features=_STAGES, reshape_hidden_states=False, **_FOUR
    )
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, patch_size=14, head_hidden_size=8, **_NECK
    )
    processor = hf.DPTImageProcessorPil(size={"height": 60, "width": 60}, ensure_multiple_of=14, keep_aspect_ratio=True)
    return hf.DepthAnythingForDepthEstimation(config), processor


def _glpn() -> tuple[Any, Any]:
    config = hf.GLPNConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], decoder_hidden_size=16, num_attention_heads=[1, 2, 2, 2]
    )
    return hf.GLPNForDepthEstimation(config), hf.GLPNImageProcessorPil()


def _zoedepth(heads: int) -> tuple[Any, Any]:
    backbone = hf.BeitConfig(
        image_size=32,
        patch_size=16,
        hidden_size=32,
        intermediate_size=32,
        out_features=_STAGES,
        reshape_hidden_states=False,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=False,
        **_FOUR,
    )
    bins = [
        {"name": name, "n_bins": 8, "min_depth": 0.001, "max_depth": far} for name, far in (("nyu", 10), ("kitti", 80))
    ]
    config = hf.ZoeDepthConfig(
        backbone_config=backbone,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 1, 1],
        bin_configurations=bins[:heads],
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=2,
        num_patch_transformer_layers=4,
        **_NECK,
    )
    processor = hf.ZoeDepthImageProcessorPil(size={"height": 96, "width": 128}, ensure_multiple_of=32)
    return hf.ZoeDepthForDepthEstimation(config), processor


def _segformer() -> tuple[Any, Any]:
    config = hf.SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 16, 16, 16],
        decoder_hidden_size=16,
        num_attention_heads=[1, 2, 2, 2],
        num_labels=NUM_LABELS,
    )
    return hf.SegformerForSemanticSegmentation(config), hf.SegformerImageProcessorPil(size=_SIZE)


def _upernet() -> tuple[Any, Any]:
    backbone = hf.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], out_features=_STAGES)
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=NUM_LABELS, use_auxiliary_head=False
    )
    return hf.UperNetForSemanticSegmentation(config), hf.SegformerImageProcessorPil(size=_SIZE)


def _swin() -> Any:
    return hf.SwinConfig(
        image_size=SIDE, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=_STAGES
    )


_MASKS: dict[str, Any] = {
    "num_queries": 6,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_labels": NUM_LABELS,
}


def _mask2former() -> tuple[Any, Any]:
    config = hf.Mask2FormerConfig(backbone_config=_swin(), feature_size=32, mask_feature_size=32, **_MASKS)
    return hf.Mask2FormerForUniversalSegmentation(config), hf.Mask2FormerImageProcessorPil(size=_SIZE)


def _maskformer() -> tuple[Any, Any]:
    small = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 16))}
    decoder = hf.DetrConfig(d_model=32, num_queries=6, encoder_attention_heads=2, decoder_attention_heads=2, **small)
    config = hf.MaskFormerConfig(
        backbone_config=_swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=NUM_LABELS,
    )
    return hf.MaskFormerForInstanceSegmentation(config), hf.MaskFormerImageProcessorPil(size=_SIZE)


def _oneformer(folder: Path) -> tuple[Any, Any]:
    """With a tokenizer that knows letters, and classes of which 1 and 3 are things."""
    (folder / "classes.json").write_text(json.dumps({str(n): {"name": f"c{n}", "isthing": n % 2} for n in range(5)}))
    letters = [*"thetaskispanopticsemantic"]
    words = dict.fromkeys(
        [*letters, *(letter + "</w>" for letter in letters), "th", "<|startoftext|>", "<|endoftext|>"]
    )
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    config = hf.OneFormerConfig(
        backbone_config=_swin(),
        conv_dim=32,
        mask_dim=32,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=64,
        task_seq_len=40,
        query_dec_layers=1,
        **_MASKS,
    )
    processor = hf.OneFormerImageProcessorPil(size=_SIZE, class_info_file="classes.json", repo_path=str(folder))
    return hf.OneFormerForUniversalSegmentation(config), processor


_BUILD: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "dpt": lambda _: (hf.DPTForDepthEstimation(_dpt_config()), hf.DPTImageProcessorPil(size=_SIZE)),
    "omnidata": lambda _: (ThreeChannelDPT(_dpt_config()), hf.DPTImageProcessorPil(size=_SIZE, do_normalize=False)),
    "dpt_semantic": lambda _: (hf.DPTForSemanticSegmentation(_dpt_config()), hf.DPTImageProcessorPil(size=_SIZE)),
    "depth_anything": lambda _: _depth_anything(),
    "glpn": lambda _: _glpn(),
    "zoedepth": lambda _: _zoedepth(1),
    "zoedepth_voting": lambda _: _zoedepth(2),
    "segformer": lambda _: _segformer(),
    "upernet": lambda _: _upernet(),
    "mask2former": lambda _: _mask2former(),
    "maskformer": lambda _: _maskformer(),
    "oneformer": _oneformer,
}
NAMES = tuple(_BUILD)


def save_tiny(name: str, folder: Path) -> Path:
    """Writes a network, one of `NAMES`, and its processor to a new folder.

    Its weights let every layer pass on about what it gets, so that answers differ from place to place as those of a
    trained network do.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network, processor = _BUILD[name](folder)
    for name_, parameter in network.named_parameters():
        if parameter.ndim > 1:
            # Masks count only where the network is sure of their class.
            sure = 20.0 if "class_" in name_ else 1.0
            torch.nn.init.normal_(parameter, std=sure * (2 / parameter[0].numel()) ** 0.5)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
