#!/usr/bin/env bash
# MediaPipe's wheel holds its metadata writers, and they cannot be imported.
#
# Expected: from mediapipe.tasks.python.metadata.metadata_writers import image_classifier, as its guide to model metadata does, and
# a float model gets the normalisation without which ImageClassifier refuses it.
# Guess before running: none; it failed on the way to something else.
# What happens: ModuleNotFoundError: mediapipe.tasks.cc, a compiled module that the wheel leaves out. The schema beside it imports,
# and what is written with that is read.
# Hurts: whoever wants a model of their own in the Task library: no kept package writes what the library insists on
# (tflite-support's last release is of 2023, for Python 3.11 at most).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile mediapipe==1.2.3 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

from mediapipe.tasks.metadata import metadata_schema_py_generated

print("mediapipe", importlib.metadata.version("mediapipe"), "schema:", metadata_schema_py_generated.ModelMetadataT.__name__)
try:
    from mediapipe.tasks.python.metadata.metadata_writers import image_classifier
except ModuleNotFoundError as error:
    print("metadata_writers:", error)
    assert error.name == "mediapipe.tasks.cc", "the behaviour changed"
else:
    raise SystemExit(f"the behaviour changed: {image_classifier.__name__} imports")
PYTHON
