"""Measurements: they write JSON; plots are a separate step."""
