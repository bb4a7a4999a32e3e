"""Calls over gRPC: intake of bundles, catalog of releases."""
