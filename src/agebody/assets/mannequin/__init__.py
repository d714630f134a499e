"""The built-in body, made from numbers alone: no file, no download, no licence to accept."""

from agebody.assets.mannequin.body import mannequin as mannequin
