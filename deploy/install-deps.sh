#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing to build, mount and test. Does nothing if none is.
#
#   deploy/install-deps.sh           to build and to mount
#   deploy/install-deps.sh --tests   also what the tests use to make faults, and other people's test suites
set -euo pipefail

# RocksDB: a C++ compiler, and libclang for its bindings. The mount: fusermount3.
packages=(build-essential pkg-config clang libclang-dev fuse3 ca-certificates)
if [[ "${1:-}" == --tests ]]; then
    # Full disks and power cuts on loop mounts, failing system calls, partitions, attributes and ACLs, mapped files.
    packages+=(util-linux e2fsprogs xfsprogs strace iproute2 nftables attr acl rsync python3 diffutils procps)
    # Suites for file systems: stress-ng, and what pjdfstest is built with.
    packages+=(stress-ng libacl1-dev)
    # Programs whose work on a mount is checked (Python brings SQLite).
    packages+=(git tar postgresql)
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [[ "$state" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]} > 0)); then
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || { echo "install-deps: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "installing: ${missing[*]}"
    # The variable must stand behind sudo, which clears the environment.
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

# shellcheck disable=SC1091
[[ -f "$HOME/.cargo/env" ]] && . "$HOME/.cargo/env"
command -v cargo >/dev/null || { echo "install-deps: no Rust toolchain; get one from https://rustup.rs" >&2; exit 1; }

# pjdfstest and fsx are crates: built once, outside the checkout, at these versions.
if [[ "${1:-}" == --tests ]]; then
    tools=${DFS_TEST_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/dfs/tools}
    for crate in pjdfstest@0.2.2 fsx@0.3.2; do
        name=${crate%@*}
        if [[ ! -x "$tools/bin/$name" || "$(cat "$tools/$name.version" 2>/dev/null)" != "$crate" ]]; then
            echo "installing: $crate into $tools"
            CARGO_TARGET_DIR="$tools/build" cargo install --quiet --locked --force --root "$tools" "$crate"
            echo "$crate" > "$tools/$name.version"
        fi
    done
    rm -rf "$tools/build"
fi
