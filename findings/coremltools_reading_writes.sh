#!/usr/bin/env bash
# Reading a Core ML package with coremltools writes its Manifest.json anew.
#
# Expected: coremltools.utils.load_spec(path) reads. A package whose manifest is spelled otherwise than coremltools would (Xcode's,
# or one without the last newline) keeps its bytes, and one in a folder that may not be written can be read.
# Guess before running: the first was met by chance, as a hash that no longer fitted, and nothing was guessed of it. The second:
# refused. Wrong: it is read, and only the rewriting fails, without a word.
# What happens: the manifest is written on every reading, so a file's bytes and date change though nobody changed it.
# Hurts: hashes, signatures and caches of packages; of two processes that read one package, one may meet a manifest half written.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile coremltools==9.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON' 2> log || { cat log; exit 1; }
import json
import os
import pathlib
import shutil

import coremltools as ct
from coremltools.converters.mil import Builder as mb

print("coremltools", ct.__version__)


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))])
def program(x):
    return mb.relu(x=x, name="y")


ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save("a.mlpackage")
manifest = pathlib.Path("a.mlpackage/Manifest.json")
plain = json.dumps(json.loads(manifest.read_text()))
manifest.write_text(plain)
os.utime(manifest, (0, 0))
ct.utils.load_spec("a.mlpackage")
print("bytes before and after reading:", len(plain), len(manifest.read_text()), "date:", manifest.stat().st_mtime > 0)
again = manifest.read_text()
os.utime(manifest, (0, 0))
ct.utils.load_spec("a.mlpackage")
print("the same bytes, written once more:", manifest.read_text() == again, manifest.stat().st_mtime > 0)
rewritten = again != plain and manifest.stat().st_mtime > 0

shutil.copytree("a.mlpackage", "b.mlpackage")
for path in [pathlib.Path("b.mlpackage"), *pathlib.Path("b.mlpackage").rglob("*")]:
    path.chmod(0o555 if path.is_dir() else 0o444)
os.chmod(".", 0o755)
if os.getuid() == 0:  # root may write anyway
    os.setuid(65534)
try:
    ct.utils.load_spec("b.mlpackage")
    print("where nothing may be written: read")
except Exception as error:
    print("where nothing may be written:", type(error).__name__, str(error).splitlines()[0])
assert rewritten, "the behaviour changed"
PYTHON
