"""``python -m agebody``."""

from agebody.pipelines.cli import main

if __name__ == "__main__":
    main()
