"""Training of the three networks: losses, loops, checkpoints, weights."""
