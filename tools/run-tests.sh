#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all tests: unit, contract, functional and integration. Sets up what they need;
# further arguments go to pytest, such as "-k quota" or "tests/unit".

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup test
cd "$ROOT"
# Built here, since it takes longer than a test may.
python -W ignore -m tests.environments
exec pytest "$@"
