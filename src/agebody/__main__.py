"""``python -m agebody``."""

from agebody.pipelines.cli import main

main()
