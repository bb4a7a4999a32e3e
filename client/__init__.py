"""Beside the private data: the only home of examples and of contributors' keys.

Data enter through `client.data` and stay; what leaves goes through `client.bundle` and `client.submission`, which never
import what reads them. Floors, from the top: cli; daemon; job; bundle, submission, training; runs, workspace; data.
"""
