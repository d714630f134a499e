"""Folders that can be shared: bodies in place of the people of photographs."""

from agebody.pipelines.release.from_labels import photos_from_labels
from agebody.pipelines.release.photos import Person, Photo
from agebody.pipelines.release.write import write_release

__all__ = ["Person", "Photo", "photos_from_labels", "write_release"]
