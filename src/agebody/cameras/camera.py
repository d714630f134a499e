"""The camera: one tuple of tensors, from points in the world to pixels and back.

Conventions of the whole library:

- axes are OpenCV's and COLMAP's: x right, y down, z forward;
- the image spans [0, W] x [0, H] pixels, so the centre of the first pixel is (0.5, 0.5), as in COLMAP;
- extrinsics go from the world to the camera, on column vectors: p_camera = R p_world + t.

`agebody.cameras.conventions` converts from and to other conventions.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.cameras.distortion import distort, undistort
from agebody.checks import (
    broadcast,
    expand_to,
    expect,
    expect_choice,
    expect_dtype,
    expect_tensor,
    expect_values,
    floating,
    read_dtype,
    read_positive,
    to_number,
)
from agebody.engine.batched import is_recorded, own_precision, product

Axis = Literal["vertical", "horizontal", "diagonal"]
"""The axis along which a field of view is measured."""

Size = tuple[float, float] | Float[Tensor, "*sizes 2"] | Int[Tensor, "*sizes 2"]
"""Width and height of an image [pixels]."""

NEAR = 0.1
"""Distance [m] beyond which projection is perspective; see `Camera.project`."""


class Projection(NamedTuple):
    """Points in the image."""

    pixels: Float[Tensor, "*batch K 2"]
    """x and y [pixels], finite for every finite point."""
    depth: Float[Tensor, "*batch K"]
    """z in camera coordinates [m], negative behind the camera."""
    visible: Bool[Tensor, "*batch K"]
    """In front of the camera and, if a size was given, inside the image. Occlusion is not considered."""


class Camera(NamedTuple):
    """A perspective camera, or a batch of them.

    Batch dimensions of a camera broadcast with those of points: points are (*batch, K, 3), the camera's
    tensors (*batch, ...). Being a tuple, it passes through ``torch.func`` and ``torch.compile``.
    """

    focal: Float[Tensor, "*batch 2"]
    """fx and fy [pixels]."""
    center: Float[Tensor, "*batch 2"]
    """Principal point cx, cy [pixels]."""
    rotation: Float[Tensor, "*batch 3 3"] | None = None
    """World to camera; None is the identity."""
    translation: Float[Tensor, "*batch 3"] | None = None
    """World to camera [m]; None is zero."""
    distortion: Float[Tensor, "*batch k"] | None = None
    """(k1, k2, p1, p2[, k3[, k4, k5, k6]]) in OpenCV's order; None is no distortion. OpenCV's (1, k) is taken
    as (k), and its 12 or 14 coefficients if the last 4 or 6 are 0. The four of ``cv2.fisheye`` are of another
    lens."""

    @classmethod
    def from_matrix(
        cls,
        intrinsics: Float[Tensor, "*batch 3 3"],
        world_to_camera: Float[Tensor, "*poses n 4"] | None = None,
        *,
        distortion: Float[Tensor, "*lenses k"] | None = None,
    ) -> Camera:
        """Make a camera from K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels and [R | t].

        Values are checked, which waits for a GPU; in a loop, use the constructor.
        """
        k = expect("intrinsics", intrinsics, 3, 3)
        fx, fy = k[..., 0, 0], k[..., 1, 1]
        if not is_recorded():
            rest = k.detach().clone()
            rest[..., (0, 1, 0, 1), (0, 1, 2, 2)] = 0
            pinhole = rest.new_tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1]])
            finite = k.detach().isfinite().all()
            if not ((rest == pinhole).all() and finite and (fx > 0).all() and (fy > 0).all()):
                raise ValueError(
                    "intrinsics: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 and no skew, "
                    f"got {k.detach().cpu().tolist()}"
                )
        camera = cls(torch.stack((fx, fy), -1), k[..., :2, 2], distortion=distortion)
        if world_to_camera is None:
            return camera
        rotation, translation = split_rigid("world_to_camera", world_to_camera)
        if not is_recorded():
            r = rotation.detach()
            eye = torch.eye(3, dtype=r.dtype, device=r.device)
            with own_precision(r.device):
                squared = r @ r.mT
            if not (torch.allclose(squared, eye.expand_as(r), atol=1e-4) and (torch.det(r) > 0).all()):
                raise ValueError(
                    f"world_to_camera: expected a rotation in its first three columns, got {r.cpu().tolist()}"
                )
            if not (t := translation.detach()).isfinite().all():
                raise ValueError(f"world_to_camera: expected a finite last column, got {t.cpu().tolist()}")
        return camera._replace(rotation=rotation, translation=translation)

    @classmethod
    def from_fov(
        cls,
        fov: float | Float[Tensor, "*batch"],
        size: Size,
        *,
        axis: Axis = "vertical",
        dtype: torch.dtype | None = None,
    ) -> Camera:
        """Make a camera with square pixels and its principal point in the middle of the image.

        Args:
            fov: field of view [rad], between 0 and pi.
            size: width and height [pixels].
            axis: of the field of view: "vertical", "horizontal" or "diagonal".
            dtype: of the camera. None is that of ``fov``, or of ``size`` if ``fov`` is a number, or torch's
                default if both are numbers.
        """
        if isinstance(fov, Tensor):
            fov = expect("fov", floating(fov))
            expect_values(fov=((fov > 0) & (fov < math.pi), "angles between 0 and pi [rad], not degrees"))
            fov = fov.to(read_dtype(dtype or fov.dtype))
        else:
            if not 0 < to_number(fov) < math.pi:
                given = reprlib.repr(fov)
                raise ValueError(f"fov: expected an angle between 0 and pi [rad], not degrees, got {given}")
            fov = _like(size, dtype).new_full((), float(fov))
        focal, extent = fov_to_focal(fov, size, axis=axis), as_size(size, fov)
        return cls(*torch.broadcast_tensors(focal[..., None], extent / 2))

    @classmethod
    def guess(cls, size: Size, *, dtype: torch.dtype | None = None) -> Camera:
        """Make a camera with CLIFF's guess of the focal length, sqrt(W^2 + H^2) (53 degrees).

        Args:
            size: width and height [pixels].
            dtype: of the camera. None is that of ``size``, or torch's default if these are integers or
                numbers.
        """
        extent = as_size(size, _like(size, dtype))
        return cls(extent.norm(dim=-1, keepdim=True).expand_as(extent), extent / 2)

    @classmethod
    def look_at(
        cls,
        eye: Sequence[float] | Float[Tensor, "*eyes 3"],
        target: Sequence[float] | Float[Tensor, "*targets 3"],
        *,
        size: Size,
        fov: float | Float[Tensor, "*batch"] = math.pi / 6,
        axis: Axis = "vertical",
        up: Sequence[float] | Float[Tensor, "*ups 3"] = (0.0, 1.0, 0.0),
    ) -> Camera:
        """Make a camera at ``eye`` that sees ``target`` in the middle of its image.

        Its dtype is that to which torch promotes the tensors among ``eye``, ``target``, ``up`` and ``fov``,
        or torch's default if all of them are numbers.

        Args:
            eye: position of the camera in the world [m].
            target: a point on its optical axis [m].
            size: width and height [pixels].
            fov: field of view [rad].
            axis: of the field of view.
            up: direction of the world that points up in the image.
        """
        places = {"eye": eye, "target": target, "up": up}
        given = [expect(name, v, 3) for name, v in places.items() if isinstance(v, Tensor)]
        given += [expect("fov", fov)] if isinstance(fov, Tensor) else []
        dtype = functools.reduce(torch.promote_types, [v.dtype for v in given] or [torch.get_default_dtype()])
        device = given[0].device if given else None
        position, aim, above = (
            expect(name, torch.as_tensor(v, dtype=dtype, device=device), 3) for name, v in places.items()
        )
        forward = aim - position
        right = torch.linalg.cross(*torch.broadcast_tensors(forward, above))
        if not is_recorded() and (right.norm(dim=-1) <= 1e-9 * forward.norm(dim=-1)).any():
            raise ValueError(
                "eye, target: expected two different points on a line that is not parallel to up"
            )
        forward, right = (v / v.norm(dim=-1, keepdim=True) for v in (forward, right))
        rotation = torch.stack((right, torch.linalg.cross(forward, right), forward), -2)
        translation = -(rotation * position[..., None, :]).sum(-1)
        camera = cls.from_fov(fov, size, axis=axis, dtype=dtype).to(position)
        return camera._replace(rotation=rotation, translation=translation)

    @property
    def intrinsics(self) -> Float[Tensor, "*batch 3 3"]:
        """K [pixels]."""
        (fx, fy), (cx, cy) = (x.unbind(-1) for x in torch.broadcast_tensors(self.focal, self.center))
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        rows = (fx, zero, cx), (zero, fy, cy), (zero, zero, one)
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    @property
    def world_to_camera(self) -> Float[Tensor, "*batch 4 4"]:
        """[R | t] over (0, 0, 0, 1)."""
        rotation, translation = self._pose()
        return join_rigid(rotation, translation)

    @property
    def position(self) -> Float[Tensor, "*batch 3"]:
        """Position of the camera in the world [m]: -R^T t."""
        rotation, translation = self._pose()
        return -(rotation * translation[..., None]).sum(-2)

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """Return the camera with all tensors moved or cast, as by ``torch.Tensor.to``."""
        return self.map(lambda part: part.to(*args, **kwargs))

    def map(self, function: Callable[[Tensor], Tensor]) -> Camera:
        """Apply a function to each existing tensor, such as ``lambda t: t[rows]`` over the batch."""
        return Camera(**{name: function(part) for name, part in self._asdict().items() if part is not None})

    def expand(self, *batch: int) -> Camera:
        """Return the camera expanded to a batch, without copies."""
        parts = {}
        for name, part in self._asdict().items():
            if part is None:
                continue
            entry = part.shape[part.dim() - (2 if name == "rotation" else 1) :]
            parts[name] = expand_to(f"camera.{name}", part, (*batch, *entry))
        return Camera(**parts)

    def to_camera(self, points: Float[Tensor, "*points K 3"]) -> Float[Tensor, "*batch K 3"]:
        """Return camera coordinates of world points: R p + t [m]."""
        points = self._expect("points", points, None, 3)
        self._check_batch(points=points.shape[:-2])
        if self.rotation is not None:
            rotation = self._expect("rotation", self.rotation, 3, 3)
            points = product(points, rotation.mT)
        if self.translation is not None:
            points = points + self._expect("translation", self.translation, 3)[..., None, :]
        return points

    def to_world(self, points: Float[Tensor, "*points K 3"]) -> Float[Tensor, "*batch K 3"]:
        """Return world coordinates of points in camera coordinates: R^T (p - t) [m]."""
        points = self._expect("points", points, None, 3)
        self._check_batch(points=points.shape[:-2])
        if self.translation is not None:
            points = points - self._expect("translation", self.translation, 3)[..., None, :]
        if self.rotation is not None:
            rotation = self._expect("rotation", self.rotation, 3, 3)
            points = product(points, rotation)
        return points

    def project(
        self, points: Float[Tensor, "*points K 3"], *, size: Size | None = None, near: float = NEAR
    ) -> Projection:
        """Project world points into the image.

        x = fx X / Z + cx and y = fy Y / Z + cy, with distortion between the division and the focal length.

        Nearer than ``near`` and behind the camera, 1 / Z is continued by 2 / near - 1 / (2 near - Z), its
        point reflection at Z = near. Value and first derivative are continuous there, the value stays below 2
        / near, and its slope is nowhere steeper than 1 / near^2. So nothing is infinite, and the gradient of
        a reprojection error still moves such points forward. They are not visible.

        Args:
            points: in the world [m].
            size: width and height [pixels], for ``visible``: 0 <= x < W and 0 <= y < H.
            near: see above [m], positive.

        Returns:
            Pixels, depth and a mask. With distortion, points outside the lens's view (see `distort`) are not
                visible either.
        """
        read_positive("near", near, "a distance", " [m]")
        local = self.to_camera(points)
        depth = local[..., 2]
        plane = local[..., :2] * inverse_depth(depth, near)[..., None]
        visible = depth >= near
        if self.distortion is not None:
            plane, in_view = distort(plane, self._lens())
            visible = visible & in_view
        pixels = plane * self._focal() + self._center()
        if size is not None:
            extent = as_size(size, pixels)[..., None, :]
            broadcast(points=pixels.shape[:-2], size=extent.shape[:-2])
            visible = visible & ((pixels >= 0) & (pixels < extent)).all(-1)
        # Each may have batch dimensions that the others lack, as the depth does not depend on intrinsics.
        _, depth, visible = torch.broadcast_tensors(pixels[..., 0], depth, visible)
        return Projection(pixels.expand(*visible.shape, 2), depth, visible)

    def undistort(self, pixels: Float[Tensor, "*points K 2"]) -> Float[Tensor, "*batch K 2"]:
        """Return normalised image coordinates x / z and y / z, as ``cv2.undistortPoints``."""
        pixels = self._expect("pixels", pixels, None, 2)
        self._check_batch(pixels=pixels.shape[:-2])
        plane = (pixels - self._center()) / self._focal()
        return plane if self.distortion is None else undistort(plane, self._lens())

    def unproject(
        self, pixels: Float[Tensor, "*points K 2"], depth: Float[Tensor, "*depths K"]
    ) -> Float[Tensor, "*batch K 3"]:
        """Return world points at image points: the inverse of `project` beyond ``near``.

        Args:
            pixels: in the image.
            depth: z in camera coordinates [m].
        """
        pixels, depth = self._expect("pixels", pixels, None, 2), self._expect("depth", depth, None)
        self._check_batch(pixels=pixels.shape[:-2], depth=depth.shape[:-1])
        broadcast(pixels=pixels.shape[:-1], depth=depth.shape)
        plane, depth = torch.broadcast_tensors(self.undistort(pixels), depth[..., None])
        return self.to_world(torch.cat((plane * depth, depth[..., :1]), -1))

    def fov(self, size: Size, *, axis: Axis = "vertical") -> Float[Tensor, "*batch"]:
        """Return the field of view [rad] of an image whose middle is the principal point.

        Args:
            size: width and height of the image [pixels].
            axis: of the field of view: "vertical", "horizontal" or "diagonal".
        """
        extent = as_size(size, self.focal) / expect("focal", self.focal, 2)
        return 2 * torch.atan(_length(extent, axis, extent) / 2)

    def resized(self, scale: float | Float[Tensor, "*batch n"]) -> Camera:
        """Return the camera of the resized image.

        Since the image begins at 0, not at -0.5, focal length and principal point are simply multiplied.

        Args:
            scale: new size over old: a number, (*batch, 1), or (*batch, 2) if width and height differ.
        """
        if isinstance(scale, Tensor):
            self._check_batch(scale=scale.shape[:-1])
        else:
            read_positive("scale", scale)
        return self._replace(focal=self.focal * scale, center=self.center * scale)

    def cropped(self, box: Float[Tensor, "*batch 4"], *, size: Size | None = None) -> Camera:
        """Return the camera of a crop: the same axis and rays, seen through another window.

        Args:
            box: corners (x0, y0, x1, y1) of the crop in the image [pixels].
            size: width and height to which the crop is resized [pixels]; None keeps its pixels.
        """
        low, high = expect("box", box, 4).split(2, -1)
        self._check_batch(box=low.shape[:-1])
        focal, center = torch.broadcast_tensors(self.focal, self.center - low)
        moved = self._replace(focal=focal, center=center)
        return moved if size is None else moved.resized(as_size(size, box) / not_empty(high - low))

    def _pose(self) -> tuple[Tensor, Tensor]:
        rotation, translation = self.rotation, self.translation
        if rotation is None:
            rotation = torch.eye(3, dtype=self.focal.dtype, device=self.focal.device)
        if translation is None:
            translation = rotation.new_zeros(3)
        return rotation, translation

    def _lens(self) -> Tensor:
        """Return the distortion; a row of OpenCV's result, (1, k), belongs to one camera, not to a batch."""
        lens = expect("distortion", self.distortion, None)
        return lens[0] if self.focal.dim() == 1 and lens.dim() == 2 and len(lens) == 1 else lens

    def _focal(self) -> Tensor:
        return expect("focal", self.focal, 2)[..., None, :]

    def _center(self) -> Tensor:
        return self._expect("center", self.center, 2)[..., None, :]

    def _expect(self, name: str, tensor: Any, *entry: int | None) -> Tensor:
        """Check the shape, and that the dtype is the camera's, lest half a projection be in float32."""
        found = expect(name, tensor, *entry)
        expect_dtype(name, found, expect("focal", self.focal, 2), "as the camera's focal")
        return found

    def _check_batch(self, **points: tuple[int, ...]) -> None:
        """Check that the batches of the camera and of points, given without their entries, broadcast."""
        batches = {
            f"camera.{name}": expect_tensor(name, part).shape[: part.dim() - (2 if name == "rotation" else 1)]
            for name, part in self._asdict().items()
            if part is not None
        }
        broadcast(**batches, **points)


def fov_to_focal(
    fov: Float[Tensor, "*batch"], size: Size, *, axis: Axis = "vertical"
) -> Float[Tensor, "*batch"]:
    """Return the focal length [pixels] of a field of view [rad]: f = L / (2 tan(fov / 2)).

    The length L of an axis is H for "vertical", W for "horizontal" and sqrt(W^2 + H^2) for "diagonal".
    """
    fov = expect("fov", fov)
    expect_values(fov=((fov > 0) & (fov < math.pi), "angles between 0 and pi [rad], not degrees"))
    return _length(size, axis, fov) / (2 * torch.tan(fov / 2))


def split_rigid(name: str, matrix: Any) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Return R and t of [R | t], (3, 4) or (4, 4)."""
    matrix = expect(name, matrix, None, 4)
    if matrix.shape[-2] not in (3, 4):
        raise ValueError(
            f"{name}: expected shape (*batch, 3, 4) or (*batch, 4, 4), got {tuple(matrix.shape)}"
        )
    return matrix[..., :3, :3], matrix[..., :3, 3]


def join_rigid(rotation: Tensor, translation: Tensor) -> Float[Tensor, "*batch 4 4"]:
    """Return [R | t] over (0, 0, 0, 1)."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    upper = torch.cat((rotation.expand(*batch, 3, 3), translation.expand(*batch, 3)[..., None]), -1)
    last = torch.eye(4, dtype=upper.dtype, device=upper.device)[3:]
    return torch.cat((upper, last.expand(*batch, 1, 4)), -2)


def inverse_depth(depth: Tensor, near: float | Tensor) -> Tensor:
    """Return 1 / depth, continued by its point reflection nearer than ``near``; see `Camera.project`."""
    ahead = depth >= near
    return torch.where(
        ahead,
        1 / torch.where(ahead, depth, near),
        2 / near - 1 / (2 * near - torch.where(ahead, near, depth)),
    )


def _length(size: Size, axis: Axis, like: Tensor) -> Tensor:
    expect_choice("axis", axis, get_args(Axis))
    width, height = as_size(size, like).unbind(-1)
    return {"vertical": height, "horizontal": width}.get(axis, torch.hypot(width, height))


def as_size(size: Size, like: Tensor) -> Tensor:
    """Return (*batch, 2) like another tensor; numbers are not copied to the device."""
    if isinstance(size, Tensor):
        if size.dim() == 0 or size.shape[-1] != 2:
            raise ValueError(f"size: expected shape (*batch, 2), width and height, got {tuple(size.shape)}")
        expect_values(wait=False, size=(size > 0, "width and height above 0 [pixels]"))
        return size.to(like)
    if not hasattr(size, "__len__") or len(size) != 2:
        raise ValueError(
            f"size: expected (width, height), got {size}; the shape of an image array is "
            "(height, width, channels), so give (shape[1], shape[0])"
        )
    width, height = size
    numbers = (side for side in size if not isinstance(side, Tensor))
    if not is_recorded() and not all(0 < to_number(side) < math.inf for side in numbers):
        raise ValueError(f"size: expected width and height above 0 [pixels], got ({width}, {height})")
    return torch.stack((like.new_full((), width), like.new_full((), height)))


def _like(size: Size, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor of the dtype and on the device of a camera that is made from an image's size."""
    if isinstance(size, Tensor):
        return size.to(read_dtype(dtype or (size.dtype if size.is_floating_point() else None)))
    return torch.empty(0, dtype=read_dtype(dtype))


def expect_camera(value: Any, *, posed: bool = True, of_fit: bool = False) -> Camera:
    """Check that an argument is a `Camera`, of intrinsics alone where it may not be ``posed``.

    That of a fit is not differentiated, so its values are checked, too.
    """
    if not isinstance(value, Camera):
        advice = "Camera.guess is one without calibration"
        raise TypeError(f"camera: expected a Camera, got {type(value).__name__}; {advice}")
    if not posed and (value.rotation is not None or value.translation is not None):
        raise ValueError("camera: expected no rotation and translation; give all in camera coordinates")
    if of_fit:
        expect_values(
            camera__focal=((value.focal > 0) & value.focal.isfinite(), "finite pixels above 0"),
            camera__center=(value.center.isfinite(), "finite pixels"),
        )
    return value


def not_empty(extent: Tensor) -> Tensor:
    """Return sizes, 1 pixel where they are 0, as of `box_around` nobody: a division by them is finite."""
    return torch.where(extent == 0, 1, extent)
