"""Calls between machines: gRPC's two ends, its errors in our words, and files in parts."""
