"""The free realistic body, Anny in SMPL-A's form."""

from agebody.assets.anny.build import anny_body as anny_body
