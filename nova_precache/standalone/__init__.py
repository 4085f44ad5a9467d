# SPDX-License-Identifier: Apache-2.0
"""The service in one process with a real Glance, and the base of all servers in tools/servers."""
