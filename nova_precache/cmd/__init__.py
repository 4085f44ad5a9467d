# SPDX-License-Identifier: Apache-2.0
"""The commands: each reads its options, builds its parts and runs them."""
