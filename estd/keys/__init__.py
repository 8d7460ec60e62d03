"""Issuer keys: what a key can promise, and the software keys that estd seals at rest."""
