# SPDX-License-Identifier: Apache-2.0
"""Some minutes of everything that goes wrong, after which the cache must be right."""
