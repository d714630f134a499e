"""`agebody predict`: from photographs to labels with a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from agebody.files import make_folder
from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, running, show_count, show_stages
from agebody.pipelines.cli.detect import choose_detector, read_or_detect
from agebody.pipelines.cli.fit import show_written


@app.command()
def predict(
    photographs: Annotated[
        Path,
        options.argument(
            "Photographs, one or a folder; or with **--images** a file of people with boxes or "
            "keypoints, such as COCO's annotations and results.",
            "PHOTOGRAPHS",
        ),
    ],
    output: options.OutputFolder,
    checkpoint: Annotated[
        Path | None, options.option("File of the network's weights: HMR2, AionHMR, CameraHMR, or your own.")
    ] = None,
    body: options.Body = "anny",
    num_betas: Annotated[
        int | None, options.option("Betas of the network: 10 by default; CameraHMR has 16 for SMPL-X.")
    ] = None,
    detector: options.DetectorName = None,
    images: options.Images = None,
    annotations: options.Annotations = None,
    layout: options.Layout = None,
    size: options.ImageSize = None,
    focal: options.Focal = None,
    fov: options.Fov = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Fit bodies to the keypoints, with the prediction as a prior.")
    ] = False,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of people to predict at once.")] = 32,
    device: options.Device = "cpu",
    overlays: options.Overlays = 20,
    shards: options.Shards = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict bodies of people in photographs with a network, and write labels as `agebody fit` does.

    The body has to be the one that the network was trained for: SMPL for HMR2, SMPL with an infant template
    for AionHMR.

    Example: `agebody predict photos --checkpoint aionhmr.ckpt --body ages.safetensors -o labels`
    """
    from agebody.annotations.photographs import read_exif_focals
    from agebody.detect import load_detector
    from agebody.detect.detector import DetectorError
    from agebody.nets import load_checkpoint
    from agebody.nets.checkpoints import WHERE
    from agebody.pipelines.labels import fit_folder, predict_annotations

    if checkpoint is None:
        fail(f"--checkpoint: give the file of a network's weights; agebody ships none. {WHERE}")
    if not checkpoint.exists():
        fail(f"{checkpoint}: no such file. {WHERE}")
    given: dict[str, Any] = options.read_lens(focal, fov)
    ages = options.read_ages(age_offset, age_class, years)
    stated = options.given_options(ages)
    if stated and not refine:
        options.refuse(stated[0], "the network tells the age; one counts with --refine")
    detector = choose_detector(photographs, detector)
    if images is None and detector is None:
        options.refuse("--images", f"give the photographs that {photographs} is about")
    options.check_renderer(overlays)
    unusable: dict[str, str] = {}
    with running(DetectorError, ValueError) as bars:
        fit_folder.check_folder(output, overwrite=overwrite)
        finder = None if detector is None else load_detector(detector)  # fails before the body is built
        asset = options.load_body(body, bars)
        layer = options.make_layer(asset, device=device, num_betas=num_betas)
        if shards and not fit_folder.has_training_joints(layer.asset.joint_names):
            fail(f"--shards needs a body with SMPL's joints, got {layer.asset.metadata.name}")
        last = options.make_layer(asset, device=device, pose_format="matrix", num_betas=num_betas)
        try:
            network = load_checkpoint(checkpoint, last).network.to(layer.device)
        except ValueError as error:
            fail(f"{checkpoint}: {str(error).removeprefix(f'{checkpoint}: ')}")
        found, images = read_or_detect(
            bars,
            photographs,
            detector=finder,
            layout=layout,
            images=images,
            size=size,
            annotations=annotations,
            boxes_suffice=True,
        )
        assert images is not None
        if focal is None and fov is None:
            found = read_exif_focals(found, images)
        if len(found):
            make_folder(output)
        began = time.perf_counter()
        labels = predict_annotations(
            network,
            layer,
            found,
            images,
            **given,
            **ages,
            refine=refine,
            batch_size=batch_size,
            unreadable=lambda name, error: unusable.update({name: str(error)}),
            progress=show_count(bars, "predicting", len(found)),
        )
        written = fit_folder.write_folder(
            output,
            layer,
            labels,
            found,
            seconds=time.perf_counter() - began,
            images=images.parent if images.is_file() else images,
            overlays=overlays,
            shards=shards,
            overwrite=overwrite,
            progress=show_stages(bars, "writing"),
        )
    show_written(output, layer, written._replace(unusable=unusable | written.unusable), [])
