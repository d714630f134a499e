"""`agebody fit`: from keypoints to training labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agebody.files import make_folder
from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say, show_count, show_stages, show_table
from agebody.pipelines.cli.detect import choose_detector, read_or_detect, read_or_detect_views

if TYPE_CHECKING:
    from agebody.body import BodyModel
    from agebody.pipelines.labels.fit_folder import Written


SPEED_SD = 3.0
"""Standard deviation of the speed of a joint [m/s]: 0.1 m between frames at 30 frames per second."""


@app.command()
def fit(
    keypoints: Annotated[
        Path,
        options.argument(
            "A file of keypoints, or a folder with one per image, of COCO, OpenPose, AlphaPose, MMPose, "
            "Ultralytics, YOLO-pose, MediaPipe and others; or photographs, one or a folder; or a video; "
            "with --cameras, a folder with a video, or keypoints, of each camera.",
            "KEYPOINTS",
        ),
    ],
    output: options.OutputFolder,
    body: options.Body = "anny",
    detector: options.DetectorName = None,
    images: options.Images = None,
    annotations: options.Annotations = None,
    layout: options.Layout = None,
    size: options.ImageSize = None,
    focal: options.Focal = None,
    fov: options.Fov = None,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    min_confidence: options.MinConfidence = 0.0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "cpu",
    depth: Annotated[
        Path | None,
        options.option(
            "Folder of depth maps, **.npy** in metres or 16-bit **.png** in millimetres, named like the "
            "images; people are placed at these depths."
        ),
    ] = None,
    overlays: options.Overlays = 20,
    lifter: Annotated[
        bool | None,
        options.option(
            "Begin at the estimates of the lifter: better poses in less time. The default without --cameras, "
            "if the body has SMPL's joints.",
            "--lifter/--no-lifter",
        ),
    ] = None,
    video: Annotated[
        bool,
        typer.Option("--video", help="The images are frames of one video: one shape and age per person."),
    ] = False,
    cameras: Annotated[
        Path | None,
        options.option(
            "Calibration of synchronised cameras: **.toml** of Pose2Sim, **.qca.txt** of Qualisys, or a file "
            "of OpenCV. Videos, or folders of keypoints, are named like its cameras."
        ),
    ] = None,
    every: options.Every = 1,
    gap: Annotated[int, typer.Option(min=0, help="Longest gap in the track of a person [frames].")] = 15,
    shards: options.Shards = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Fit bodies to people in images, by their keypoints or by photographs, and write labels to train with.

    A body with hands is fitted to the hands and the face of whole-body files, too; others leave these points
    out. In a video, people are followed and fitted over time. **overlay.mp4** shows them.
    Of synchronised cameras all views are fitted at once, and the rows of the labels are per view.

    Writes **labels.npz** (everything), **train.npz** (for the code of HMR2 and AionHMR), **report.json**,
    **report.md** and **overlays/**. Every person is checked by the rules of InfantNet, CamSMPLify and SPIN;
    those without a flag of a bad fit are kept. Training code needs SMPL, with an infant template for
    children.

    Examples: `agebody fit keypoints.json --body ages.safetensors --images photos -o labels`,
    `agebody fit photos --detector movenet:multipose.tflite -o labels`, `agebody fit clip.mp4 -o labels`,
    `agebody fit videos --cameras calibration.toml -o labels`
    """
    from agebody.annotations.calibration import read_cameras
    from agebody.annotations.orders import WHOLE_BODY
    from agebody.annotations.photographs import read_exif_focals
    from agebody.annotations.tracks import link_people
    from agebody.annotations.videos import frame_rate, is_video, load_opencv
    from agebody.assets.asset import SMPL_JOINT_NAMES
    from agebody.detect import load_detector
    from agebody.detect.detector import DetectorError
    from agebody.nets import Lifter
    from agebody.pipelines.labels import fit_annotations, fit_folder
    from agebody.pipelines.labels.place_images import find_maps, place_images

    given: dict[str, Any] = options.read_lens(focal, fov)
    given |= options.read_ages(age_offset, age_class, years)
    if cameras is not None:
        alone = {"--focal": focal, "--fov": fov, "--annotations": annotations}
        for name in (name for name, value in alone.items() if value is not None):
            options.refuse(name, "it belongs to images of one camera, not to --cameras")
    else:
        detector = choose_detector(keypoints, detector)
    one_file = is_video(keypoints)
    video |= one_file or cameras is not None
    if every > 1 and detector is None and cameras is None:
        options.refuse("--every", "it belongs to videos and photographs, not to keypoints")
    if cameras is not None and lifter:
        options.refuse("--lifter", "it estimates single views, not those of --cameras")
    if video and depth is not None:
        options.refuse("--depth", "it places people of single images, not of a video")
    if shards and cameras is not None:
        options.refuse("--shards", "it needs images of one camera, not --cameras")
    if one_file and shards:
        advice = "`ffmpeg -i VIDEO frames/%06d.jpg`, then `agebody fit frames --video`"
        options.refuse("--shards", f"it needs frames as images: {advice}")
    if shards and images is None and detector is None:
        options.refuse("--shards", "give the images: --images DIR")
    drawn = images is not None or detector is not None or cameras is not None
    overlays = overlays if drawn else 0
    options.check_renderer(overlays, depth)
    with running(DetectorError) as bars:
        if video and overlays:
            load_opencv("a video", "agebody[video]")
        fit_folder.check_folder(output, overwrite=overwrite)
        finder = None if detector is None else load_detector(detector)  # fails before the body is built
        asset = options.load_body(body, bars)
        sought = layout or (WHOLE_BODY if options.has_hands(asset) else None)
        videos: dict[str, Path] = {}
        if cameras is not None:
            views, videos = read_or_detect_views(
                bars,
                keypoints,
                read_cameras(cameras),
                detector=finder,
                layout=sought,
                images=images,
                size=size,
                every=every,
                gap=gap // every,
            )
            found, images, given["cameras"] = views.people, None, views.cameras
        else:
            found, images = read_or_detect(
                bars,
                keypoints,
                detector=finder,
                layout=sought,
                images=images,
                size=size,
                annotations=annotations,
                every=every,
            )
        if video and cameras is None:
            if len({image.size for image in found.images}) > 1:
                fail(f"{keypoints}: expected frames of one size, got images of several")
            found = link_people(found, gap=gap // every)
        folder = images.parent if images is not None and images.is_file() and not one_file else images
        if focal is None and fov is None and folder is not None:
            found = read_exif_focals(found, folder)
        if depth is not None:
            find_maps(depth, {found.images[i].name: None for i in found.image.tolist()})
        rate = frame_rate(next(iter(videos.values()), keypoints)) / every if video else None
        if not len(found):
            why = "; ".join(f"{reason}: {count}" for reason, count in found.left_out)
            fail(f"{keypoints}: there is nobody to fit" + (f" ({why})" if why else ""))
        make_folder(output)
        fit_folder.check_folder(output, overwrite=overwrite)
        layer = options.make_layer(asset, device=device)
        if shards and not fit_folder.has_training_joints(layer.asset.joint_names):
            fail(f"--shards needs a body with SMPL's joints, got {layer.asset.metadata.name}")
        learnt = tuple(layer.asset.joint_names) == SMPL_JOINT_NAMES
        if lifter and not learnt:
            fail(f"--lifter needs a body with SMPL's 24 joints, got {layer.asset.metadata.name}")
        lifts = learnt and cameras is None if lifter is None else lifter
        began = time.perf_counter()
        labels = fit_annotations(
            layer,
            found,
            **given,
            min_confidence=min_confidence,
            batch_size=batch_size,
            lifter=Lifter.load().to(layer.device) if lifts else None,
            motion_sd=None if rate is None else SPEED_SD / rate,
            progress=show_count(bars, "fitting", len(found)),
        )
        unplaced = 0
        if depth is not None and len(labels):
            labels, rows = place_images(layer, labels, depth, metric=True, source=keypoints)
            unplaced = sum(not person["placed"] for row in rows for person in row["people"])
        seconds = time.perf_counter() - began
        written = fit_folder.write_folder(
            output,
            layer,
            labels,
            found,
            seconds=seconds,
            images=videos or folder,
            overlays=overlays,
            video_rate=rate if overlays else None,
            every=every,
            shards=shards,
            overwrite=overwrite,
            progress=show_stages(bars, "writing"),
        )
    notes = [f"{unplaced} of {len(labels)} people were not placed by their depth"] if unplaced else []
    show_written(output, layer, written, notes)


def show_written(output: Path, layer: BodyModel, written: Written, notes: list[str]) -> None:
    """Print what was found and written, and notes on standard error."""
    from agebody.pipelines.labels import fit_folder
    from agebody.pipelines.labels.summary import unknown_ages

    _show(written.summary, layer, fit_folder.has_training_joints(layer.asset.joint_names))
    unusable = [f"{name}: {why}" for name, why in written.unusable.items()]
    known = (*unknown_ages(written.summary["people_of_unknown_age"]), *written.summary["notes"])
    for line in (*notes, *options.one_age(layer), *known, *unusable[:5]):
        note(line)
    if len(unusable) > 5:
        note(f"{len(unusable) - 5} more images could not be used")
    if written.summary["kept"] < written.summary["people"] and any("overlay" in n for n in written.files):
        note("bodies that are not kept are red in the overlays")
    for name in written.files:
        say(f"wrote {output / name}")


def _show(summary: dict[str, Any], body: BodyModel, trains: bool) -> None:
    from agebody.pipelines.labels.summary import count_kept

    rows = []
    for row in summary["ages"]:
        numbers = [row["median_reprojection_px"], row["median_age_offset"]]
        medians = ["–" if number is None else f"{number:.2f}" for number in numbers]
        rows.append((row["age_class"], str(row["people"]), str(row["kept"]), *medians))
    lines = [f"{summary['seconds']:.1f} s, {summary['people_per_second']} people per second"]
    flags = [f"{name} {count}" for name, count in summary["flags"].items() if count]
    lines += [f"flags: {', '.join(flags)}"] if flags else []
    left_out = [f"{why} {count}" for why, count in summary["left_out"].items()]
    lines += [f"left out: {', '.join(left_out)}"] if left_out else []
    if summary["images_without_people"]:
        lines.append(f"images without people: {summary['images_without_people']}")
    if not trains:
        lines.append(f"no train.npz: the joints of {summary['body']} are not SMPL's")
    elif body.asset.metadata.kind not in ("smpl", "smil"):
        lines.append(f"betas are those of {summary['body']}; training code takes them for SMPL's")
    show_table(
        ("age class", "people", "kept", "median error [px]", "median age offset"),
        rows,
        title=f"{count_kept(summary)}, in {summary['images']} images",
        caption="\n".join(lines),
    )
