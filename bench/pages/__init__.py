"""Pages of what was measured: HTML that holds its pictures in itself."""
