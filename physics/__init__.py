"""What counts as found: matching of tracks to particles, efficiency, fakes, duplicates, plots."""
