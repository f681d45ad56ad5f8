#!/bin/sh
# Builds the build that an upgrade begins with, once, and prints the path of its binary: the last release before this
# commit, or, as long as there is none, the pinned commit. It stays in target/upgrade/.
set -eu
cd "$(dirname "$0")/.."

PINNED=44d87eb392d12790187a489711b0bf9419ba14a1

release=$(git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null || echo "$PINNED")
commit=$(git rev-parse "$release^{commit}")
folder=$PWD/target/upgrade
binary=$folder/switchboard-$commit
if [ ! -x "$binary" ]; then
  rm -rf "$folder/source"
  mkdir -p "$folder/source"
  git archive "$commit" | tar -x -C "$folder/source"
  cargo build --locked --manifest-path "$folder/source/Cargo.toml" --target-dir "$folder/build" >&2
  cp "$folder/build/debug/switchboard" "$binary"
fi
echo "$binary"
