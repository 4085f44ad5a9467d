# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Functions of the scripts in this directory: find a Python, install packages of the system, and
# make a virtual environment in .venv. To be sourced; all steps can be repeated.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The versions that setup.cfg names: these are tested.
PYTHONS=(3.11 3.12 3.13)
# One of them for this run, in an environment of its own; by default that of find_python.
PYTHON=${NOVA_PRECACHE_PYTHON:-}
VENV=${NOVA_PRECACHE_VENV:-$ROOT/.venv${PYTHON:+-$PYTHON}}
export PIP_DISABLE_PIP_VERSION_CHECK=1

# setup PROFILE: install the requirements of a script and put .venv/bin first in PATH. A profile
# is one of quickstart, deploy, beside, test and lint.
setup() {
    local profile=$1
    # A second script waits. No process started later inherits the lock.
    exec 9>"$VENV.lock"
    flock 9
    make_venv
    install_system_packages "$profile"
    install_requirements "$profile"
    exec 9>&-
    export PATH="$VENV/bin:$PATH"
}

make_venv() {
    if is_usable "$VENV/bin/python" ${PYTHON:+"$PYTHON"}; then
        return
    fi
    local python
    if [[ -n $PYTHON ]]; then
        python=$(find_version "$PYTHON") || fail "No Python $PYTHON was found (NOVA_PRECACHE_PYTHON)."
    elif ! python=$(find_python); then
        install_packages python3 python3-venv
        python=$(find_python) || fail 'The Python of this system is older than 3.11.'
    fi
    # A file of this name may be from tox.
    if [[ -f $VENV ]]; then
        rm "$VENV"
    fi
    say "Creating $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

# Print the path of a Python: the default one if it is tested, else the newest tested one, else
# a default one that is newer, with a warning.
find_python() {
    local name version
    for name in python3 /usr/bin/python3; do
        if is_usable "$name" "${PYTHONS[@]}"; then
            command -v "$name"
            return
        fi
    done
    for version in $(printf '%s\n' "${PYTHONS[@]}" | tac); do
        if find_version "$version"; then
            return
        fi
    done
    for name in python3 /usr/bin/python3; do
        if is_usable "$name"; then
            say "Untested with $("$name" --version); tested with Python ${PYTHONS[*]}"
            command -v "$name"
            return
        fi
    done
    return 1
}

# find_version 3.12: print the path of that Python. Each is run, since a name in PATH may be
# one of pyenv's, which fails unless that version is selected.
find_version() {
    local python versions=/nowhere
    if command -v pyenv >/dev/null; then
        versions=$(pyenv root)/versions
    fi
    for python in "python$1" "/usr/bin/python$1" "$versions/$1".*/bin/python"$1"; do
        if is_usable "$python" "$1"; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# is_usable PYTHON VERSION...: succeed if it is one of the versions, or new enough if none is
# given, and can make virtual environments.
is_usable() {
    "$1" - "${@:2}" <<'END' 2>/dev/null
import ensurepip, sys, venv

version = '.'.join(map(str, sys.version_info[:2]))
sys.exit(version not in sys.argv[1:] if sys.argv[1:] else sys.version_info < (3, 11))
END
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

# Install the packages of a profile, unless they were installed from the same files.
install_requirements() {
    local profile=$1 stamp current
    local -a what
    case $profile in
        quickstart) what=(--editable '.[server,osc]') ;;
        deploy | beside) what=(--editable '.[server,osc,mysql]' 'gunicorn>=27.0.0') ;;
        # With the tools of the lint run, by which a developer makes a change complete.
        test)
            what=(--editable '.[server,osc,mysql,postgresql]')
            what+=(--requirement test-requirements.txt --requirement lint-requirements.txt)
            ;;
        lint) what=(--editable '.[server,osc,postgresql]' --requirement lint-requirements.txt) ;;
        *) fail "No such profile: $profile" ;;
    esac
    stamp=$VENV/installed-$profile
    current=$(cd "$ROOT" && cat setup.cfg setup.py pyproject.toml ./*requirements.txt etc/nova-precache/constraints.txt | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$current" ]]; then
        return
    fi
    say "Installing the Python packages of the profile $profile into $VENV"
    (cd "$ROOT" && "$VENV/bin/pip" install --quiet --constraint etc/nova-precache/constraints.txt "${what[@]}")
    printf '%s\n' "$current" >"$stamp"
}

declare -A RUNNING=()
LOGS=

# beside NAME COMMAND...: run a command in the background; collect prints its output.
beside() {
    local name=$1
    shift
    if [[ -z $LOGS ]]; then
        LOGS=$(mktemp -d)
        trap end_all EXIT
    fi
    "$@" >"$LOGS/$name" 2>&1 &
    RUNNING[$name]=$!
}

# collect NAME: wait for a background command, print its output and return its status.
collect() {
    local status=0
    wait "${RUNNING[$1]}" || status=$?
    unset "RUNNING[$1]"
    say "The $1 tests"
    cat "$LOGS/$1"
    return $status
}

# Stop the background commands at the end of the script, and wait for their cleanup.
# shellcheck disable=SC2329  # the trap calls it
end_all() {
    kill "${RUNNING[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$LOGS"
}

say() {
    printf '== %s\n' "$*" >&2
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}
