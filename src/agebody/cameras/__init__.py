"""Cameras: from points in the world to pixels, and between the conventions of the field."""
