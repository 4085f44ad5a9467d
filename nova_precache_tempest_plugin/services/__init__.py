# SPDX-License-Identifier: Apache-2.0
"""Clients of the two APIs, for what tempest has none of its own."""
