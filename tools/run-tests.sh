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
say 'Four runs in parallel; the output of three is printed at the end'
beside unit pytest tests/unit
# These two mostly wait, for processes that start, die and are missed.
beside deployment pytest -m 'deployment and not slow' tests/integration
beside integration pytest -m 'not deployment and not slow' tests/integration
pytest tests/contract tests/functional || failed=1
say 'The tests under eventlet'
python -m tests.under_eventlet || failed=1
for name in unit deployment integration; do
    collect "$name" || failed=1
done
exit $failed
