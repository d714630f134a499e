"""Synthetic training data: random people of every age in images, with exact labels."""

from agebody.pipelines.synthesis.recipe import Recipe
from agebody.pipelines.synthesis.shards import synthesize

__all__ = ["Recipe", "synthesize"]
