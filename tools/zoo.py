"""Networks that nobody here wrote, taken as they are, through every verb: what became of each, as a table.

    python tools/zoo.py [--only mixnet_s,nin_cifar10] [--work FOLDER] [--json FILE]

Packages are installed at pinned versions into the work folder, never beside edgeq; nothing of them is kept. Weights are the
packages' own random ones, with BatchNorm statistics from a few batches, and the data is noise: the table says whether a network
goes in and comes out as the same integers, not how well it classifies. A verb ends in `ok`, in a sentence (exit code 1 or 2,
counted as an answer), or in a fault (a traceback, a signal, exit code 3, no end within the time), which makes this exit with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeq.pages.words import tied

RUNTIMES: Final = ("litert", "executorch", "coreml", "tvm")
NOISE: Final = 1e-3  # of a step: what float kernels of several operators may differ by
LIMIT: Final = 900  # seconds for one verb


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

TASK: Final = '''"""{name} of {package}, as it is."""
import torch


def model():
    torch.manual_seed(0)
    {make}
    net.train()
    with torch.no_grad():
        for batch in calibration()[:2]:
            net(*(torch.cat((x, x.flip(-1))) for x in batch))
    return net.eval()


def noise(shape, generator):
    tokens = {tokens}
    if tokens:
        return torch.randint(tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def example_inputs():
    return tuple(torch.zeros_like(x) for x in calibration()[0])


def calibration():
    generator = torch.Generator().manual_seed(1)
    return [tuple(noise(shape, generator) for shape in {inputs}) for _ in range(4)]
'''


def main() -> int:
    """Run the zoo; returns how it ended, as an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="names, with commas between; default: all")
    parser.add_argument("--to", default=",".join(RUNTIMES), help="runtimes, with commas between")
    parser.add_argument(
        "--profile", action="store_true", help="also time each network on one runtime, beside its float twin"
    )
    parser.add_argument("--work", type=Path, help="folder for packages and models; default: a temporary one")
    parser.add_argument(
        "--json", type=Path, help="also write the rows to this file; rows that are there are not run again"
    )
    parser.add_argument(
        "--page", type=Path, help="write what --json holds into this page, whose other rows stay, and run nothing"
    )
    options = parser.parse_args()
    if options.page:
        if not options.json:
            parser.error("--page is written from the rows of --json")
        older = options.page.read_text() if options.page.exists() else ""
        options.page.write_text(page(json.loads(options.json.read_text()), older))
        return 0
    chosen = options.only.split(",") if options.only else [e.name for e in ZOO]
    unknown = [name for name in chosen if name not in {e.name for e in ZOO}]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}: choose from {', '.join(e.name for e in ZOO)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        entries = {entry.name: entry for entry in ZOO}
        for entry in map(entries.__getitem__, chosen):
            if entry.name not in known:
                known[entry.name] = passed(entry, work, options.to.split(","), profile=options.profile)
                print(row(entry, known[entry.name]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(known, indent=1))
    return int(any(fault(v) for name in chosen for v in known[name].values()))


def passed(entry: Entry, work: Path, runtimes: list[str], *, profile: bool) -> dict[str, str]:
    """Every verb of `entry`, in order: verb → `ok …`, a sentence, or `FAULT …`."""
    site, folder = work / "site", work / entry.name.replace(" ", "_")
    site.mkdir(parents=True, exist_ok=True)
    missing = [
        p for p in entry.package.split() if not (site / f"{p.replace('-', '_').replace('==', '-')}.dist-info").exists()
    ]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(site), *missing], check=True, stderr=subprocess.DEVNULL)
    folder.mkdir(exist_ok=True)
    task, out = folder / "task.py", folder / "out"
    task.write_text(
        TASK.format(**{key: getattr(entry, key) for key in ("name", "package", "make", "inputs", "tokens")})
    )
    found = verb(site, "quantize", str(task), "-o", str(out))
    if fault(found["quantize"]) or not found["quantize"].startswith("ok"):
        return found
    found |= verb(site, "export", str(out), "--to", *runtimes)
    exported = [r for r in runtimes if found.get(f"export {r}", "").startswith("ok")]
    if exported:
        found |= verb(site, "verify", str(out), "--to", *exported, "--batches", "1")
    for runtime in [r for r in exported if found.get(f"verify {r}", "").startswith("WRONG")]:
        found |= verb(site, "verify", str(out), "--to", runtime, "--batches", "1", "--layers")
    timed = [r for r in exported if r != "coreml"]  # off macOS there is nothing of Core ML to time
    if profile and timed:  # one of them, another for each network: the float twin has to be exported too
        runtime = timed[ZOO.index(entry) % len(timed)]
        found |= verb(site, "profile", str(out), "--to", runtime, "--runs", "3", "--warmup", "1")
    return found | verb(site, "report", str(out))


def verb(site: Path, *words: str) -> dict[str, str]:
    """Run `edgeq` with `words`: verb (and runtime) → `ok` and its numbers, a sentence, `WRONG` numbers, or `FAULT` and why."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "YOLO_CONFIG_DIR": str(site)}
    command = [sys.executable, "-m", "edgeq.cli", *_repeated(words), "--json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {words[0]: f"FAULT no end within {LIMIT} s"}
    last = done.stderr.strip().splitlines()[-1:] or [""]
    if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
        return {words[0]: f"FAULT exit code {done.returncode}: {last[0][:400]}"}
    rows = json.loads(done.stdout).get("backends", {}) if done.stdout.startswith("{") else {}
    if rows:
        return {f"{words[0]} {runtime}": _judged(words[0], row) for runtime, row in rows.items()}
    said = [line for line in done.stderr.splitlines() if line.startswith("edgeq:")]
    if done.returncode:
        return {words[0]: (said or last)[-1][:400]}
    warned = dict.fromkeys(line.partition("warning: ")[2] for line in said if line.startswith("edgeq: warning: "))
    return {words[0]: "; ".join(("ok", *warned))}


def _repeated(words: tuple[str, ...]) -> list[str]:
    """`--to a b` as the command line takes it: `--to a --to b`."""
    made: list[str] = []
    for word in words:
        made += ["--to", word] if word in RUNTIMES and made[-2] == "--to" else [word]
    return made


def _judged(verb: str, row: dict[str, Any]) -> str:
    """One runtime's row of a verb's JSON in words."""
    if "error" in row:
        return ("FAULT " if row.get("fault") else "") + row["error"][:400]
    if verb != "verify":
        return "ok"
    numbers = f"{row['max_lsb']:.3g} LSB, {row['exact_share']:.1%} equal, {row['sqnr_db']:.0f} dB"
    claimed = row["integer_ops"] > 0  # what is only eligible for integers is claimed to be near, not equal
    if not claimed or row["max_lsb"] < 0.5:
        return f"ok {numbers}"
    parting = row.get("first_parting") or {}
    if parting.get("tie") is None:
        return f"WRONG {numbers}" + (f", first at {parting['layer']}" if parting else "")
    return f"{'ok' if parting['tie'] < NOISE else 'WRONG'} {numbers}: at {parting['layer']}, {tied(parting['tie'])}"


def fault(answer: str) -> bool:
    """Whether a verb neither did its work rightly nor said in a sentence why not."""
    return answer.startswith(("FAULT", "WRONG"))


PAGE: Final = """# Networks that nobody here wrote

What became of public networks, taken as they are, from `quantize` to `report`. Written by

    python tools/zoo.py --json zoo.json && python tools/zoo.py --json zoo.json --page docs/networks.md

Packages are pinned and installed beside edgeq, nothing of them is kept; weights are the packages' random ones, the data is noise,
so dB says how near the integers are to that network, and nothing about accuracy. LSB: against the runtime's own simulation, on a
calibration batch. Core ML claims no exact integers (its device decides), and its file is computed in float32 here, where values
beyond float16 stay finite. Every verb that is not named ended well.
[Results](results.md#public-networks) say what the runs found, what was mended since and which were cut off.

| network | package | licence | what happened |
|---|---|---|---|
"""


def page(known: dict[str, dict[str, str]], older: str = "") -> str:
    """The rows that there are as a page of Markdown; those of an `older` page stay where `known` has no newer one."""
    kept = {line[2:].partition(" | ")[0]: line for line in older.splitlines() if line.startswith("| ")}
    rows = {e.name: row(e, known[e.name]) if e.name in known else kept.get(e.name, "") for e in ZOO}
    table = [line for line in rows.values() if line]
    wrong = sum(": FAULT " in line or ": WRONG " in line for line in table)
    run = f"{len(table)} of the {len(ZOO)} networks listed have been run, {wrong} with a fault."
    return PAGE + "\n".join([*table, "", run, ""])


def row(entry: Entry, found: dict[str, str]) -> str:
    """The network's row of a Markdown table; of a file in the work folder only what lies below it."""
    cells = "; ".join(f"{verb}: {answer}" for verb, answer in found.items() if answer != "ok").replace("|", "\\|")
    cells = re.sub(r"/\S*/(?:site(?:-packages)?|out)/", "", cells)
    cells = re.sub(r"/\S*/out\b", "out", cells)
    return f"| {entry.name} | {entry.package} | {entry.licence} | {cells or 'ok'} |"


if __name__ == "__main__":
    sys.exit(main())
