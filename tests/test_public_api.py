"""The public API as a snapshot: a change here needs a line in CHANGELOG.md."""

import inspect

import agebody

NAMES = [
    "LAYOUTS", "SMIL", "SMPL", "SMPLA", "AssetError", "AssetReport", "BodyAsset", "BodyModel",
    "BodyOutput", "KeypointLayout", "Metadata", "Regressor", "ShapedBody", "anny_body",
    "export_smpl_npz", "export_smpl_pkl", "inspect_asset", "load_asset", "mannequin", "save_asset",
]  # fmt: skip
MODULES = ["age", "cameras", "losses", "measure", "metrics", "rotations"]
"""What `import agebody` brings beside its names."""

PARAMETERS = {
    "BodyModel": "asset num_betas pose_format backend dtype device corrective_dtype",
    "SMPLA": "asset smil infant_threshold transition infant_corrective_scale options",
    "BodyModel.forward": "self betas body_pose global_orient transl age_offset pose_format",
    "BodyModel.keypoints": "self layout betas body_pose global_orient transl age_offset pose_format",
    "BodyModel.shape": "self betas age_offset",
    "ShapedBody.__call__": "self body_pose global_orient transl pose_format",
    "ShapedBody.keypoints": "self layout body_pose global_orient transl pose_format",
    "ShapedBody.move": "self rotation translation global_orient transl pose_format",
    "KeypointLayout.from_regressor": "matrix names name edges root",
    "load_asset": "path infant_template regressors gender",
    "save_asset": "asset path overwrite",
    "export_smpl_npz": "asset path overwrite",
    "export_smpl_pkl": "asset path overwrite",
    "inspect_asset": "path",
    "mannequin": "",
    "anny_body": "cache_dir rebuild progress",
}


def test_names():
    assert sorted(agebody.__all__) == sorted(NAMES + MODULES)
    assert all(hasattr(agebody, name) for name in NAMES)
    assert all(inspect.ismodule(getattr(agebody, name)) for name in MODULES)


def test_parameters():
    for path, expected in PARAMETERS.items():
        target = agebody
        for part in path.split("."):
            target = getattr(target, part)
        assert " ".join(inspect.signature(target).parameters) == expected, path


def test_options_are_keyword_only():
    for path in PARAMETERS:
        target = agebody
        for part in path.split("."):
            target = getattr(target, part)
        free = [
            p.name
            for p in inspect.signature(target).parameters.values()
            if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
        ]
        assert free in ([], ["translation"]), path


def test_fields():
    assert agebody.BodyOutput._fields == ("vertices", "joints", "joint_transforms", "full_pose")


def test_everything_public_is_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(agebody, name)) or name == "LAYOUTS", name
