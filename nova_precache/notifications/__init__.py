# SPDX-License-Identifier: Apache-2.0
"""Versioned notifications in the form of Nova's, so that its consumers read them."""
