# SPDX-License-Identifier: Apache-2.0
"""The real servers that standalone and the tests start beside the service."""
