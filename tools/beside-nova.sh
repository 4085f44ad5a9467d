#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Start a stock Nova on this machine, with Keystone, Glance, RabbitMQ and MariaDB, add the
# service without agents and with them, then stop all processes. Installs the requirements, then
# runs beside_nova.py (see --help). With --boot, guests are booted.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Without the deprecation warnings of other projects.
export PYTHONWARNINGS=ignore
setup beside
if [[ " $* " == *' --boot '* ]]; then
    install_system_packages boot
fi
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing Keystone, Glance and Nova, which takes several minutes the first time'
    python -m tools.beside_nova --build "$@"
fi
exec python -m tools.beside_nova "$@"
