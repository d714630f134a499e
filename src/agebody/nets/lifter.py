"""From 2D keypoints to a body of any age in one pass: a small network, with standard deviations.

Its outputs belong to no body model: rotations of SMPL's joints, the stature of a mean person of the age,
lengths of bones, and a place in the image. A body turns these into its own age offset, betas and translation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agebody.age import AgeCurve
from agebody.age.values import TALLEST
from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.container import naming
from agebody.assets.landmarks import COCO17, SURFACE21
from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera, box_around
from agebody.cameras.camera import Size, as_size, expect_camera
from agebody.cameras.weak import translation_to_weak
from agebody.checks import Weights, expect, expect_values, flatten, read_count
from agebody.engine.batched import own_precision
from agebody.engine.trees import put_rows, take_rows, unflatten, without_gradients
from agebody.files import replacing
from agebody.fitting.observed import MIN_POINTS, Observed, read_observed
from agebody.fitting.start import to_world
from agebody.keypoints import KeypointLayout, get_layout
from agebody.measure import stature
from agebody.nets.regressor import Prediction
from agebody.parameters import BodyParameters
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rotation_6d_to_matrix

_FEET = tuple(name for name in SURFACE21 if "toe" in name or "heel" in name)
_NAMES = (*COCO17, *_FEET, *(name for name in SMPL_JOINT_NAMES if name not in COCO17))
POINTS = KeypointLayout(
    "lifter", _NAMES, tuple(("surface21" if name in SURFACE21 else "joints", name) for name in _NAMES)
)
"""The input points of the network: COCO's, the feet's, and SMPL's other joints."""

_NEAREST = tuple(
    SMPL_JOINT_NAMES.index(
        name if name in SMPL_JOINT_NAMES else f"{name.split('_')[0]}_foot" if name in _FEET else "head"
    )
    for name in _NAMES
)
"""Of each point the joint that it is, or is next to."""

_LIMBS = ("shoulder elbow", "elbow wrist", "hip knee", "knee ankle", "ankle foot")
_PAIRS = (
    *(2 * (pair,) for pair in (("pelvis", "neck"), ("neck", "head"))),
    *(2 * ((f"left_{part}", f"right_{part}"),) for part in ("shoulder", "hip")),
    *(tuple(tuple(f"{side}_{end}" for end in limb.split()) for side in ("left", "right")) for limb in _LIMBS),
)
BONES = tuple(tuple(SMPL_JOINT_NAMES.index(end) for side in pair for end in side) for pair in _PAIRS)
"""Lengths that decide the betas: the joints at both ends, of the left and of the right side."""

SIZES = {
    "pose": 6 * len(SMPL_JOINT_NAMES),
    "growth": 1,
    "place": 3,
    "lengths": len(BONES),
    "trust": len(POINTS),
    "log_sd_pose": len(SMPL_JOINT_NAMES),
    "log_sd_growth": 1,
    "log_sd_place": 3,
    "log_sd_lengths": len(BONES),
}
"""Outputs of the network, and their sizes."""
FEATURES = 3 * len(POINTS) + 9
FARTHEST = 6.0
"""Largest coordinate of a point, in units of the median distance from the middle of a person's points."""
EVIDENCE = 1.5
"""Factor of the standard deviations of an estimate that is evidence in a fit to the same keypoints: of 1,
1.5, 2 and 3, the one of least error of pose and stature, on people that were not trained on."""
LEAST_SD = 0.02
"""Smallest standard deviation of an age offset."""
ELSEWHERE = 0.5
"""Distance of a keypoint from its joint of an estimated body, as a share of the larger side of the box around
all joints, from which it is somebody else's."""
LEAST_SHARE = 0.1
"""Share of a person's largest confidence below which keypoints are left out: in a fit they count less than a
hundredth, and detectors place what they do not see anywhere."""
LOOKS = 3
"""Largest number of estimates per person: each after the first omits keypoints far from the previous one."""
WEIGHTS = "lifter.safetensors"
_BLOCK = re.compile(r"layers\.\d+\.0\.weight")


class View(NamedTuple):
    """A normalised view of a person: a camera rotated towards their keypoints, which have unit size."""

    rotation: Float[Tensor, "B 3 3"]
    """From the camera's axes to the view's."""
    scale: Float[Tensor, " B"]
    """Median distance of the points from their middle, in units of the focal length."""


class Estimate(NamedTuple):
    """Bodies estimated from keypoints, with standard deviations."""

    parameters: BodyParameters
    """In the world of the camera: ``start=`` of `fit_keypoints`."""
    sd: dict[str, Tensor]
    """Standard deviations by group: "global_orient" and "body_pose" [rad], one per joint for its three
    numbers, "betas", "age_offset" and "transl" [m]."""
    trust: Float[Tensor, "*batch K"]
    """Probability that a keypoint shows the point of its name and not another place; 1 for points that the
    network does not know, 0 for those that were left out as other people's or as too uncertain."""
    prediction: Prediction
    """The same bodies as a network's, in the axes of the camera, with a weak camera for the box."""

    @property
    def start_sd(self) -> dict[str, Tensor]:
        """``start_sd=`` of `fit_keypoints`: the pose, with ``EVIDENCE`` times its standard deviations.

        The estimate and a fit to the same keypoints are not independent, hence the factor. Size, position and
        age, which the fit finds from them as well, are left to it: adults are at the bound of the age, so the
        mean of their estimates is younger and smaller.
        """
        return {name: EVIDENCE * self.sd[name] for name in ("global_orient", "body_pose")}


class Lifter(nn.Module):
    """A residual network from the features of keypoints to `SIZES`.

    Args:
        width: of the hidden layers.
        blocks: number of residual blocks of two layers.
    """

    mean_pose: Tensor
    sd_factor: Tensor
    correlation: Tensor

    def __init__(self, *, width: int = 512, blocks: int = 3) -> None:
        super().__init__()
        self.width, self.blocks = read_count("width", width, least=1), read_count("blocks", blocks)
        self.embed = nn.Linear(FEATURES, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(SIZES.values())))
        upright = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(len(SMPL_JOINT_NAMES))
        self.register_buffer("mean_pose", upright, persistent=False)
        # One factor for each of the "log_sd" read-outs, from people that were not trained on.
        self.register_buffer("sd_factor", torch.ones(sum(v for k, v in SIZES.items() if "sd" in k)))
        # Of the errors of the log-lengths, which are mostly errors of the overall size.
        self.register_buffer("correlation", torch.eye(len(BONES)))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Lifter:
        """Read weights written by `save`; those that come with agebody if no path is given.

        Raises:
            AssetError: the file is missing, damaged, or of another kind.
        """
        source = Path(str(files("agebody.nets") / WEIGHTS)) if path is None else Path(path)
        with naming(source):
            try:
                with safe_open(source, "pt") as file:
                    about, tensors = file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise AssetError(f"expected a lifter's weights in safetensors: {error}") from None
            if about.get("kind") != "agebody lifter":
                got = about.get("kind", "another file")
                raise AssetError(f"expected a lifter's weights, got {got[:100]!r}")
            width = tensors["embed.bias"].numel() if "embed.bias" in tensors else 1
            with torch.device("meta"):
                made = cls(width=width, blocks=sum(bool(_BLOCK.fullmatch(name)) for name in tensors))
            shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
            if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
                raise AssetError("expected a lifter's tensors, got other names or shapes; get it again")
            if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
                raise AssetError("expected finite weights; get or train it again")
        made = cls(width=width, blocks=made.blocks)
        made.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return made.eval()

    def save(self, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
        """Write the weights in 16 bits, with metadata of their training."""
        kind = {"kind": "agebody lifter", "width": str(self.width), "blocks": str(self.blocks)}
        halves = {name: part.half() if part.dim() == 2 else part for name, part in self.state_dict().items()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(halves, temporary, {**about, **kind})

    def forward(self, features: Float[Tensor, "B F"]) -> dict[str, Tensor]:
        """Return the outputs of the network, by the names of `SIZES`."""
        hidden = self.embed(features)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        found = dict(zip(SIZES, self.read(hidden).split(list(SIZES.values()), -1), strict=True))
        found["pose"] = found["pose"] + self.mean_pose
        logs = [name for name in SIZES if "sd" in name]
        factors = self.sd_factor.log().split([SIZES[name] for name in logs])
        for name, factor in zip(logs, factors, strict=True):
            found[name] = found[name].clamp(-4.5, 2.0) + factor
        return found

    @without_gradients
    def estimate(
        self,
        body: BodyModel,
        keypoints: Float[Tensor, "*batch K 2"],
        camera: Camera,
        *,
        layout: str | KeypointLayout = "coco17",
        weights: Weights = None,
        size: Size | None = None,
        box: Float[Tensor, "*batch 4"] | None = None,
        age_offset: float | Tensor | None = None,
        age_class: Int[Tensor, "*batch"] | None = None,
        years: float | Tensor | None = None,
        depth: Float[Tensor, "*batch"] | None = None,
    ) -> Estimate:
        """Estimate the bodies of people from their keypoints.

        Args:
            body: an `SMPLA`, or a layer of one age, with SMPL's joints.
            keypoints: (*batch, K, 2) [pixels].
            camera: batch dimensions broadcast to (*batch); `Camera.guess` where the focal length is unknown.
            layout: of the keypoints. Points are matched by name; those that the network does not know are
                ignored, and not all known points are needed.
            weights: (*batch, K) confidences, or a mask. Keypoints of weight 0 are ignored, even NaN.
            size: width and height of the images [pixels], which determine whether a person is truncated.
            box: corners of the crops that ``prediction.camera`` is for; 1.2 times the box around the
                keypoints if None.
            age_offset, age_class, years, depth: where known, as in `fit_keypoints`.

        Returns:
            Finite bodies, also of people without keypoints, whose standard deviations are large.
        """
        expect_body(body)
        expect_camera(camera)
        layout, keypoints = get_layout(layout), expect("keypoints", keypoints, None, 2)
        if tuple(body.asset.joint_names) != SMPL_JOINT_NAMES:
            raise ValueError("body: expected SMPL's 24 joints, which the lifter was trained on")
        columns, points = _matching(layout)
        if not points:
            known = ", ".join(POINTS.names[:3])
            raise ValueError(f"layout: the lifter knows none of its points; expected some such as {known}")
        with own_precision(body.device):
            given = read_observed(
                body,
                keypoints,
                camera,
                layout,
                weights,
                1.0,
                (age_offset, age_class, years),
                depth,
                0.01,
            )
            batch = keypoints.shape[:-2]
            if size is not None:
                size = flatten(as_size(size, keypoints), batch, 1)
                expect_values(size=((size > 0) & size.isfinite(), "width and height above 0 [pixels]"))
            everything = given.weights
            shown = everything >= LEAST_SHARE * everything.amax(-1, keepdim=True)
            given = given._replace(weights=_unless_few(everything, shown))
            own, looked = given.weights, self._look(body, given, size)
            for _ in range(LOOKS - 1):
                before, own = own, _own_weights(body, given, looked[0])
                rows = (own != before).any(-1).nonzero()[:, 0]
                if not len(rows):
                    break
                some = take_rows((given._replace(weights=own), size), rows)
                looked = put_rows(looked, rows, self._look(body, *some))
            found, sd, sure = looked
            if box is None:
                corners = box_around(given.keypoints, weights=given.weights, scale=1.2)
            else:
                corners = flatten(expect("box", box, 4).to(keypoints), batch, 1)
                sides = corners[:, 2:] - corners[:, :2]
                expect_values(
                    box=((sides > 0) & sides.isfinite(), "corners x0, y0, x1, y1, x0 < x1 and y0 < y1")
                )
            place = translation_to_weak(found.transl, corners, given.camera)
            matrices = axis_angle_to_matrix(torch.cat((found.global_orient[:, None], found.body_pose), 1))
            age = found.age_offset if body.age_anchors else None
            prediction = Prediction(matrices[:, 0], matrices[:, 1:], found.betas, age, place, {})
            trust = torch.ones_like(given.weights)
            trust[:, columns] = sure.sigmoid()[:, points]
            trust = torch.where(own == everything, trust, 0)
            found = to_world(body, found, given.camera)

        return unflatten(Estimate(found, sd, trust, prediction), batch)

    def _look(
        self, body: BodyModel, given: Observed, size: Float[Tensor, "B 2"] | None
    ) -> tuple[BodyParameters, dict[str, Tensor], Float[Tensor, "B K"]]:
        """Return bodies in the camera's axes, their standard deviations, and the trust in `POINTS`."""
        features, view = lifter_features(body, given, size)
        readouts = self(features.to(self.sd_factor))
        readouts = {name: part.to(given.keypoints) for name, part in readouts.items()}
        return *self._decode(body, readouts, view, given), readouts["trust"]

    def _decode(
        self, body: BodyModel, readouts: Mapping[str, Tensor], view: View, given: Observed
    ) -> tuple[BodyParameters, dict[str, Tensor]]:
        """Return bodies in the camera's axes, and their standard deviations."""
        rotations = rotation_6d_to_matrix(readouts["pose"].unflatten(-1, (-1, 6)))
        pose = matrix_to_axis_angle(
            torch.cat((view.rotation.mT[:, None] @ rotations[:, :1], rotations[:, 1:]), 1)
        )
        growth, sd_growth = readouts["growth"][:, 0], readouts["log_sd_growth"][:, 0].exp()
        offset = torch.zeros_like(growth)
        sd_offset = torch.ones_like(growth)
        if body.age_anchors:
            curve = AgeCurve.from_asset(body.asset)
            low, high = given.ages[:, :2].unbind(-1)
            statures = torch.stack((growth, growth + sd_growth, growth - sd_growth)).exp()
            offset, older, younger = curve.stature_to_offset(statures.clamp(max=TALLEST)).unbind()
            offset = offset.minimum(high).maximum(low)
            sd_offset = ((younger - older) / 2).clamp(min=LEAST_SD)
        betas, sd_betas = self._betas(body, offset, readouts["lengths"] + growth[:, None], readouts)
        pelvis = body.keypoints("smpl24", betas=betas, **_age(body, offset))[:, 0]
        across, log_depth = readouts["place"].split((2, 1), -1)
        unit = log_depth.exp()  # [m] the length that has unit size in the view, at the pelvis
        depth = unit / view.scale[:, None]
        place = torch.cat((across * unit, depth), -1)
        sd_across, sd_depth = readouts["log_sd_place"].exp().split((2, 1), -1)
        # Depth is uncertain along the ray to the pelvis, and the place in the image across the view's axis.
        axes = torch.diag_embed(torch.cat((sd_across * unit, 1e-3 * depth), -1))
        along = (place * sd_depth)[..., None]
        spread = view.rotation.mT @ torch.cat((axes, along), -1)
        found = BodyParameters(
            pose[:, 0], pose[:, 1:], betas, offset, (view.rotation.mT @ place[..., None])[..., 0] - pelvis
        )
        sd_pose = readouts["log_sd_pose"].exp()[..., None]
        return found, {
            "global_orient": sd_pose[:, 0],
            "body_pose": sd_pose[:, 1:],
            "betas": sd_betas,
            "age_offset": sd_offset,
            "transl": spread.norm(dim=-1),
        }

    def _betas(
        self, body: BodyModel, age_offset: Tensor, lengths: Tensor, readouts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the most probable betas of bones of these logarithmic lengths, normal with SD 1 before."""
        sd = readouts["log_sd_lengths"].exp()
        units = torch.eye(body.num_betas, dtype=body.dtype, device=body.device)
        units = torch.cat((units.new_zeros(1, body.num_betas), units)).expand(lengths.shape[0], -1, -1)
        rest = body.keypoints(
            "smpl24", betas=units, **_age(body, age_offset[:, None].expand(units.shape[:2]))
        )
        logs = bone_lengths(rest).log()
        by_beta = (logs[:, 1:] - logs[:, :1]).mT  # (B, bones, betas)
        covariance = sd[:, :, None] * self.correlation.to(sd) * sd[:, None]
        weighted = torch.linalg.solve(covariance, by_beta)
        normal = by_beta.mT @ weighted + torch.eye(body.num_betas, dtype=sd.dtype, device=sd.device)
        inverse = torch.linalg.inv(normal)
        betas = inverse @ (weighted.mT @ (lengths - logs[:, 0])[..., None])
        return betas[..., 0].clamp(-3, 3), inverse.diagonal(dim1=-2, dim2=-1).sqrt()


def bone_lengths(joints: Float[Tensor, "*batch 24 3"]) -> Float[Tensor, "*batch L"]:
    """Return the lengths of `BONES` of bodies at rest [m]."""
    ends = joints[..., BONES, :].unflatten(-2, (2, 2))
    return (ends[..., 0, :] - ends[..., 1, :]).norm(dim=-1).mean(-1)


def lifter_features(
    body: BodyModel, given: Observed, size: Float[Tensor, "B 2"] | None
) -> tuple[Float[Tensor, "B F"], View]:
    """Return the network's input features, and the frames of its output.

    A frame looks at the median of a person's points, and its unit is their median distance from it: neither
    depends on where the person is in the image, nor much on points that are wrong.
    """
    focal, middle = given.camera.focal[:, None], given.camera.center[:, None]
    columns, points = _matching(given.layout)
    trust = given.weights.new_zeros(given.weights.shape[0], len(POINTS))
    trust[:, points] = given.weights[:, columns].clamp(max=1)
    plane = trust.new_zeros(*trust.shape, 2)
    plane[:, points] = given.camera.undistort(given.keypoints[:, columns])
    known = (trust > 0)[..., None]
    center = torch.where(known, plane, torch.nan).nanmedian(1).values.nan_to_num(0.0)
    ray = nn.functional.normalize(nn.functional.pad(center, (0, 1), value=1.0), dim=-1)
    rotation = _rotation_to_axis(ray)
    turned = nn.functional.pad(plane, (0, 1), value=1.0) @ rotation.mT
    seen = turned[..., :2] / turned[..., 2:].clamp(min=0.1)
    distance = torch.where(known[..., 0], seen.norm(dim=-1), torch.nan).nanmedian(1).values.nan_to_num(0.0)
    scale = torch.where(distance > 0, distance.clamp(min=1e-4), 1.0)
    seen = torch.where(known, seen / scale[:, None, None], 0).clamp(-FARTHEST, FARTHEST)
    borders = torch.zeros_like(seen[:, :2])
    if size is not None:
        edges = torch.stack((torch.zeros_like(size), size), 1)
        borders = ((edges - middle) / focal - center[:, None]).abs() / scale[:, None, None]
        borders = torch.exp(-borders / 2).nan_to_num(0.0)
    known_depth = ~given.depth.isnan()
    unit = torch.where(known_depth, given.depth, 1) / ray[:, 2] * scale
    numbers = (
        scale.log(),
        *growth_bounds(body, given).unbind(-1),
        known_depth.to(scale),
        torch.where(known_depth, unit.log(), 0),
    )
    features = (seen.flatten(1), trust, borders.flatten(1), torch.stack(numbers, -1))
    return torch.cat(features, -1), View(rotation, scale)


def growth_bounds(body: BodyModel, given: Observed) -> Float[Tensor, "B 2"]:
    """Return the logarithms of the least and greatest stature, of mean shape, at the possible ages."""
    if body.age_anchors:
        high, low = AgeCurve.from_asset(body.asset).offset_to_stature(given.ages[:, :2]).unbind(-1)
        return torch.stack((low, high), -1).log()
    rest = body.shape(
        betas=torch.zeros(1, body.num_betas, dtype=body.dtype, device=body.device)
    ).rest_vertices
    return stature(rest).log()[:, None].expand(given.depth.shape[0], 2)


def _own_weights(body: BodyModel, given: Observed, found: BodyParameters) -> Float[Tensor, "B K"]:
    """Return the weights, 0 for keypoints far from bodies in the camera's axes, unless too few are left."""
    columns, points = _matching(given.layout)
    joints = given.camera.project(body.keypoints("smpl24", to_world(body, found, given.camera))).pixels
    size = (joints.amax(1) - joints.amin(1)).amax(-1, keepdim=True)
    near = joints[:, [_NEAREST[point] for point in points]]
    own = torch.ones_like(given.weights, dtype=torch.bool)
    own[:, columns] = (near - given.keypoints[:, columns]).norm(dim=-1) <= ELSEWHERE * size
    return _unless_few(given.weights, own)


def _unless_few(weights: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Return the weights, 0 for keypoints that are not kept, unless a person would show too few."""
    left = torch.where(kept, weights, 0)
    return torch.where((left > 0).sum(-1, keepdim=True) >= MIN_POINTS, left, weights)


def _rotation_to_axis(ray: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Return the smallest rotation that takes unit vectors with z > 0 to the z axis."""
    x, y, z = ray.unbind(-1)
    k = 1 / (1 + z)
    rows = ((1 - k * x * x, -k * x * y, -x), (-k * x * y, 1 - k * y * y, -y), (x, y, z))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _matching(layout: KeypointLayout) -> tuple[list[int], list[int]]:
    """Return the points of a layout that the network knows, and which of `POINTS` they are.

    Face, feet and limbs are the same points in all layouts. The others differ under one name, as OpenPose's
    neck from SMPL's, so their source must be the same, too.
    """
    pairs: dict[int, int] = {}
    for column, (name, source) in enumerate(zip(layout.names, layout.sources, strict=True)):
        if name not in POINTS.names or POINTS.names.index(name) in pairs:
            continue
        point = POINTS.names.index(name)
        if point < len(COCO17) + len(_FEET) or source == POINTS.sources[point]:
            pairs[point] = column
    return list(pairs.values()), list(pairs)


def _age(body: BodyModel, age_offset: Tensor) -> dict[str, Any]:
    return {"age_offset": age_offset} if body.age_anchors else {}
