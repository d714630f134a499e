"""Folders that can be shared: bodies in place of the people of photographs."""

from agebody.pipelines.release.backgrounds import Background
from agebody.pipelines.release.bodies import Shape
from agebody.pipelines.release.from_labels import photos_from_labels
from agebody.pipelines.release.options import ImageFormat, Unfitted
from agebody.pipelines.release.photos import Person, Photo, ReleaseError
from agebody.pipelines.release.regions import RegionRule
from agebody.pipelines.release.write import Release, write_release

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
