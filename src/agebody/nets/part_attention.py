"""PARE's head: attention of each part of the body over the pixels of the features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import read_sizes
from agebody.files import read_flag
from agebody.mesh import PartMap
from agebody.nets.readouts import ReadoutHead


class PartAttentionHead(ReadoutHead):
    """Regress each joint's rotation from the features under the attention of its part.

    The head of PARE (Kocabas et al., ICCV 2021). One branch of convolutions gives the parts' logits, whose
    softmax over the pixels weighs the features of the other branch. Each joint's rotation is read by a matrix
    of its own out of its part's features, all else out of narrower features of all parts. With the seven
    parts of InfantNet, joints of one limb share their features.

    Args:
        readouts: name -> start, or the size of a read-out without one; "pose" among them. `start_readouts`
            gives those of a body.
        parts: of the body; None: one part per joint.
        channels: of the features, such as 480 of an HRNet-W32.
        width: of each branch.
        layers: of each branch, 3 x 3.
        upsample: whether each layer doubles the resolution, for features of 7 x 7 pixels such as a ResNet's.
        narrow: of the features per part for all but the pose.
    """

    def __init__(
        self,
        readouts: Mapping[str, Tensor | int],
        parts: PartMap | None = None,
        *,
        channels: int = 480,
        width: int = 128,
        layers: int = 2,
        upsample: bool = False,
        narrow: int = 64,
    ) -> None:
        super().__init__(readouts)
        if self.sizes.get("pose", 1) % 6 or "parts" in self.sizes:
            wanted = "pose among them, six numbers per joint, and not parts, which the head adds"
            raise ValueError(f"readouts: expected {wanted}, got {', '.join(self.sizes)}")
        read_sizes(channels=channels, width=width, layers=layers, narrow=narrow)
        joints = self.sizes["pose"] // 6
        owners = torch.arange(joints) if parts is None else torch.from_numpy(parts.joints)
        if owners.shape[0] != joints:
            raise ValueError(f"parts: expected those of a body of {joints} joints, got {owners.shape[0]}")
        count = joints if parts is None else len(parts.names)
        self.channels = channels
        self.register_buffer("joint_parts", owners, persistent=False)
        self.part_branch = _branch(channels, width, layers, upsample)
        self.part_logits = nn.Conv2d(width, count + 1, 1)
        self.body_branch = _branch(channels, width, layers, upsample)
        self.narrow = nn.Linear(width, narrow)
        self.pose_weight = nn.Parameter(torch.empty(joints, 6, width))
        bound = 0.01 * (6 / (width + 6)) ** 0.5  # of Xavier's uniform distribution with a gain of 0.01
        nn.init.uniform_(self.pose_weight, -bound, bound)
        self.add_layers(count * narrow, [name for name in self.sizes if name != "pose"])

    def forward(
        self, features: Float[Tensor, "B C h w"], condition: Float[Tensor, "B K"] | None = None
    ) -> dict[str, Tensor]:
        """Return the read-outs by name, each (B, size), and "parts".

        Args:
            features: a map.
            condition: None; this head takes none.

        Returns:
            With them "parts" (B, P + 1, H, W), logits of what each pixel shows: 0 no part, p + 1 part p, as
            in the picture of a `PartMap`.
        """
        features = self.expect_features(features, self.pose_weight, self.channels, "B C h w")
        self.expect_condition(condition, features)
        logits = self.part_logits(self.part_branch(features))
        shares = logits[:, 1:].flatten(2).softmax(-1)
        seen = shares @ self.body_branch(features).flatten(2).mT
        # PARE narrows each pixel's features and weighs them then; as shares sum to 1, this is the same.
        narrow = self.narrow(seen).flatten(1)
        pose = torch.einsum("bjc,jkc->bjk", seen[:, self.joint_parts], self.pose_weight).flatten(1)
        start = self.start("pose")
        others = {name: self.read(name, narrow) for name in self.sizes if name != "pose"}
        return {"pose": pose if start is None else pose + start, **others, "parts": logits}


def _branch(channels: int, width: int, layers: int, upsample: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in range(layers):
        before = width if layer else channels
        parts += [
            nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False)
            if read_flag("upsample", upsample)
            else nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts)
