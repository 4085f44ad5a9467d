# SPDX-License-Identifier: Apache-2.0
"""What is in an image file: is it safe to open, and how does it become raw?"""
