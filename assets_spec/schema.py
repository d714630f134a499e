"""The JSON schema of the header of a saved `BodyAsset`, made from its fields.

``python assets_spec/schema.py > assets_spec/body_asset.schema.json`` writes the published one.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from agebody.assets.asset import BodyAsset, Metadata
from agebody.assets.io import FORMAT_VERSION, HEADER_KEY, SPARSE_PARTS

_DTYPES = {"float": ["F32", "F64"], "int": ["I32"]}


def body_asset_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the header of a saved `BodyAsset`.

    Sizes that arrays share are letters in ``x-dims``, since the schema language cannot compare them.
    """
    tensors: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    required = ["__metadata__"]
    texts: dict[str, Any] = {
        "format_version": {"const": FORMAT_VERSION},
        "sha256": {
            "description": "checksum of the file, in which these digits are 64 zeros",
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
        },
    }
    for field in dataclasses.fields(BodyAsset):
        kind, doc = field.metadata["kind"], field.metadata["doc"]
        if kind in _DTYPES:
            tensors[field.name] = _tensor(kind, field.metadata["dims"], doc, field.metadata["unit"])
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                required.append(field.name)
        elif kind == "sparse":
            parts = _sparse(field.metadata["dims"], doc)
            tensors |= {f"{field.name}.{part}": schema for part, schema in parts.items()}
            required += [f"{field.name}.{part}" for part in parts]
        elif kind == "text":
            texts[field.name] = {"description": doc, "x-dims": list(field.metadata["dims"])} | _names()
        elif kind == "regressors":
            texts[field.name] = {"description": doc, "type": "object", "additionalProperties": _names()}
            patterns = {
                rf"^{field.name}\.[\s\S]*\.{part}$": schema
                for part, schema in _sparse(("K", "V"), doc).items()
            }
        elif kind == "metadata":
            texts[field.name] = {"description": doc} | _metadata()
    header = {
        "type": "object",
        "properties": texts,
        "required": list(texts),
        "additionalProperties": False,
    }
    embedded = {"type": "string", "contentMediaType": "application/json", "contentSchema": header}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "BodyAsset",
        "description": "Header of a safetensors file that holds one body; assets_spec/README.md explains it.",
        "type": "object",
        "properties": {
            "__metadata__": {
                "type": "object",
                "properties": {HEADER_KEY: embedded},
                "required": [HEADER_KEY],
            },
            **tensors,
        },
        "patternProperties": patterns,
        "required": required,
        "additionalProperties": False,
    }


def _tensor(kind: str, dims: Any, doc: str, unit: str = "1") -> dict[str, Any]:
    size = {"type": "integer", "minimum": 0}
    return {
        "description": doc,
        "x-dims": list(dims),
        "x-unit": unit,
        "type": "object",
        "properties": {
            "dtype": {"enum": _DTYPES[kind]},
            "shape": {
                "type": "array",
                "prefixItems": [{"const": dim} if isinstance(dim, int) else size for dim in dims],
                "minItems": len(dims),
                "maxItems": len(dims),
            },
            "data_offsets": {"type": "array", "items": size, "minItems": 2, "maxItems": 2},
        },
        "required": ["dtype", "shape", "data_offsets"],
        "additionalProperties": False,
    }


def _sparse(dims: Any, doc: str) -> dict[str, Any]:
    """Return schemas of the three arrays of a sparse matrix; N is the number of its stored values."""
    rows, columns = dims
    docs = {
        "data": f"{doc}: values of a sparse ({rows}, {columns}) matrix, row by row",
        "indices": f"column of each of those values, below {columns}",
        "indptr": f"where each of the {rows} rows begins among the values, then where the last one ends",
    }
    sizes = {"data": ("N",), "indices": ("N",), "indptr": (f"{rows}+1",)}
    return {part: _tensor(kind, sizes[part], docs[part]) for part, kind in SPARSE_PARTS.items()}


def _names() -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def _metadata() -> dict[str, Any]:
    """Return the schema of the metadata: texts, except for the shape names and the sources."""
    properties: dict[str, Any] = {field.name: {"type": "string"} for field in dataclasses.fields(Metadata)}
    properties["shape_names"] = {"type": "array", "items": {"type": "string"}}
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    properties["sources"] = {"type": "object", "additionalProperties": digest}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(json.dumps(body_asset_schema(), indent=2))
