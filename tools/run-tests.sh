#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all tests: unit, contract, functional and integration, and those of the API and the
# conductor once more under eventlet. Sets up what they need. With arguments, such as
# "-k quota" or "tests/unit", these go to pytest, and nothing runs twice.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
if [[ $# -gt 0 ]]; then
    exec pytest "$@"
fi

# Whatever ends this script ends the unit tests, too, and waits until they have tidied up.
# shellcheck disable=SC2329  # the trap calls it
end_unit_tests() {
    kill "$unit_tests" 2>/dev/null || true
    wait "$unit_tests" || true
    rm -f "$log"
}

failed=0
log=$(mktemp)
say 'The unit tests run beside the others, most of which wait; what they print comes later'
pytest tests/unit >"$log" 2>&1 &
unit_tests=$!
trap end_unit_tests EXIT
pytest tests/contract tests/functional tests/integration || failed=1
wait "$unit_tests" || failed=1
say 'The unit tests'
cat "$log"
say 'Once more, under eventlet'
python -m tests.under_eventlet || failed=1
exit $failed
