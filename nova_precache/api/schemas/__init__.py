# SPDX-License-Identifier: Apache-2.0
"""What bodies and queries look like, as JSON schemas, one module a resource."""
