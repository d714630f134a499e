"""Bodies in the browser while Python runs, for notebooks and servers; viser serves the page."""

from __future__ import annotations

import importlib
import socket
import threading
from typing import Any, Literal

import numpy as np
import torch

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import read_count
from agebody.draw.meshes import PALETTE, read_color
from agebody.draw.rigged_files import direction_names
from agebody.parameters import BodyParameters
from agebody.people import POSES, pose

_REST = "rest pose"


class LiveView:
    """A page that shows a body with sliders for age, betas and pose, and people that you give it.

    The page is served until `stop` is called or Python ends. It gets posed surfaces alone, so bodies of any
    licence can be shown.

    Args:
        body: the layer.
        port: port of the server; the next free one if it is taken.
        host: who can see it: by default this machine alone, ``"0.0.0.0"`` for the whole network.

    Attributes:
        server: viser's server, for what else the page should show.
        sliders: viser's controls by name: ``age_offset``, the betas, and ``pose``.

    Raises:
        ImportError: viser is missing; install ``agebody[view]``.
    """

    def __init__(self, body: BodyModel, *, port: int = 8080, host: str = "127.0.0.1") -> None:
        expect_body(body)
        read_count("port", port, 65535)  # viser waits forever for another one, as for an unknown host
        try:
            socket.create_server((host, 0)).close()
        except OSError as error:
            raise ValueError(f"host: expected an address of this machine, got {host!r} ({error})") from None
        try:
            viser: Any = importlib.import_module("viser")
        except ImportError:
            raise ImportError(
                'a live view needs viser, which is not installed; pip install "agebody[view]"'
            ) from None
        self._body, self._people = body, []
        self._lock = threading.Lock()  # each control calls from a thread of its own
        names = set(body.asset.joint_names)
        poses = [name for name, angles in POSES.items() if names >= angles.keys()]
        self.server: Any = viser.ViserServer(host=host, port=port, label="agebody", verbose=False)
        self.server.initial_camera.position, self.server.initial_camera.look_at = (0.6, 1.3, 3.0), (0, 0.9, 0)
        gui, self.sliders = self.server.gui, {}
        if body.age_anchors:
            self.sliders["age_offset"] = gui.add_slider("age_offset", 0.0, 1.0, 0.01, 0.0)
        self._betas = direction_names(body)[: body.num_betas]
        for name in self._betas:
            self.sliders[name] = gui.add_slider(name, -3.0, 3.0, 0.1, 0.0)
        self.sliders["pose"] = gui.add_dropdown("pose", [_REST, *poses])
        for control in self.sliders.values():
            control.on_update(lambda _: self._pose())
        self._pose()

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def show(self, parameters: BodyParameters, *, up: Literal["+y", "-y"] = "+y") -> None:
        """Show people in place of the body of the sliders: those of labels, or of a fit, stage by stage.

        Args:
            parameters: parameters of any batch shape.
            up: "-y" for people in the axes of a camera, as fits to images and labels have them.
        """
        with torch.no_grad():
            vertices = self._body(parameters).vertices.reshape(-1, self._body.num_vertices, 3).cpu().numpy()
        with self._lock:
            self.server.scene.set_up_direction(up)
            self._draw("people", vertices)

    def stop(self) -> None:
        """End the server."""
        self.server.stop()

    def _pose(self) -> None:
        """Draw the body that the sliders ask for."""
        with self._lock:
            body, asked = self._body, {name: control.value for name, control in self.sliders.items()}
            given = BodyParameters.zeros(body)
            betas = [asked[name] for name in self._betas]
            given = given._replace(betas=given.betas.new_tensor(betas))
            if body.age_anchors:
                given = given._replace(age_offset=given.age_offset.new_tensor(asked["age_offset"]))
            if asked["pose"] != _REST:
                angles = given.body_pose.new_tensor(pose(asked["pose"], body.asset.joint_names))
                moved = given.body_pose.shape[-2]
                given = given._replace(global_orient=angles[0], body_pose=angles[1 : 1 + moved])
            with torch.no_grad():
                vertices = body(given).vertices.cpu().numpy()
            vertices[:, 1] -= vertices[:, 1].min()
            self.server.scene.set_up_direction("+y")
            self._draw("body", vertices[None])

    def _draw(self, kind: str, bodies: np.ndarray) -> None:
        """Replace what is shown; a mesh that stays keeps its node, and gets new vertices."""
        if self._people and (self._people[0].name, len(self._people)) == (f"/{kind}/0", bodies.shape[0]):
            for mesh, vertices in zip(self._people, bodies, strict=True):
                mesh.vertices = vertices
            return
        for mesh in self._people:
            mesh.remove()
        faces = self._body.faces.cpu().numpy()
        colors = [tuple(np.rint(255 * read_color("colors", color)).astype(int).tolist()) for color in PALETTE]
        add = self.server.scene.add_mesh_simple
        self._people = [
            add(f"/{kind}/{i}", vertices, faces, color=colors[i % len(colors)])
            for i, vertices in enumerate(bodies)
        ]
