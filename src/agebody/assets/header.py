"""The header of a saved `BodyAsset`, which holds everything but the arrays: its JSON schema and its check.

``python -m agebody.assets.header > assets_spec/body_asset.schema.json`` writes the published schema.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from agebody.assets.asset import AssetError, BodyAsset, Metadata
from agebody.assets.signed import Signed, check_version

FORMAT_VERSION = 3
HEADER_KEY = "agebody"
"""The entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""

SPARSE_PARTS = {"data": "float", "indices": "int", "indptr": "int"}
"""The arrays of a compressed sparse row matrix; each is stored under ``<matrix name>.<part>``."""

_DTYPES = {"float": ["F32", "F64"], "int": ["I32"]}


def body_asset_schema(version: int = FORMAT_VERSION) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the header of a saved `BodyAsset`.

    Sizes that arrays share are letters in ``x-dims``, since the schema language cannot compare them.
    """
    tensors: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    required = ["__metadata__"]
    texts: dict[str, Any] = {"format_version": {"const": version}}
    if version > 1:
        texts["sha256"] = {
            "description": "checksum of the file, in which these digits are 64 zeros",
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
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


def read_header(signed: Signed) -> dict[str, Any]:
    """Check a safetensors header against the schema, and the file against its checksum; return the texts.

    Raises:
        AssetError: the header is not that of a `BodyAsset`, or of a newer format, or the file is damaged.
    """
    texts = signed.text(HEADER_KEY)
    version = texts.get("format_version") if isinstance(texts, dict) else None
    check_version(version, FORMAT_VERSION)
    known = version if isinstance(version, int) and 1 <= version <= FORMAT_VERSION else FORMAT_VERSION
    _check(signed.header, body_asset_schema(known), "the header")
    if version != 1:
        signed.check(texts)
    return texts


_TYPES = {"object": dict, "array": list, "string": str, "integer": int}


def _expect(where: str, right: bool, what: str) -> None:
    if not right:
        raise AssetError(f"{where}: expected {what}; get or save the file again")


def _check(value: Any, schema: dict[str, Any], where: str) -> None:
    """Check a JSON value against the part of the schema language that `body_asset_schema` uses."""
    if "const" in schema:
        _expect(where, value == schema["const"], f"{schema['const']}")
    if "enum" in schema:
        _expect(where, value in schema["enum"], f"one of {', '.join(schema['enum'])}")
    if "type" in schema:
        _expect(where, type(value) is _TYPES[schema["type"]], f"a JSON {schema['type']}")
    if "minimum" in schema:
        _expect(where, value >= schema["minimum"], f"at least {schema['minimum']}")
    if "pattern" in schema:
        pattern = schema["pattern"]
        _expect(where, re.search(pattern, value) is not None, f"text that matches {pattern}")
    if "contentSchema" in schema:
        _check(json.loads(value), schema["contentSchema"], f"{where}, JSON text")
    if isinstance(value, list):
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        _expect(where, least <= len(value) <= most, f"{least} to {most} entries, got {len(value)}")
        if "uniqueItems" in schema:
            _expect(where, len(set(map(str, value))) == len(value), "different entries")
        items = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        for i, (item, rule) in enumerate(zip(value, items, strict=True)):
            _check(item, rule, f"{where}, entry {i}")
    if isinstance(value, dict):
        missing = [name for name in schema.get("required", ()) if name not in value]
        _expect(where, not missing, f"an entry {', '.join(missing)}, which is missing")
        for name, entry in value.items():
            rules = [schema.get("properties", {}).get(name)]
            rules += [
                rule for key, rule in schema.get("patternProperties", {}).items() if re.search(key, name)
            ]
            rules = [rule for rule in rules if rule is not None]
            other = schema.get("additionalProperties", {})
            _expect(where, bool(rules) or other is not False, f"no entry {name!r}")
            for rule in rules or [other]:
                _check(entry, rule, f"{where}, {name}")


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
