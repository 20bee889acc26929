"""From engine files to a Triton model repository."""
