"""Print the published schema: ``python -m agebody.assets.schema > assets_spec/body_asset.schema.json``."""

import json

from agebody.assets.header import body_asset_schema


def schema_text() -> str:
    """Return the text of ``assets_spec/body_asset.schema.json``."""
    return json.dumps(body_asset_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
