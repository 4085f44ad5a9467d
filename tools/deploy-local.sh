#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Start a whole deployment on this machine, with Keystone, Glance, RabbitMQ and MariaDB, use it
# as its operator does, then stop it. Installs the requirements, then runs deploy_local.py (see
# --help).

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Without the deprecation warnings of other projects.
export PYTHONWARNINGS=ignore
setup deploy
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing Keystone and Glance, which takes several minutes the first time'
    python -m tools.deploy_local --build
fi
exec python -m tools.deploy_local "$@"
