#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A stock Nova on this machine, under Keystone, with Glance, RabbitMQ and MariaDB, and the
# service added to it without agents and with them, then taken down. Sets up what that
# needs, then hands over to beside_nova.py ("--help" tells more). With --boot, guests are booted.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Other projects' deprecations say nothing to somebody who looks for the first time.
export PYTHONWARNINGS=ignore
setup beside
if [[ " $* " == *' --boot '* ]]; then
    install_system_packages boot
fi
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing Keystone, Glance and Nova, which takes some minutes the first time'
    python -m tools.beside_nova --build "$@"
fi
exec python -m tools.beside_nova "$@"
