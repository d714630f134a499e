"""Pictures, mesh files and rigged files of bodies."""

from agebody.draw.html_files import save_html
from agebody.draw.live import LiveView
from agebody.draw.mesh_files import save_mesh
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import Picture, contact_sheet, lineup, render
from agebody.draw.rigged_files import save_rigged

__all__ = [
    "PALETTE",
    "LiveView",
    "Picture",
    "contact_sheet",
    "lineup",
    "render",
    "save_html",
    "save_mesh",
    "save_rigged",
]
