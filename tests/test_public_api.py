"""The public API as a snapshot: a change here needs a line in CHANGELOG.md."""

import inspect
from typing import Any

import agebody

NAMES = [
    "LAYOUTS", "MANO", "SMIL", "SMPL", "SMPLA", "SMPLH", "SMPLX", "AssetError",
    "BodyAsset", "BodyModel", "BodyOutput", "BodyParameters", "KeypointLayout", "Metadata", "Regressor",
    "ShapedBody", "anny_body", "export_smpl", "inspect_asset", "join_pose",
    "load_asset", "mannequin", "save_asset", "split_pose",
]  # fmt: skip
MODULES = [
    "age",
    "cameras",
    "crowd",
    "fitting",
    "losses",
    "measure",
    "metrics",
    "nets",
    "people",
    "rotations",
]
"""Modules that `import agebody` loads beside its names."""
PACKAGES = {
    "cameras": """
        Camera bev_to_translation box_around box_condition convert_axes convert_box
        convert_extrinsics convert_pixels field_limit from_crop from_pytorch3d
        mahmr_to_translation project_weak square_box to_crop to_pytorch3d torso_translation
        weak_to_translation
    """,
    "crowd": """
        Deviations HeightPrior height_class is_far mask_depths place_people refine_crowd
        rescale rest_height surface_depth
    """,
    "fitting": """
        AIONHMR Cloud Fit Plane SMPLIFY SMPLIFY_KIDS
        convert fit_keypoints fit_measurements fit_plane fit_points fit_scans fit_sequence
        fit_vertices
    """,
    "losses": """
        LossTerm MahalanobisPrior MaxMixturePrior Objective PoseDiscriminator
        acceleration_loss adversarial_loss age_class_loss age_offset_loss
        aionhmr_fitting_objective aionhmr_objective
        angular_velocity_loss betas_loss charbonnier depth_layer_loss fov_loss geodesic_loss
        gmof hmr2_objective huber hyperextension_prior joint_limits joint_limits_loss
        joint_limits_prior keypoints_3d_loss mesh_to_scan_loss metric_aware_objective
        part_vertices person_intersection_loss plane_height plane_loss relative_metric_loss
        reprojection_loss rotation_loss scan_to_mesh_loss self_intersection_loss shape_prior
        smplify_x_objective tals velocity_loss
    """,
    "measure": """
        A2B_MEASUREMENTS Distance Girth Height MEASUREMENTS Measurements find_landmarks
        plane_section section_length stature
    """,
    "metrics": """
        acceleration_error depth_relations detection_scores foot_sliding jitter joint_errors
        joint_limit_violations keypoint_ap match match_keypoints mpckh mpjae mpjpe mrpe
        normalized_error oks oks_sigmas pa_mpjpe pcdr pck pck_auc pcod per_joint procrustes
        pve reference_length root_trajectory_error stature_error w_mpjpe
    """,
}
"""Public names of the packages."""

PARAMETERS = {
    "BodyModel": "asset num_betas num_expression pose_format backend dtype device corrective_dtype",
    "SMPLA": "asset smil infant_threshold transition infant_corrective_scale options",
    "BodyModel.forward": (
        "self parameters betas body_pose global_orient transl age_offset expression pose_format"
    ),
    "BodyModel.keypoints": (
        "self layout parameters betas body_pose global_orient transl age_offset expression pose_format"
    ),
    "BodyModel.shape": "self parameters betas age_offset expression",
    "BodyModel.face_contour": (
        "self parameters betas body_pose global_orient transl age_offset expression pose_format"
    ),
    "ShapedBody.__call__": "self parameters body_pose global_orient transl pose_format",
    "ShapedBody.keypoints": "self layout parameters body_pose global_orient transl pose_format",
    "ShapedBody.move": "self rotation translation global_orient transl pose_format",
    "KeypointLayout.from_regressor": "matrix names name edges root",
    "load_asset": "path infant_template regressors gender",
    "save_asset": "asset path overwrite",
    "export_smpl": "asset path overwrite",
    "inspect_asset": "path",
    "mannequin": "",
    "anny_body": "hands cache_dir rebuild progress",
}


def test_names():
    assert sorted(agebody.__all__) == sorted(NAMES + MODULES)
    assert all(hasattr(agebody, name) for name in NAMES)
    assert {*agebody.__all__} < {*dir(agebody)}
    assert all(inspect.ismodule(getattr(agebody, name)) for name in MODULES)


def test_names_of_the_packages():
    for package, names in PACKAGES.items():
        assert sorted(getattr(agebody, package).__all__) == sorted(names.split()), package
        assert all(hasattr(getattr(agebody, package), name) for name in names.split())


def test_parameters():
    for path, expected in PARAMETERS.items():
        target: Any = agebody
        for part in path.split("."):
            target = getattr(target, part)
        assert " ".join(inspect.signature(target).parameters) == expected, path


def test_options_are_keyword_only():
    for path in PARAMETERS:
        target: Any = agebody
        for part in path.split("."):
            target = getattr(target, part)
        free = [
            p.name
            for p in inspect.signature(target).parameters.values()
            if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
        ]
        assert free in ([], ["translation"], ["parameters"]), path


def test_fields():
    assert agebody.BodyOutput._fields == ("vertices", "joints", "joint_transforms", "full_pose")


def test_everything_public_is_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(agebody, name)) or name == "LAYOUTS", name
