"""Infants, and others, in clouds of points: SMIL's energy in three steps (Hesse et al., MICCAI 2018)."""
