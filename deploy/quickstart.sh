#!/usr/bin/env bash
# Builds dfs, starts a cluster of real processes on this machine (3 metaservers, 3 chunkservers, on loopback), mounts
# it, stores a sample and reads it back. Run it again to start what is down; the data stay.
#
#   deploy/quickstart.sh [DIR]       DIR holds the cluster; default: ~/dfs-quickstart
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
dir=${1:-$HOME/dfs-quickstart}

"$here/install-deps.sh"
# shellcheck disable=SC1091
[[ -f "$HOME/.cargo/env" ]] && . "$HOME/.cargo/env"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dfs/target}

echo "building (the first time compiles RocksDB: 15 to 20 minutes on 2 cores)"
(cd "$top" && cargo build --bins)
dfs=$CARGO_TARGET_DIR/debug/dfs

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
mnt=$dir/mnt
mkdir -p "$mnt" 2>/dev/null || true # a dead mount point answers "not connected"; `dev up` mends that
if [[ ! -w /dev/fuse ]]; then
    echo "no /dev/fuse here: the cluster runs without a mount, the dfs commands work"
    "$dfs" dev up --dir "$dir"
    mnt=
else
    "$dfs" dev up --dir "$dir" --mount "$mnt"
fi
export DFS_CONFIG=$dir/dfs.toml

sample=$(mktemp -d)
trap 'rm -rf "$sample"' EXIT
cp "$top/README.md" "$sample/readme"
head -c 16777216 /dev/urandom > "$sample/random"
"$dfs" rm -r /sample 2>/dev/null || true
if [[ -n "$mnt" ]]; then
    echo "in through the mount, back out with dfs get"
    cp -r "$sample" "$mnt/sample"
    sync -f "$mnt/sample/random"
else
    echo "in with dfs put, back out with dfs get"
    "$dfs" put -r "$sample" /sample
fi
"$dfs" get -r /sample "$sample.back"
trap 'rm -rf "$sample" "$sample.back"' EXIT
diff -r "$sample" "$sample.back"
echo "what came back is what went in:"
"$dfs" ls /sample
"$dfs" admin status

cat <<TEXT

The cluster runs. Its data, logs and configs are in $dir. To try next:

  export PATH=$CARGO_TARGET_DIR/debug:\$PATH DFS_CONFIG=$dir/dfs.toml
  dfs put -r /usr/include /include && dfs du /include
${mnt:+  ls -l $mnt/sample
}  dfs dev kill --dir $dir meta-1     # kill -9 one server, go on working,
  dfs dev start --dir $dir meta-1    # and bring it back
  dfs dev status --dir $dir

To stop it:               dfs dev down --dir $dir
To remove it afterwards:  rm -rf $dir
TEXT
