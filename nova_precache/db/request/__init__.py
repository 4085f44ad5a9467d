# SPDX-License-Identifier: Apache-2.0
"""The life of a request: created, planned, steered, gated, rolled out, completed, queried."""
