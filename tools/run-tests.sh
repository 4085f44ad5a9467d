#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all tests but the slow ones: unit, contract, functional and integration, and those of the
# API and the conductor once more under eventlet. Sets up what they need. With arguments, such as
# "-k quota" or "tests/unit", these go to pytest, and nothing runs twice.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
if [[ $# -gt 0 ]]; then
    exec pytest "$@"
fi

failed=0
say 'Three runs at once, most of which wait; what the other two print comes later'
beside unit pytest tests/unit
beside integration pytest -m 'not slow' tests/integration
pytest tests/contract tests/functional || failed=1
say 'Once more, under eventlet'
python -m tests.under_eventlet || failed=1
for name in unit integration; do
    collect "$name" || failed=1
done
exit $failed
