#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A whole deployment on this machine, with Keystone, Glance, RabbitMQ and MariaDB: brought
# up, used as its operator does, and taken down. Sets up what that needs, then hands over
# to deploy_local.py ("--help" tells more).

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Other projects' deprecations say nothing to somebody who looks for the first time.
export PYTHONWARNINGS=ignore
setup deploy
cd "$ROOT"
if [[ ${1:-} != --help ]]; then
    say 'Preparing Keystone and Glance, which takes some minutes the first time'
    python -m tools.deploy_local --build
fi
exec python -m tools.deploy_local "$@"
