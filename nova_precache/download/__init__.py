# SPDX-License-Identifier: Apache-2.0
"""Bytes from a source to a verified file."""
