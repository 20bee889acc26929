"""A running tritonserver, and the client that talks to it."""
