# SPDX-License-Identifier: Apache-2.0
"""The image service as this project needs it: metadata, access and bytes."""
