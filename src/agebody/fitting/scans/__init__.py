"""Bodies in clouds of points: SMIL's registration in three steps (Hesse et al., MICCAI 2018)."""
