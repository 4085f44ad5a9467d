#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all tests except the slow ones: unit, contract, functional and integration, and those of the
# API and the conductor again under eventlet. Installs the requirements. Arguments, such as
# "-k quota" or "tests/unit", go to a single run of pytest.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
if [[ $# -gt 0 ]]; then
    exec pytest "$@"
fi

failed=0
say 'Three runs in parallel; the output of two is printed at the end'
beside unit pytest tests/unit
beside integration pytest -m 'not slow' tests/integration
pytest tests/contract tests/functional || failed=1
say 'The tests under eventlet'
python -m tests.under_eventlet || failed=1
for name in unit integration; do
    collect "$name" || failed=1
done
exit $failed
