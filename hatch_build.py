"""What depends on the address of the repository: the links of the project, and those of its README."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def readme_for_index(text: str, repository: str) -> str:
    """Return the README as it stands on a package index, where a path leads nowhere.

    Args:
        text: The README, with links to files of the repository.
        repository: Its address, as ``https://HOST/OWNER/NAME``. Without one, links become plain text and
            pictures are left out.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, label, path = link.groups()
        if repository:
            return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/main/{path})"
        return "" if picture else label

    return LINK.sub(replaced, text)


class Hook(MetadataHookInterface):
    """Fill in ``readme`` and ``urls`` from ``repository`` of ``[tool.hatch.metadata.hooks.custom]``."""

    def update(self, metadata: dict) -> None:
        """Fill in the dynamic fields of the project."""
        repository = self.config["repository"].rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme_for_index(text, repository)}
        metadata["urls"] = {
            name: repository + path
            for name, path in {
                "Repository": "",
                "Issues": "/issues",
                "Changelog": "/blob/main/CHANGELOG.md",
            }.items()
            if repository
        }
