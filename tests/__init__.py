# SPDX-License-Identifier: Apache-2.0
"""The tests: unit mirrors the package; contract, functional and integration use real servers."""
