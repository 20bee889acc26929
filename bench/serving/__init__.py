"""What serving costs: the chain in a process of its own, the ways to a server, and what times of both say."""
