"""The networks of `zoo.py`: each package at its version, its licence, how its own users make it, the shapes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """One network: where it comes from, how its own users make it, and the shapes of its inputs.

    tokens: the inputs are whole numbers below it; 0: they are noise.
    """

    name: str
    package: str
    licence: str
    make: str
    inputs: tuple[tuple[int, ...], ...]
    tokens: int = 0


CV: Final = "pytorchcv==0.0.67"
IMAGE: Final = ((1, 3, 224, 224),)
TINY: Final = "hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64"
VISION: Final = "torchvision==0.28.0"
# PyPI's torchvision is built for CUDA: beside torch for CPUs its own operators are missing, which no network here runs
OPERATORS: Final = """try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define("torchvision::" + name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    """


def _cv(name: str, *shape: int) -> Entry:
    make = f"from pytorchcv.model_provider import get_model; net = get_model({name!r}, pretrained=False)"
    return Entry(name, CV, "MIT", make, (shape,) if shape else IMAGE)


def _timm(name: str, size: int = 64, options: str = "") -> Entry:
    make = f"{OPERATORS}import timm; net = timm.create_model({name!r}, num_classes=10{', ' * bool(options)}{options})"
    return Entry(f"timm {name}", f"timm==1.0.31 {VISION}", "Apache-2.0", make, ((1, 3, size, size),))


def _vision(name: str, module: str, function: str, part: str, shape: tuple[int, ...]) -> Entry:
    make = f"{OPERATORS}from torchvision.models.{module} import {function} as f"
    make += f"; net = f(weights=None, weights_backbone=None){part}"
    return Entry(f"torchvision {name}", VISION, "BSD-3-Clause", make, (shape,))


def _smp(name: str, encoder: str) -> Entry:
    make = f"{OPERATORS}import segmentation_models_pytorch as s; net = s.{name}({encoder!r}, encoder_weights=None)"
    packages = f"segmentation-models-pytorch==0.6.0 timm==1.0.31 {VISION}"
    return Entry(f"segmentation {name} on {encoder}", packages, "MIT", make, ((1, 3, 64, 64),))


def _yolo(name: str, kind: str) -> Entry:
    make = f"{OPERATORS}from ultralytics.nn.tasks import {kind} as M; net = M('{name}.yaml', verbose=False)"
    packages = (
        f"ultralytics==8.4.190 ultralytics-thop==2.2.3 opencv-python-headless==5.0.0.93 polars==2.1.0 polars-runtime-32==2.1.0 "
        f"matplotlib==3.11.2 cycler==0.12.1 pyparsing==3.3.3 kiwisolver==1.5.1 fonttools==4.68.0 contourpy==1.3.3 "
        f"python-dateutil==4.0.0 {VISION}"
    )
    return Entry(name, packages, "AGPL-3.0", make, ((1, 3, 64, 64),))


def _hugging(name: str, config: str, model: str, shape: tuple[int, ...], options: str, tokens: int = 0) -> Entry:
    make = (
        f"{OPERATORS}from transformers import {config}, {model}; net = {model}({config.partition(',')[0]}({options}))"
    )
    return Entry(f"{name} of transformers", f"transformers==5.23.0 {VISION}", "Apache-2.0", make, (shape,), tokens)


ZOO: Final = (
    _cv("shufflenet_g3_wd4"),
    _cv("shufflenetv2_wd2"),
    _cv("mobilenet_wd4"),
    _cv("mobilenetv2_wd4"),
    _cv("mobilenetv3_small_w7d20"),
    _cv("ghostnet"),
    _cv("mnasnet_small"),
    _cv("efficientnet_b0"),
    _cv("mixnet_s"),
    _cv("squeezenet_v1_1"),
    _cv("squeezeresnet_v1_1"),
    _cv("sqnxt23_w1"),
    _cv("igcv3_wd4"),
    _cv("dicenet_wd5"),
    _cv("espnetv2_wd2"),
    _cv("peleenet"),
    _cv("darknet_tiny"),
    _cv("regnety002"),
    _cv("seresnet10"),
    _cv("cbam_resnet18"),
    _cv("diracnet18v2"),
    _cv("vovnet27s"),
    _cv("centernet_resnet18_coco", 1, 3, 128, 128),
    _cv("lffd20x5s320v2_widerface", 1, 3, 128, 128),
    _cv("superpointnet", 1, 1, 64, 64),
    *(
        _cv(f"{name}_cifar10", 1, 3, 32, 32)
        for name in (
            "nin",
            "resnet20",
            "preresnet20",
            "seresnet20",
            "sepreresnet20",
            "diaresnet20",
            "diapreresnet20",
            "densenet40_k12_bc",
            "xdensenet40_2_k24_bc",
            "rir",
            "shakeshakeresnet20_2x16d",
            "shakedropresnet20",
            "resdropresnet20",
            "ror3_56",
            "fractalnet",
            "msdnet22",
        )
    ),
    Entry(
        "conformer block",
        "conformer==0.3.2 einops==0.8.2",
        "MIT",
        "from conformer import ConformerBlock; net = ConformerBlock(dim=64, dim_head=16, heads=4)",
        ((1, 48, 64),),
    ),
    Entry(
        "swin transformer",
        "swin-transformer-pytorch==0.4.1 einops==0.8.2",
        "MIT",
        "from swin_transformer_pytorch import SwinTransformer; net = SwinTransformer(hidden_dim=32, layers=(2, 2, 2, 2), "
        "heads=(1, 2, 4, 8), window_size=4, num_classes=10)",
        ((1, 3, 128, 128),),
    ),
    Entry(
        "efficientnet-b0 of efficientnet_pytorch",
        "efficientnet_pytorch==0.7.1",
        "Apache-2.0",
        "from efficientnet_pytorch import EfficientNet; net = EfficientNet.from_name('efficientnet-b0')",
        ((1, 3, 128, 128),),
    ),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("efficientformer_l1", 224, "depths=(1, 1, 1, 2), num_vit=1"),
    _timm("mobilevit_xxs"),
    _timm("swin_tiny_patch4_window7_224", 64, "img_size=64, window_size=4, depths=(1, 1, 2, 1), embed_dim=48"),
    _timm("convnext_atto"),
    _timm("fastvit_t8"),
    _timm("levit_128s", 224),
    _timm("mobilenetv4_conv_small_050"),
    _timm("efficientvit_b0"),
    _timm("edgenext_xx_small"),
    _vision("ssdlite320 features", "detection", "ssdlite320_mobilenet_v3_large", ".backbone", (1, 3, 96, 96)),
    Entry(
        "torchvision squeezenet1_1",
        VISION,
        "BSD-3-Clause",
        f"{OPERATORS}from torchvision.models import squeezenet1_1; net = squeezenet1_1(weights=None, num_classes=10)",
        ((1, 3, 64, 64),),
    ),
    _vision("lraspp", "segmentation", "lraspp_mobilenet_v3_large", "", (1, 3, 96, 96)),
    _smp("Unet", "timm-mobilenetv3_small_minimal_100"),
    _smp("FPN", "mobilenet_v2"),
    Entry(
        "super-resolution ninasr_b0",
        f"torchsr==1.0.4 {VISION}",
        "MIT",
        f"{OPERATORS}from torchsr.models import ninasr_b0; net = ninasr_b0(scale=2, pretrained=False)",
        ((1, 3, 24, 24),),
    ),
    Entry(
        "face detector PNet",
        f"facenet-pytorch==2.6.0 {VISION}",
        "MIT",
        f"{OPERATORS}from facenet_pytorch.models.mtcnn import PNet; net = PNet(pretrained=False)",
        ((1, 3, 48, 48),),
    ),
    Entry(
        "time series TCN",
        "pytorch-tcn==1.2.3",
        "MIT",
        "from pytorch_tcn import TCN; net = TCN(num_inputs=4, num_channels=[16, 16, 16], kernel_size=3)",
        ((1, 4, 64),),
    ),
    Entry(
        "patch descriptor HardNet",
        "kornia==0.9.0 kornia_rs==0.2.0",
        "Apache-2.0",
        "from kornia.feature import HardNet; net = HardNet(pretrained=False)",
        ((1, 1, 32, 32),),
    ),
    _yolo("yolov8n", "DetectionModel"),
    _yolo("yolo11n-pose", "PoseModel"),
    _hugging(
        "PatchTST",
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        (1, 64, 3),
        "num_input_channels=3, context_length=64, "
        "patch_length=8, patch_stride=8, prediction_length=8, d_model=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64",
    ),
    _hugging(
        "PatchTSMixer",
        "PatchTSMixerConfig",
        "PatchTSMixerForPrediction",
        (1, 64, 3),
        "num_input_channels=3, "
        "context_length=64, patch_length=8, patch_stride=8, prediction_length=8, d_model=16, num_layers=2",
    ),
    _hugging(
        "Wav2Vec2",
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        (1, 1600),
        f"{TINY}, conv_dim=(16, 16, 16), conv_stride=(5, 4, 4), "
        "conv_kernel=(10, 8, 4), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4",
    ),
    _hugging(
        "BERT", "BertConfig", "BertModel", (1, 16), f"{TINY}, vocab_size=100, max_position_embeddings=32", tokens=100
    ),
    _hugging(
        "DistilBERT",
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        (1, 16),
        "dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100, max_position_embeddings=32",
        tokens=100,
    ),
    _hugging(
        "GPT-2",
        "GPT2Config",
        "GPT2LMHeadModel",
        (1, 16),
        "n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=32, use_cache=False",
        tokens=100,
    ),
    _hugging(
        "T5 encoder",
        "T5Config",
        "T5EncoderModel",
        (1, 16),
        "vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4",
        tokens=100,
    ),
    _hugging(
        "Mamba",
        "MambaConfig",
        "MambaModel",
        (1, 16),
        "vocab_size=100, hidden_size=16, num_hidden_layers=1, state_size=4, use_cache=False",
        tokens=100,
    ),
    _hugging(
        "Depth Anything",
        "DepthAnythingConfig, Dinov2Config",
        "DepthAnythingForDepthEstimation",
        (1, 3, 56, 56),
        "backbone_config=Dinov2Config(image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, "
        "out_features=['stage1', 'stage2', 'stage3', 'stage4'], reshape_hidden_states=False), reassemble_hidden_size=32, "
        "neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16, patch_size=14",
    ),
    _hugging(
        "PVT v2",
        "PvtV2Config",
        "PvtV2ForImageClassification",
        (1, 3, 64, 64),
        "image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4], num_labels=5",
    ),
    _hugging(
        "EnCodec audio encoder",
        "EncodecConfig",
        "EncodecModel",
        (1, 1, 640),
        "num_filters=8, hidden_size=16, codebook_dim=16",
    ),
    _hugging(
        "ViTPose",
        "VitPoseConfig, VitPoseBackboneConfig",
        "VitPoseForPoseEstimation",
        (1, 3, 64, 48),
        "backbone_config=VitPoseBackboneConfig(image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, "
        "num_attention_heads=4, out_indices=[2]), num_labels=17",
    ),
    _hugging(
        "PoolFormer",
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        (1, 3, 64, 64),
        "depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_labels=5",
    ),
    _hugging(
        "MobileNetV2 DeepLab",
        "MobileNetV2Config",
        "MobileNetV2ForSemanticSegmentation",
        (1, 3, 64, 64),
        "depth_multiplier=0.35, num_labels=5",
    ),
    _hugging(
        "SegFormer",
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        (1, 3, 64, 64),
        "depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], decoder_hidden_size=32, num_labels=5",
    ),
    _hugging(
        "YOLOS",
        "YolosConfig",
        "YolosForObjectDetection",
        (1, 3, 64, 64),
        f"{TINY}, image_size=[64, 64], num_detection_tokens=10",
    ),
    _hugging(
        "HiFi-GAN",
        "SpeechT5HifiGanConfig",
        "SpeechT5HifiGan",
        (1, 24, 20),
        "model_in_dim=20, upsample_initial_channel=32, "
        "upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3, 7], "
        "resblock_dilation_sizes=[[1, 3], [1, 3]]",
    ),
    _hugging(
        "AST",
        "ASTConfig",
        "ASTForAudioClassification",
        (1, 64, 32),
        f"{TINY}, max_length=64, num_mel_bins=32, num_labels=5",
    ),
    _hugging(
        "GLPN depth",
        "GLPNConfig",
        "GLPNForDepthEstimation",
        (1, 3, 64, 64),
        "depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], decoder_hidden_size=16, num_attention_heads=[1, 2, 4, 8]",
    ),
    _hugging(
        "Swin2SR",
        "Swin2SRConfig",
        "Swin2SRForImageSuperResolution",
        (1, 3, 16, 16),
        "image_size=16, embed_dim=24, depths=[2], num_heads=[2], window_size=8, upscale=2",
    ),
    _hugging(
        "ConvNeXt V2",
        "ConvNextV2Config",
        "ConvNextV2ForImageClassification",
        (1, 3, 64, 64),
        "hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=5",
    ),
)
