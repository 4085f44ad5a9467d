#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the unit tests, and those under eventlet, under every tested Python that this machine has
# beside that of .venv, under which tools/run-tests.sh runs all tests. Each has an environment
# of its own, such as .venv-3.12. With arguments, such as "3.13", under these versions alone.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$ROOT"
failed=0
here=()
for version in "${@:-${PYTHONS[@]}}"; do
    if [[ $# == 0 ]] && is_usable "$VENV/bin/python" "$version"; then
        say "Python $version: that of $VENV, under which all tests run"
    elif python=$(find_version "$version"); then
        say "Python $version: $python"
        here+=("$version")
    else
        say "Python $version: not on this machine"
        [[ $# == 0 ]] || failed=1
    fi
done

for version in "${here[@]}"; do
    NOVA_PRECACHE_PYTHON=$version NOVA_PRECACHE_VENV='' \
        bash -c 'source tools/common.sh && setup test'
done

# run NAME COMMAND...: run it under all of these versions at once.
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
