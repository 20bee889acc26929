"""What goes in: events, their files and their simulation."""
