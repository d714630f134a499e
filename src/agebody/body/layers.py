"""The layers by their names: which asset each takes, and SMPL-A's switch to an infant."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor

from agebody.assets.asset import BodyAsset
from agebody.assets.official import FILES, JOINT_NAMES, TITLES
from agebody.body.model import BodyModel, Person, find_asset, usual_expressions
from agebody.checks import read_nonnegative, read_number


class SMPL(BodyModel):
    """A body of one age (Loper et al., SIGGRAPH Asia 2015); age templates of the asset are ignored."""


class SMIL(BodyModel):
    """An infant body (Hesse et al., MICCAI 2018): SMPL's maths over an infant's asset."""

    def __init__(self, asset: BodyAsset | str | os.PathLike[str], **options: Any) -> None:
        """Options as in `BodyModel`."""
        asset = find_asset(asset)
        if asset.has_age or asset.metadata.kind == "smpl":
            raise ValueError(
                f"asset: {asset.metadata.name!r} is an adult ({asset.metadata.kind}); SMIL needs an infant: "
                "smil_web.pkl, or asset.at_age(1.0) of a body with age templates"
            )
        super().__init__(asset, **options)


class SMPLA(BodyModel):
    """A body of every age (AGORA, CVPR 2021; BEV, CVPR 2022): SMPL with an age offset.

    Args:
        asset: a body with age templates, or a file of one.
        smil: an infant body that takes over above the threshold, with the first betas and no age offset.
        infant_threshold: age offset above which it does (BEV: 0.8).
        transition: width of the age offsets, centred on the threshold, over which the two bodies are
            blended smoothly. 0 is BEV's switch, which passes no gradient to the age offset above it.
        infant_corrective_scale: factor of the pose blend shapes at age offset 1, linear from 1 at 0
            (smplify-kids uses 0.35).
        options: as in `BodyModel`.

    The two posed bodies are blended. For their joints that is the same as blending the rest joints, because
    forward kinematics is linear in them.
    """

    _of_every_age = True

    def __init__(
        self,
        asset: BodyAsset | str | os.PathLike[str],
        *,
        smil: BodyAsset | str | os.PathLike[str] | None = None,
        infant_threshold: float = 0.8,
        transition: float = 0.0,
        infant_corrective_scale: float = 1.0,
        **options: Any,
    ) -> None:
        """Options as in `BodyModel`."""
        asset = find_asset(asset)
        if not asset.has_age:
            raise ValueError(
                f"asset: {asset.metadata.name!r} has no age templates; give load_asset an infant_template "
                "(smpl_kid_template.npy or a SMIL file), or use SMPL"
            )
        infant_threshold = read_number("infant_threshold", infant_threshold)
        transition = read_nonnegative("transition", transition, "a width")
        infant_corrective_scale = read_number("infant_corrective_scale", infant_corrective_scale)
        super().__init__(asset, **options)
        self.infant_threshold = infant_threshold
        self.transition = transition
        self.infant_corrective_scale = infant_corrective_scale
        self.infant: SMIL | None = None
        if smil is not None:
            infant = find_asset(smil)
            if infant.template.shape != asset.template.shape or not np.array_equal(
                infant.parents, asset.parents
            ):
                raise ValueError(
                    f"smil: expected {asset.num_vertices} vertices and {asset.num_joints} joints, "
                    f"got {infant.num_vertices} and {infant.num_joints}"
                )
            num_betas = min(self.num_betas, infant.num_betas)
            self.infant = SMIL(infant, **{**options, "num_betas": num_betas})

    def _person(
        self, betas: Tensor | None, age_offset: Tensor | float | None, expression: Tensor | None
    ) -> Person:
        adult = self._identity(betas, age_offset, expression)
        if self.infant is None:
            return Person([(self, adult)], None)
        betas = self._coefficients(betas, expression)
        infant = self.infant._identity(betas[..., : self.infant.num_betas], None)
        age = self._age(age_offset, betas.dim() - 1)
        if self.transition == 0:
            return Person([(self, adult), (self.infant, infant)], age > self.infant_threshold)
        x = ((age - self.infant_threshold) / self.transition + 0.5).clamp(0, 1)
        return Person([(self, adult), (self.infant, infant)], x * x * (3 - 2 * x))


class _OfEveryAge(BodyModel):
    """A body of one family, of every age if its asset has age templates."""

    _kind = ""
    _of_every_age = True

    def __init__(self, asset: BodyAsset | str | os.PathLike[str], **options: Any) -> None:
        """Options as in `BodyModel`."""
        asset = find_asset(asset)
        if asset.joint_names != JOINT_NAMES[self._kind]:
            found = TITLES.get(asset.metadata.kind, asset.metadata.kind)
            raise ValueError(
                f"asset: {asset.metadata.name!r} is {found}; {type(self).__name__} needs {FILES[self._kind]}"
            )
        super().__init__(asset, **options)


class SMPLH(_OfEveryAge):
    """A body with hands (Romero et al., SIGGRAPH Asia 2017): 52 joints; `join_pose` joins body and hands.

    It takes an age offset if the asset has an infant template.
    """

    _kind = "smplh"


class SMPLX(_OfEveryAge):
    """A body with hands and face (Pavlakos et al., CVPR 2019): 55 joints, and expressions.

    It takes an age offset if the asset has an infant template (``smplx_kid_template.npy``).

    Args:
        asset: a body of SMPL-X, or a file of one.
        num_expression: expression coefficients; the asset's first 10, or all where it has fewer, if None.
        options: as in `BodyModel`.
    """

    _kind = "smplx"

    def __init__(
        self, asset: BodyAsset | str | os.PathLike[str], *, num_expression: int | None = None, **options: Any
    ) -> None:
        """Options as in `BodyModel`."""
        asset = find_asset(asset)
        if num_expression is None:
            num_expression = usual_expressions(asset)
        super().__init__(asset, num_expression=num_expression, **options)


class MANO(_OfEveryAge):
    """A hand (Romero et al., SIGGRAPH Asia 2017); the root is the wrist, its 15 other joints the fingers'."""

    _kind = "mano"
