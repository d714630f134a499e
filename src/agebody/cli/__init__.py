"""The command line: thin, over functions that stand elsewhere."""

from agebody.cli import bodies, crowd, evaluate, fit, fit_shards, release  # noqa: F401 - each registers its commands
from agebody.cli.app import app, main

__all__ = ["app", "main"]
