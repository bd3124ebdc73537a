#!/usr/bin/env bash
# Installs the Debian packages behind emulated and attached devices. Running it again installs only what is missing.
set -euo pipefail

declare -A why=(
    [qemu-user]="runs Arm and Hexagon programs on this host (emulated:cortex-a76, emulated:hexagon-v67)"
    [gcc]="compiles the emulator's plugin that counts instructions"
    [libc6-dev]="headers for that plugin"
    [gcc-aarch64-linux-gnu]="links TVM libraries for Arm"
    [g++-aarch64-linux-gnu]="compiles the C++ runners for Arm"
    [clang-16]="compiles the Hexagon runner"
    [lld-16]="links the Hexagon runner with a network's objects"
    [adb]="reaches Android phones (adb:SERIAL)"
    [openssh-client]="reaches Linux boards (ssh:USER@HOST)"
    [llvm-16]="the tests of TVM's code read what it compiled"
    [openssh-server]="the tests of ssh devices start a server of their own on loopback"
)
order=(qemu-user gcc libc6-dev gcc-aarch64-linux-gnu g++-aarch64-linux-gnu clang-16 lld-16 adb openssh-client)
case "${1:-}" in
    "") ;;
    --tests) order+=(llvm-16 openssh-server) ;; # apart: where systemd runs, Debian starts its service
    *)
        echo "usage: $0 [--tests]   (--tests: also what device_tests/ need)" >&2
        exit 1
        ;;
esac

if ! command -v apt-get > /dev/null; then
    echo "device_setup: this system has no apt-get; install what corresponds to these Debian 12 packages:" \
        "${order[*]}" >&2
    exit 1
fi

missing=()
for name in "${order[@]}"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null || true)" != installed ]; then
        missing+=("$name")
        echo "installing $name: ${why[$name]}"
    fi
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "all ${#order[@]} packages are installed"
    exit 0
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo > /dev/null; then
        echo "device_setup: needs root or sudo to install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
