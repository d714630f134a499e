"""Triangles that meet: which of a mesh or of two, by torch or Warp."""
