#!/bin/sh
# Writes the crates that are compiled into the binary, in CycloneDX's format: scripts/sbom.sh [TARGET [FILE]].
# Crates of build scripts, tests and other targets are left out. Installs cargo-cyclonedx if this version is missing.
set -eu
cd "$(dirname "$0")/.."
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
file=${2:-target/sbom/switchboard-$target.cdx.json}
version=0.5.9

case "$(cargo cyclonedx --version 2>/dev/null)" in
  *" $version") ;;
  *) cargo install --locked "cargo-cyclonedx@$version" ;;
esac
name=switchboard-sbom
trap 'rm -f "$name.json"' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --target "$target" --override-filename "$name"
install -D -m 0644 "$name.json" "$file"
echo "wrote $file"
