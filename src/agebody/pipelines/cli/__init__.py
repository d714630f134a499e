"""The command line: options, progress and messages around functions of other packages."""

from agebody.pipelines.cli import (  # noqa: F401 - each registers its commands
    bodies,
    crowd,
    detect,
    evaluate,
    fit,
    fit_shards,
    live,
    meshes,
    predict,
    release,
    synthesize,
    view,
)
from agebody.pipelines.cli.app import app as app
from agebody.pipelines.cli.app import main as main
