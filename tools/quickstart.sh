#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# See it running: cache a real image on four compute hosts in two cells.
# Sets up what that needs, then hands over to quickstart.py ("--help" tells more).

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Other projects' deprecations say nothing to somebody who looks for the first time.
export PYTHONWARNINGS=ignore
setup quickstart
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing the image service, which takes a minute the first time'
    python -m nova_precache.standalone.glance --build >/dev/null
fi
exec python -m tools.quickstart "$@"
