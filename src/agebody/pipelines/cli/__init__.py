"""The command line: options, progress and messages around functions of other packages."""

from agebody.pipelines.cli import bodies, crowd, detect, evaluate, fit, fit_shards, release  # noqa: F401 - each registers its commands
from agebody.pipelines.cli.app import app, main

__all__ = ["app", "main"]
