# SPDX-License-Identifier: Apache-2.0
"""The inventory: aggregates, cells, host mappings; who is alive; transports."""
