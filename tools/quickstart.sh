#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Show the service at work: cache a real image on four compute hosts in two cells.
# Installs the requirements, then runs quickstart.py (see --help).

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Without the deprecation warnings of other projects.
export PYTHONWARNINGS=ignore
setup quickstart
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing the image service, which takes a minute the first time'
    python -m nova_precache.standalone.glance --build >/dev/null
fi
exec python -m tools.quickstart "$@"
