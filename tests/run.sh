#!/usr/bin/env bash
# Passes every test: unit, property and simulation tests of each crate, and tests against real processes and mounts.
#
#   tests/run.sh            sizes for a small machine, as in CI
#   tests/run.sh --full     the long sizes too (1 GiB files, 1,000,000 operations of fsx, ten minutes of stress-ng)
#   tests/run.sh FILTER     only tests whose name holds FILTER
#
# What a machine cannot run (no /dev/fuse, not root) is skipped by name, listed at the end. DFS_TEST_NO_SKIP=1: such a
# run fails.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
if [[ "${1:-}" == --full ]]; then
    export DFS_TEST_FULL=1
    shift
fi

deploy/install-deps.sh --tests
# shellcheck disable=SC1091
[[ -f "$HOME/.cargo/env" ]] && . "$HOME/.cargo/env"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dfs/target}
skipped=$(mktemp)
trap 'rm -f "$skipped"' EXIT
export DFS_TEST_SKIPPED=$skipped # tests/src/skip.rs adds a line for each test that cannot run here

# The tests start the programs, so these are built first, and by themselves: no test builds.
cargo build --workspace --bins

status=0
if cargo nextest --version >/dev/null 2>&1; then
    profile=default
    [[ -z "${DFS_TEST_FULL:-}" ]] || profile=full
    cargo nextest run --workspace --profile "$profile" "$@" || status=$?
else
    # One at a time for the tests that start clusters: they measure stalls, and the machine may have two cores.
    cargo test --workspace --exclude tests --lib --bins --tests --no-fail-fast -- "$@" || status=$?
    cargo test --package tests --no-fail-fast -- --test-threads=1 "$@" || status=$?
fi
# nextest does not run the examples in doc comments.
if (($# == 0)); then
    cargo test --workspace --doc --quiet || status=$?
fi

if [[ -s "$skipped" ]]; then
    echo "skipped, because this machine cannot run them:"
    sort -u "$skipped" | sed 's/^/  /'
    if [[ -n "${DFS_TEST_NO_SKIP:-}" ]]; then
        echo "tests/run.sh: skipped tests count as failed here (DFS_TEST_NO_SKIP)" >&2
        ((status != 0)) || status=1
    fi
else
    echo "skipped: none"
fi
exit "$status"
