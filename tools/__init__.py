# SPDX-License-Identifier: Apache-2.0
"""The Python parts of the commands in this directory, run as modules: python -m tools.NAME.

``servers`` has the real servers that tests, tools and benchmarks start.
"""
