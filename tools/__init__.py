# SPDX-License-Identifier: Apache-2.0
"""The Python parts of the commands of this directory, run as modules: python -m tools.NAME."""
