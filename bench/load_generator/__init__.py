"""The generator of load: when requests are due, their bytes, what is watched, and the figures."""
