#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests that are too slow for tools/run-tests.sh: guests of a stock Nova, which are skipped
# without root, tempest, and a whole deployment. Arguments go to pytest.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
if [[ $(id -u) == 0 ]]; then
    install_system_packages boot
fi
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
if [[ $# == 0 ]]; then
    set -- -m slow tests/slow tests/integration
fi
exec pytest "$@"
