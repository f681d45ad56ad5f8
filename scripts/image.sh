#!/usr/bin/env bash
# Builds deploy/Dockerfile as switchboard:VERSION, by docker or, without its daemon, by buildah:
#
#   scripts/image.sh [amd64|arm64]       for another architecture than this machine's the tag ends with it
#
# BASES=debian makes the base images first, under the names that the Dockerfile uses, of Debian's packages and rustup's
# toolchain: for machines that reach no image registry. It takes root, mmdebstrap, rustup and, for another
# architecture, qemu-user-static and arch-test. Such an image is for tests: its certificates are this machine's.
# BUILDAH_ISOLATION=chroot builds where no container can run.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "image: $*"; }
give_up() { echo "image: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

case $(uname -m) in x86_64) here=amd64 ;; aarch64) here=arm64 ;; *) give_up "no build for $(uname -m)" ;; esac
architecture=${1:-$here}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
tag=switchboard:$version
if [ "$architecture" != "$here" ]; then tag=$tag-$architecture; fi

# --- base images -----------------------------------------------------------------------------
debian=$(sed -n 's/^FROM \(debian:[^ ]*\) AS .*/\1/p' deploy/Dockerfile)
rust=$(sed -n 's/^FROM .*\(rust:[^ ]*\) AS .*/\1/p' deploy/Dockerfile)
if [ -z "$debian" ] || [ -z "$rust" ]; then give_up "deploy/Dockerfile names no base images"; fi
suite=${debian#debian:}
suite=${suite%%-*}
work=

clean_up() { if [ -n "$work" ]; then rm -rf "$work"; fi; }
trap clean_up EXIT

# A folder of a Debian, with packages beyond the least ones: debian_root FOLDER ARCHITECTURE [PACKAGES]
debian_root() {
    local mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
    mmdebstrap --quiet --variant=minbase --architectures="$2" ${3:+--include="$3"} --aptopt='Acquire::Languages "none"' \
        "$suite" "$1" "deb $mirror/debian $suite main" "deb $mirror/debian $suite-updates main" \
        "deb $mirror/debian-security $suite-security main"
}

# An image of a folder: import FOLDER NAME ARCHITECTURE [ENVIRONMENT...]
import() {
    local folder=$1 name=$2 arch=$3 container
    shift 3
    container=$(buildah from --arch "$arch" scratch)
    buildah add --quiet "$container" "$folder" / >/dev/null
    buildah config --arch "$arch" --cmd /bin/sh "${@/#/--env=}" "$container"
    buildah commit --quiet --rm "$container" "docker.io/library/$name" >/dev/null
    rm -rf "$folder"
}

# Whether an image is there for an architecture: one name has one architecture at a time in this store.
is_there() { [ "$(buildah inspect --type image --format '{{.OCIv1.Architecture}}' "docker.io/library/$1" 2>/dev/null)" = "$2" ]; }

make_bases() {
    have mmdebstrap || give_up "BASES=debian takes mmdebstrap: apt-get install mmdebstrap"
    have rustup || give_up "BASES=debian takes rustup"
    work=$(mktemp -d)
    if ! is_there "$debian" "$architecture"; then
        say "making $debian for $architecture"
        debian_root "$work/debian" "$architecture"
        import "$work/debian" "$debian" "$architecture"
    fi
    if ! is_there "$rust" "$here"; then
        local toolchain=${rust#rust:}
        toolchain=${toolchain%%-*}
        say "making $rust for $here"
        debian_root "$work/rust" "$here" ca-certificates,gcc,libc6-dev
        cp -L /etc/ssl/certs/ca-certificates.crt "$work/rust/etc/ssl/certs/ca-certificates.crt"
        install -D "$(command -v rustup)" "$work/rust/usr/local/cargo/bin/rustup"
        RUSTUP_HOME=$work/rust/usr/local/rustup rustup toolchain install "$toolchain" --profile minimal --no-self-update
        for program in cargo rustc; do ln -s rustup "$work/rust/usr/local/cargo/bin/$program"; done
        import "$work/rust" "$rust" "$here" RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo \
            PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    fi
    clean_up
    work=
}

# --- the image -------------------------------------------------------------------------------
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
options=(
    --file deploy/Dockerfile --tag "$tag" --platform "linux/$architecture"
    --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.revision=$revision"
)
if [ "${BASES:-}" != debian ] && docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then
    docker buildx build "${options[@]}" --load .
else
    have buildah || give_up "this takes docker, or buildah and podman: apt-get install buildah podman"
    if [ "${BASES:-}" = debian ]; then make_bases; fi
    # In docker's format, because OCI's has no health check. Older versions do not know the platform that they run on.
    buildah build --format docker --layers --network host --build-arg "BUILDPLATFORM=linux/$here" "${options[@]}" .
fi
say "built $tag for linux/$architecture"
