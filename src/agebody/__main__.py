"""``python -m agebody``."""

from agebody.cli import main

main()
