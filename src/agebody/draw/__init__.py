"""Pictures, mesh files and rigged files of bodies."""

from agebody.draw.html_files import save_html
from agebody.draw.live import LiveView
from agebody.draw.mesh_files import save_mesh
from agebody.draw.pictures import Picture, lineup, render
from agebody.draw.rigged_files import save_rigged

__all__ = ["LiveView", "Picture", "lineup", "render", "save_html", "save_mesh", "save_rigged"]
