"""``python -m tritrack``: the command line."""

from tritrack.cli import main

main()
