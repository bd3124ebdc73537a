#!/usr/bin/env bash
# MediaPipe gives a uint8 input the image's bytes, whatever scale, zero point and normalisation the file states for it.
#
# Expected: of a model whose metadata says mean 127.5 and std 127.5, and whose uint8 input has scale 1/64 and zero point 128, a white
# image is 1.0, the integer 192: metadata_schema.fbs says that quantized models share the float model's normalisation and that
# "the image data should be further quantized according to the quantization parameters".
# Guess before running: 1.98, as the source sets the range of a uint8 tensor to 0 … 255. Right.
# What happens: the input is 255, read as 1.98, without a word. The float model's normalisation is obeyed.
# Hurts: whoever calibrates the input's range from data, or clips it: every pixel is off by a factor, and scores are merely worse.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile mediapipe==1.2.3 numpy==2.4.6 flatbuffers==25.12.19
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON' 2> log || { cat log; exit 1; }
import importlib.metadata

import flatbuffers
import mediapipe
import numpy as np
from mediapipe.tasks.metadata import metadata_schema_py_generated as meta
from mediapipe.tasks.metadata import schema_py_generated as tflite
from mediapipe.tasks.python import BaseOptions, vision

print("mediapipe", importlib.metadata.version("mediapipe"))


def packed(table, identifier):
    builder = flatbuffers.Builder(1024)
    builder.Finish(table.Pack(builder), identifier)
    return bytes(builder.Output())


def metadata():
    unit = meta.ProcessUnitT()
    unit.optionsType = meta.ProcessUnitOptions.NormalizationOptions
    unit.options = meta.NormalizationOptionsT()
    unit.options.mean, unit.options.std = [127.5], [127.5]
    image, scores, graph, model = meta.TensorMetadataT(), meta.TensorMetadataT(), meta.SubGraphMetadataT(), meta.ModelMetadataT()
    image.name, image.processUnits, scores.name = "image", [unit], "scores"
    image.content = meta.ContentT()
    image.content.contentPropertiesType = meta.ContentProperties.ImageProperties
    image.content.contentProperties = meta.ImagePropertiesT()
    image.content.contentProperties.colorSpace = meta.ColorSpaceType.RGB
    graph.inputTensorMetadata, graph.outputTensorMetadata = [image], [scores]
    model.subgraphMetadata, model.minParserVersion = [graph], "1.0.0"
    return packed(model, b"M001")


def network(dtype):
    """The mean of each colour of a 2 x 2 image."""

    def tensor(name, shape):
        made = tflite.TensorT()
        made.name, made.shape, made.type = name, shape, getattr(tflite.TensorType, dtype)
        made.quantization = tflite.QuantizationParametersT()
        if dtype == "UINT8":
            made.quantization.scale, made.quantization.zeroPoint = [1 / 64], [128]
        return made

    pool = tflite.OperatorT()
    pool.opcodeIndex, pool.inputs, pool.outputs = 0, [0], [1]
    pool.builtinOptionsType, pool.builtinOptions = tflite.BuiltinOptions.Pool2DOptions, tflite.Pool2DOptionsT()
    pool.builtinOptions.padding = tflite.Padding.VALID
    pool.builtinOptions.strideW = pool.builtinOptions.strideH = 2
    pool.builtinOptions.filterWidth = pool.builtinOptions.filterHeight = 2
    graph, code, model = tflite.SubGraphT(), tflite.OperatorCodeT(), tflite.ModelT()
    graph.tensors, graph.inputs, graph.outputs = [tensor("image", [1, 2, 2, 3]), tensor("scores", [1, 1, 1, 3])], [0], [1]
    graph.operators = [pool]
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.AVERAGE_POOL_2D
    code.version = 1
    kept, entry = tflite.BufferT(), tflite.MetadataT()
    kept.data, entry.name, entry.buffer = np.frombuffer(metadata(), np.uint8), "TFLITE_METADATA", 1
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, model.metadata = [tflite.BufferT(), kept], [entry]
    return packed(model, b"TFL3")


white = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.full((2, 2, 3), 255, np.uint8))
found = {}
for dtype in ("FLOAT32", "UINT8"):
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_buffer=network(dtype)))
    with vision.ImageClassifier.create_from_options(options) as classifier:
        found[dtype] = [c.score for c in classifier.classify(white).classifications[0].categories]
    print(dtype, "white is", found[dtype])
assert found["FLOAT32"] == [1.0] * 3
assert found["UINT8"] == [(255 - 128) / 64] * 3, "the behaviour changed"
PYTHON
