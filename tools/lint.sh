#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all lint checks: format, style, types, the import map, shell, the commands in the
# documentation, release notes. All checks run; it fails if one failed.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Under tox, its environment has been set up already.
if [[ ${1:-} != --installed ]]; then
    setup lint
fi
cd "$ROOT"
failed=0

check() {
    say "$*"
    "$@" || failed=1
}

check ruff format --check .
check ruff check .
check mypy
check lint-imports --no-logo
check shellcheck tools/*.sh .ci/run
check python -m tools.documentation
check reno --quiet lint
exit $failed
