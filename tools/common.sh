# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts of this directory share: a Python, the packages of the system,
# and a virtual environment in .venv. To be sourced; every step can be run again.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${NOVA_PRECACHE_VENV:-$ROOT/.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1

# setup PROFILE: have everything that a script needs installed, with .venv/bin first
# in PATH. A profile is one of quickstart, deploy, beside, test and lint.
setup() {
    local profile=$1
    # Two scripts at once: the second waits. Nothing started later inherits the lock.
    exec 9>"$VENV.lock"
    flock 9
    make_venv
    install_system_packages "$profile"
    install_requirements "$profile"
    exec 9>&-
    export PATH="$VENV/bin:$PATH"
}

make_venv() {
    if [[ -x $VENV/bin/python ]] && is_usable "$VENV/bin/python"; then
        return
    fi
    local python
    if ! python=$(find_python); then
        install_packages python3 python3-venv
        python=$(find_python) || fail 'The Python of this system is older than 3.11.'
    fi
    # tox may have left a file of this name, which points to an environment of its own.
    if [[ -f $VENV ]]; then
        rm "$VENV"
    fi
    say "Making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

find_python() {
    local name
    for name in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && is_usable "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# A Python that is new enough and can make virtual environments.
is_usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

install_system_packages() {
    local profile=$1 missing
    if [[ ! -x $VENV/bin/bindep ]]; then
        "$VENV/bin/pip" install --quiet 'bindep>=2.14'
    fi
    # It ends with 1 when packages are missing, and prints them.
    missing=$("$VENV/bin/bindep" --brief --file "$ROOT/bindep.txt" "$profile") || true
    if [[ -n $missing ]]; then
        # shellcheck disable=SC2086  # one word a package
        install_packages $missing
    fi
}

install_packages() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        fail "Packages are missing. Please run: sudo apt-get install --no-install-recommends $*"
    fi
    say "Installing $*"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@" >/dev/null
}

# Install what the profile needs, unless it was installed from these very files.
install_requirements() {
    local profile=$1 stamp current
    local -a what
    case $profile in
        quickstart) what=(--editable '.[osc]') ;;
        deploy | beside) what=(--editable '.[osc,mysql]' 'gunicorn>=27.0.0') ;;
        test) what=(--editable '.[osc,mysql,postgresql]' --requirement test-requirements.txt) ;;
        lint) what=(--editable '.[osc]' --requirement lint-requirements.txt) ;;
        *) fail "No such profile: $profile" ;;
    esac
    stamp=$VENV/installed-$profile
    current=$(cd "$ROOT" && cat setup.cfg setup.py pyproject.toml ./*requirements.txt | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$current" ]]; then
        return
    fi
    say "Installing the Python packages of the profile $profile into $VENV"
    (cd "$ROOT" && "$VENV/bin/pip" install --quiet "${what[@]}")
    printf '%s\n' "$current" >"$stamp"
}

say() {
    printf '== %s\n' "$*" >&2
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}
