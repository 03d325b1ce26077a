"""Networks of timm and transformers with random weights, in small variants, for bench_networks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True)
class Network:
    """A network, and one call of it.

    Attributes:
        make: Builds it.
        example: The arguments of a call: a tensor, or tensors by name.
        others: Types of modules that are pruned beside convolutions and Linear layers.
    """

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    others: tuple[str, ...] = ()


def timm_network(name: str, size: int, **options: Any) -> Network:
    """A network of timm, for one image of ``size`` pixels; its batch norms have seen images."""

    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        with torch.no_grad():
            model.train()(torch.rand(4, 3, size, size))
        return model

    return Network(make, lambda: torch.rand(1, 3, size, size))


def hugging(model: str, config: str, example: Callable[[], Any], *others: str, **options: Any) -> Network:
    """A network of transformers, made from a small configuration."""

    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**options)
        made._attn_implementation = "eager"
        return getattr(transformers, model)(made)

    return Network(make, example, others)


def tokens(length: int = 24, vocabulary: int = 1000) -> Callable[[], Any]:
    """A sentence, with an attention mask."""

    def example() -> dict[str, torch.Tensor]:
        return {"input_ids": torch.randint(0, vocabulary, (1, length)), "attention_mask": torch.ones(1, length).long()}

    return example


def words_alone(length: int = 24, vocabulary: int = 1000) -> Callable[[], Any]:
    """A sentence."""
    return lambda: {"input_ids": torch.randint(0, vocabulary, (1, length))}


def image(size: int) -> Callable[[], Any]:
    """An image."""
    return lambda: {"pixel_values": torch.rand(1, 3, size, size)}


class UNet(nn.Module):
    """Convolutions down and up again, and what is seen on the way down is added to what is seen on the way up."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.first, self.second, self.third = (
            block(3, channels),
            block(channels, 2 * channels),
            block(2 * channels, 4 * channels),
        )
        self.pool = nn.MaxPool2d(2)
        self.up_third = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
        self.up_second = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.fourth, self.fifth = block(4 * channels, 2 * channels), block(2 * channels, channels)
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.first(images)
        second = self.second(self.pool(first))
        up = self.up_third(self.third(self.pool(second)))
        up = self.up_second(self.fourth(torch.cat([up, second], 1)))
        return self.head(self.fifth(torch.cat([up, first], 1)))


BERT = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
LLAMA = BERT | {"num_key_value_heads": 2, "use_cache": False}
BART = {  # an encoder and a decoder
    "vocab_size": 1000,
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "use_cache": False,
}

NETWORKS: dict[str, Network] = {
    "ResNet-18": timm_network("resnet18", 64),
    "MobileNetV2": timm_network("mobilenetv2_050", 96),
    "MobileNetV3": timm_network("mobilenetv3_small_100", 96),
    "EfficientNet-B0": timm_network("efficientnet_b0", 96),
    "RegNetX": timm_network("regnetx_002", 64),
    "DenseNet-121": timm_network("densenet121", 64),
    "GhostNet": timm_network("ghostnet_100", 96),
    "HRNet": timm_network("hrnet_w18_small", 64),
    "RepVGG": timm_network("repvgg_a0", 64),
    "ConvNeXt": timm_network("convnext_atto", 64),
    "ConvNeXtV2": timm_network("convnextv2_atto", 64),
    "ViT": timm_network("vit_tiny_patch16_224", 96, img_size=96, depth=6),
    "Swin": timm_network("swin_tiny_patch4_window7_224", 112, img_size=112, embed_dim=48, depths=(2, 2, 2, 2)),
    "SwinV2": timm_network("swinv2_tiny_window8_256", 128, img_size=128, embed_dim=48, depths=(2, 2, 2, 2)),
    "MLP-Mixer": timm_network("mixer_s32_224", 128, img_size=128),
    "PoolFormer": timm_network("poolformer_s12", 64),
    "EdgeNeXt": timm_network("edgenext_xx_small", 128),
    "MobileViT": timm_network("mobilevit_xxs", 128),
    "LeViT": timm_network("levit_128s", 224),
    "XCiT": timm_network("xcit_nano_12_p16_224", 96, depth=6),
    "CaiT": timm_network("cait_xxs24_224", 96, img_size=96, depth=6),
    "BERT": hugging("BertModel", "BertConfig", tokens(), **BERT),
    "DistilBERT": hugging(
        "DistilBertModel", "DistilBertConfig", tokens(), vocab_size=1000, dim=128, n_layers=3, n_heads=4, hidden_dim=512
    ),
    "ALBERT": hugging("AlbertModel", "AlbertConfig", tokens(), **BERT, embedding_size=64),
    "GPT-2": hugging(
        "GPT2LMHeadModel",
        "GPT2Config",
        words_alone(),
        "transformers.pytorch_utils.Conv1D",
        vocab_size=1000,
        n_embd=128,
        n_layer=3,
        n_head=4,
        use_cache=False,
    ),
    "Llama": hugging("LlamaForCausalLM", "LlamaConfig", words_alone(), **LLAMA),
    "Qwen2": hugging("Qwen2ForCausalLM", "Qwen2Config", words_alone(), **LLAMA),
    "T5 encoder": hugging(
        "T5EncoderModel",
        "T5Config",
        words_alone(),
        vocab_size=1000,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=3,
        num_heads=4,
    ),
    "SegFormer": hugging(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        image(64),
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 64, 96, 128],
        decoder_hidden_size=64,
        num_labels=10,
    ),
    "DETR": hugging(
        "DetrForObjectDetection",
        "DetrConfig",
        image(64),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        num_queries=10,
        num_labels=10,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
    ),
    "wav2vec 2.0": hugging(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        lambda: {"input_values": torch.randn(1, 4000)},
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(64,) * 7,
    ),
    "U-Net": Network(UNet, lambda: torch.rand(1, 3, 64, 64)),
    "MobileNetV4": timm_network("mobilenetv4_conv_small", 96),
    "FastViT": timm_network("fastvit_t8", 128),
    "CoAtNet": timm_network("coatnet_pico_rw_224", 224),
    "NF-RegNet": timm_network("nf_regnet_b0", 64),
    "EfficientFormerV2": timm_network("efficientformerv2_s0", 224),
    "TinyViT": timm_network("tiny_vit_5m_224", 224),
    "BEiT": timm_network("beit_base_patch16_224", 96, img_size=96, embed_dim=96, depth=4, num_heads=3),
    "DINOv2": hugging(
        "Dinov2Model",
        "Dinov2Config",
        image(56),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
    ),
    "CLIP": hugging(
        "CLIPModel",
        "CLIPConfig",
        lambda: words_alone(16)() | {"pixel_values": torch.rand(1, 3, 64, 64)},
        text_config=BERT | {"max_position_embeddings": 32},
        vision_config={key: BERT[key] for key in BERT if key != "vocab_size"} | {"image_size": 64, "patch_size": 16},
    ),
    "Whisper": hugging(
        "WhisperModel",
        "WhisperConfig",
        lambda: {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": torch.randint(0, 1000, (1, 8))},
        **BART,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "BART": hugging("BartModel", "BartConfig", words_alone(), **BART),
    "DeBERTa": hugging(
        "DebertaV2Model", "DebertaV2Config", tokens(), **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "ModernBERT": hugging("ModernBertModel", "ModernBertConfig", tokens(), **BERT, pad_token_id=0),
    "Gemma": hugging("Gemma2ForCausalLM", "Gemma2Config", words_alone(), **LLAMA, head_dim=32),
    "Mamba": hugging(
        "MambaForCausalLM",
        "MambaConfig",
        words_alone(),
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        use_cache=False,
    ),
    "YOLOS": hugging(
        "YolosForObjectDetection",
        "YolosConfig",
        image(64),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=384,
        image_size=[64, 64],
        num_detection_tokens=10,
        num_labels=10,
    ),
}
