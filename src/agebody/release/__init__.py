"""Folders that can be shared: bodies in place of the people of photographs."""

from agebody.release.backgrounds import Background
from agebody.release.bodies import Shape
from agebody.release.from_labels import photos_from_labels
from agebody.release.options import ImageFormat, Unfitted
from agebody.release.photos import Person, Photo, ReleaseError
from agebody.release.regions import RegionRule
from agebody.release.write import Release, write_release

__all__ = [
    "Background",
    "ImageFormat",
    "Person",
    "Photo",
    "RegionRule",
    "Release",
    "ReleaseError",
    "Shape",
    "Unfitted",
    "photos_from_labels",
    "write_release",
]
