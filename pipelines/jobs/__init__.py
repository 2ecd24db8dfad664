"""Shared parts of the verbs: command line, run ledger, reading, registration, and console."""
