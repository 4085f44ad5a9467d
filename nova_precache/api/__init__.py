# SPDX-License-Identifier: Apache-2.0
"""The two HTTP APIs: /v2.1 as Nova serves it, and /v1 with the operations that Nova lacks."""
