# SPDX-License-Identifier: Apache-2.0
"""The image cache of one compute: a directory of whole, verified base files."""
