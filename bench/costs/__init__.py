"""What an event costs: how it grows with the event's size, and the least that it could be on this machine."""
