"""The published schema is the code's own, and saved files obey it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from model_files import write_kid_template, write_smpl_pkl

from agebody.assets.asset import AssetError, BodyAsset, Metadata
from agebody.assets.header import FORMAT_VERSION, HEADER_KEY, body_asset_schema, read_header
from agebody.assets.io import load_asset, save_asset
from agebody.assets.schema import schema_text

SPEC = Path(__file__).parents[1] / "assets_spec"


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """The safetensors header of a saved SMPL-A body, read as another language would."""
    folder = tmp_path_factory.mktemp("schema")
    write_smpl_pkl(folder / "SMPL_NEUTRAL.pkl", num_vertices=50)
    write_kid_template(folder / "kid.npy", num_vertices=50)
    points = np.full((19, 50), 1 / 50)
    body = load_asset(
        folder / "SMPL_NEUTRAL.pkl", infant_template=folder / "kid.npy", regressors={"j19": points}
    )
    save_asset(body, folder / "body")
    content = (folder / "body").read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_the_published_schema_is_the_code_s():
    assert (SPEC / "body_asset.schema.json").read_text() == schema_text()


def test_saved_headers_obey_the_schema(header):
    texts = read_header(header)
    assert texts["format_version"] == FORMAT_VERSION
    schema = body_asset_schema()
    allowed = set(schema["properties"])
    assert {name for name in header if not name.startswith("regressors.")} == allowed
    assert set(schema["required"]) < allowed


def test_the_schema_is_one_that_others_can_use(header):
    """An independent validator agrees, where one is installed."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = body_asset_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(header, schema)


def test_shared_sizes_agree(header):
    """The letters in `x-dims` mean one number each."""
    schema = body_asset_schema()["properties"]
    sizes = {}
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith("regressors."):
            continue
        for dim, size in zip(schema[name]["x-dims"], entry["shape"], strict=True):
            assert sizes.setdefault(dim, size) == size
    assert sizes["V"] == 50
    assert sizes["P"] == 9 * (sizes["J"] - 1)
    assert sizes["J+1"] == sizes["J"] + 1


def test_every_field_is_described():
    schema = json.dumps(body_asset_schema())
    texts = (SPEC / "README.md").read_text()
    for field in [*dataclasses.fields(BodyAsset), *dataclasses.fields(Metadata)]:
        assert f'"{field.name}' in schema
        assert f"`{field.name}" in texts, f"assets_spec/README.md says nothing of {field.name}"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda h: h.pop("shapedirs"), "shapedirs, which is missing"),
        (lambda h: h.update(extra=h["template"]), "no entry 'extra'"),
        (lambda h: h["template"].update(dtype="I32"), "dtype: expected one of F32, F64"),
        (lambda h: h["template"].update(shape=[50, 4]), "shape, entry 1: expected 3"),
        (lambda h: h["template"].update(shape=[-1, 3]), "shape, entry 0: expected at least 0"),
        (lambda h: h["template"].update(shape=[True, 3]), "expected a JSON integer"),
        (lambda h: h.update(template=[]), "template: expected a JSON object"),
        (lambda h: h["regressors.j19.data"].update(dtype="BF16"), "dtype: expected one of"),
        (lambda h: h["__metadata__"].pop(HEADER_KEY), "something else than a body"),
        (lambda h: h["__metadata__"].update({HEADER_KEY: 3}), "description is damaged"),
        (lambda h: h.update(__metadata__=None), "something else than a body"),
    ],
)
def test_other_headers_do_not(header, change, cause):
    changed = json.loads(json.dumps(header))
    change(changed)
    with pytest.raises(AssetError, match=cause):
        read_header(changed)
