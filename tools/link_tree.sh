#!/usr/bin/env bash
# build/tree/edgeq: the package as it is installed, made of links, for tools that do not know setuptools' package-dir.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/tree
mkdir -p build/tree/edgeq
for entry in edgeq/*; do
    case "$entry" in */__pycache__) ;; *) ln -s "../../../$entry" "build/tree/$entry" ;; esac
done
ln -s ../../../calib build/tree/edgeq/calib
ln -s ../../../backends build/tree/edgeq/backends
ln -s ../../../examples build/tree/edgeq/examples
ln -s ../../../tools/runners build/tree/edgeq/runners
