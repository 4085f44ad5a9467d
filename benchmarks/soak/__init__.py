# SPDX-License-Identifier: Apache-2.0
"""Some minutes of random failures, after which the cache must be correct."""
