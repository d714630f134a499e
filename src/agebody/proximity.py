"""Closest points on meshes: which triangle is nearest, by torch or Warp, and where on it."""
