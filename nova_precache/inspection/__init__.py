# SPDX-License-Identifier: Apache-2.0
"""Inspection of image files and their conversion to raw."""
