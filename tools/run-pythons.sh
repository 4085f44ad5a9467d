#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the unit tests, and those under eventlet, with the newest tested Python of this machine that
# is not that of .venv, with which tools/run-tests.sh runs all tests. It has an environment of its
# own, such as .venv-3.13. Arguments, such as "3.12 3.13", select versions.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$ROOT"
failed=0
here=()
versions=("$@")
if [[ $# == 0 ]]; then
    mapfile -t versions < <(printf '%s\n' "${PYTHONS[@]}" | tac)
fi
for version in "${versions[@]}"; do
    if [[ $# == 0 && ${#here[@]} -gt 0 ]]; then
        say "Python $version: run it with tools/run-pythons.sh $version"
    elif [[ $# == 0 ]] && is_usable "$VENV/bin/python" "$version"; then
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

for version in "${here[@]}"; do
    path=$ROOT/.venv-$version/bin:$PATH
    beside "unit-$version" env "PATH=$path" pytest tests/unit
    beside "eventlet-$version" env "PATH=$path" python -m tests.under_eventlet
    collect "unit-$version" || failed=1
    collect "eventlet-$version" || failed=1
done
exit $failed
