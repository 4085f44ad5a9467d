# SPDX-License-Identifier: Apache-2.0
"""The two HTTP doors: /v2.1 as Nova serves it, and /v1 with what Nova does not have."""
