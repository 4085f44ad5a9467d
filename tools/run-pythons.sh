#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the unit tests, and those under eventlet, with each tested Python of this machine except
# that of .venv, with which tools/run-tests.sh runs all tests. Each has an environment of its own,
# such as .venv-3.12. Arguments, such as "3.13", select versions.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$ROOT"
failed=0
here=()
for version in "${@:-${PYTHONS[@]}}"; do
    if [[ $# == 0 ]] && is_usable "$VENV/bin/python" "$version"; then
        say "Python $version: that of $VENV, which runs all tests"
    elif python=$(find_version "$version"); then
        say "Python $version: $python"
        here+=("$version")
    else
        say "Python $version: not installed"
        [[ $# == 0 ]] || failed=1
    fi
done

for version in "${here[@]}"; do
    NOVA_PRECACHE_PYTHON=$version NOVA_PRECACHE_VENV='' \
        bash -c 'source tools/common.sh && setup test'
done

# run NAME COMMAND...: run a command with all of these versions in parallel.
run() {
    local name=$1 version
    shift
    for version in "${here[@]}"; do
        beside "$name-$version" env "PATH=$ROOT/.venv-$version/bin:$PATH" "$@"
    done
    for version in "${here[@]}"; do
        collect "$name-$version" || failed=1
    done
}

run unit pytest tests/unit
run eventlet python -m tests.under_eventlet
exit $failed
