# SPDX-License-Identifier: Apache-2.0
"""Tempest's tests of the service, for a cloud that runs it.

They are run from elsewhere, so nothing here imports the service: what its answers must be
is in the document that it serves itself.
"""
