# SPDX-License-Identifier: Apache-2.0
"""The inventory: aggregates, cells and host mappings; liveness of hosts; transports."""
