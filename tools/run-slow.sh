#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests that are too slow for tools/run-tests.sh: guests of a stock Nova, which are skipped
# without root, a whole deployment, and beside them tempest and the commands of the documentation.
# Arguments go to a single run of pytest.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
if [[ $(id -u) == 0 ]]; then
    install_system_packages boot
fi
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
if [[ $# -gt 0 ]]; then
    exec pytest "$@"
fi

failed=0
documentation=(tests/slow/test_documented_*.py tests/slow/test_guide.py)
documentation+=(tests/integration/test_tempest.py)
say 'Three runs in parallel; the output of two comes later'
beside documentation pytest -m slow "${documentation[@]}"
beside integration pytest -m slow tests/integration "${documentation[@]/#/--ignore=}"
pytest -m slow tests/slow "${documentation[@]/#/--ignore=}" || failed=1
for name in documentation integration; do
    collect "$name" || failed=1
done
exit $failed
