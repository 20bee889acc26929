"""How long a measurement waits for a server."""

TIMEOUT = 600.0
"""Seconds that a start or a request may take: one on a busy machine ends all the same, and no tail is cut off."""
