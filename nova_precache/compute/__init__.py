# SPDX-License-Identifier: Apache-2.0
"""The compute service: runs the driver when a conductor calls, and reports."""
