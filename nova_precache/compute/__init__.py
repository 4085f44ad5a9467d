# SPDX-License-Identifier: Apache-2.0
"""The compute manager: runs the driver when a conductor calls, and reports."""
