"""The built-in body, generated procedurally: no file, no download, no licence to accept."""

from agebody.assets.mannequin.body import mannequin as mannequin
