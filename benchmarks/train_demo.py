"""Train a network on synthetic people of every age, on two cores, in about twenty minutes.

    make train-demo

It renders people (`agebody synthesize`), trains a network of 0.65 million parameters on 64 x 64 pixels with
`agebody.pipelines.train`, and compares it on unseen people with the mean pose of the training set, the best
constant prediction. The same seed gives the same numbers on the same machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import agebody
from agebody import cameras, losses, metrics, nets
from agebody.age import AGE_CLASSES, age_class
from agebody.draw import render
from agebody.losses import LossTerm, Objective, reprojection_loss
from agebody.nets.images import IMAGE_MEAN, IMAGE_STD
from agebody.pipelines.synthesis import Recipe, synthesize
from agebody.pipelines.train import Augmentation, TrainingData, TrainingSettings, predicted_values, train
from agebody.pipelines.train.data import Batch, batches

LAYOUT, SIDE, CELLS = agebody.LAYOUTS["hmr2_44"], 64, 16
POINTS = len(LAYOUT)


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return torch.relu(x + self.layers(x))


class Backbone(nn.Module):
    """Images of 64 x 64 pixels to 16 x 16 features that have seen all of it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def half(inside: int, outside: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
            )

        self.start = nn.Sequential(half(3, width // 2), half(width // 2, width), Block(width))
        self.coarse = nn.Sequential(
            half(width, 2 * width), Block(2 * width), half(2 * width, 2 * width), Block(2 * width)
        )
        self.back = nn.Conv2d(2 * width, width, 1)
        self.end = Block(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, 16, 16)."""
        fine = self.start(images)
        coarse = nn.functional.interpolate(self.back(self.coarse(fine)), scale_factor=4.0, mode="bilinear")
        return self.end(fine + coarse)


class Head(nn.Module):
    """Where each keypoint is, as the mean of a map of probabilities, and a body from these places.

    The places are an output too, so the objective can supervise them: without them, a network of this size
    memorises its training images.
    """

    def __init__(self, body: agebody.SMPLA, width: int = 32, seen: int = 8, hidden: int = 384) -> None:
        super().__init__()
        self.maps, self.features = nn.Conv2d(width, POINTS, 1), nn.Conv2d(width, seen, 1)
        self.sizes = {"pose": 6 * body.num_joints, "betas": body.num_betas + 1, "camera": 3}
        self.lift = nn.Sequential(
            nn.Linear(POINTS * (3 + seen), hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, sum(self.sizes.values())),
        )
        nn.init.normal_(self.lift[-1].weight, std=0.001)
        nn.init.zeros_(self.lift[-1].bias)
        line = (torch.arange(CELLS) + 0.5) / CELLS - 0.5
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("grid", grid, persistent=False)
        for name, value in nets.start_readouts(body).items():
            self.register_buffer(f"start_{name}", value, persistent=False)

    def forward(self, features: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return read-outs."""
        heat = self.maps(features).flatten(2).softmax(-1)
        places = heat @ self.grid
        sure = heat.square().sum(-1, keepdim=True).sqrt()
        seen = heat @ self.features(features).flatten(2).mT
        found = self.lift(torch.cat((4 * places, sure, seen), -1).flatten(1))
        named = dict(zip(self.sizes, found.split(list(self.sizes.values()), -1), strict=True))
        return {name: value + getattr(self, f"start_{name}") for name, value in named.items()} | {
            "places": places
        }


def objective() -> Objective:
    """Return AionHMR's objective with what a small network needs: places of keypoints, and larger weights."""
    terms = losses.aionhmr_objective().without("adversarial").terms
    terms["places"] = LossTerm(0.1, _places, ("places",), ("keypoints_2d",))
    weights = {"body_pose": 0.01, "global_orient": 0.02, "betas": 0.005}
    return Objective(terms, reduction="sum").reweighted(**weights)


def _places(prediction: dict, target: dict, reduction: str) -> Tensor:
    inside = (target["keypoints_2d"].abs() < 0.5).all(-1)
    weights = target["keypoints_2d_weights"] * inside
    return reprojection_loss(prediction["places"], target["keypoints_2d"], weights=weights, reduction="sum")


def everyone(data: TrainingData) -> Batch:
    """Return all people of a data set without augmentation, as they are numbered."""
    return data.__getitems__(range(sum(data.people)))


def errors(points: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
    """Return MPJPE and PA-MPJPE [mm] by age class, and over all."""
    true, weights = batch.target["keypoints_3d"], batch.target["keypoints_3d_weights"]
    kinds = age_class(batch.target["age_offset"])
    found = {}
    for i, name in [(-1, "all"), *((i, kind.name) for i, kind in enumerate(AGE_CLASSES))]:
        rows = torch.ones_like(kinds, dtype=torch.bool) if i < 0 else kinds == i
        some = points[rows], true[rows]
        given = {"weights": weights[rows]}
        found[name] = (
            1000 * float(metrics.mpjpe(*some, layout=LAYOUT, **given)),
            1000 * float(metrics.pa_mpjpe(*some, **given)),
        )
    return found


def predict(network: nets.Regressor, batch: Batch) -> tuple[nets.Prediction, dict[str, Tensor]]:
    """Return predictions without gradients."""
    network.eval()
    with torch.no_grad():
        prediction = network(batch.images)
        return prediction, predicted_values(prediction, network.body, batch.box, batch.camera)


def draw(network: nets.Regressor, batch: Batch, path: Path, count: int = 12, side: int = 144) -> None:
    """Draw crops, the predicted bodies over them, and the same bodies from the side."""
    prediction, _ = predict(network, batch)
    body = network.body
    transl = cameras.weak_to_translation(prediction.camera, batch.box, batch.camera)
    with torch.no_grad():
        vertices = body(**prediction.arguments(), transl=transl).vertices
    mean, sd = (batch.images.new_tensor(part)[:, None, None] for part in (IMAGE_MEAN, IMAGE_STD))
    rows = []
    for i in range(count):
        pixels = ((batch.images[i] * sd + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        photo = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
        camera = cameras.Camera(batch.camera.focal[i], batch.camera.center[i])
        crop = cameras.Camera(
            camera.focal * side / (batch.box[i, 2] - batch.box[i, 0]),
            (camera.center - batch.box[i, :2]) * side / (batch.box[i, 2] - batch.box[i, 0]),
        )
        over = render(vertices[i], body.faces, crop, size=(side, side), background=photo).rgba[..., :3]
        middle = vertices[i].mean(0)
        turned = (vertices[i] - middle) @ torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]) + middle
        other = render(turned, body.faces, crop, size=(side, side)).rgba[..., :3]
        rows.append(np.concatenate((photo, over, other), 0))
    Image.fromarray(np.concatenate(rows, 1)).save(path)


def main() -> None:
    """Render, train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out/train"))
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)  # more would wait for each other on cores that others use
    body = agebody.SMPLA(agebody.mannequin(), pose_format="matrix")
    began = time.perf_counter()
    look = {"size": (96, 96), "extent": (0.6, 1.0), "truncated": 0.1, "occluders": 0.1}
    folders = given.output / "shards", given.output / "held_out"
    for folder, count, seed in zip(folders, (given.images, 240), (0, 9), strict=True):
        synthesize(body, folder, Recipe(count, seed=seed, **look))
    print(f"{given.images} images after {time.perf_counter() - began:.0f} s")
    varied = Augmentation(scale=0.2, focused=0.0)
    data = TrainingData(folders[0], size=(SIDE, SIDE), augmentation=varied, box_scale=1.0)
    known = everyone(TrainingData(folders[1], size=(SIDE, SIDE)))
    torch.manual_seed(0)
    network = nets.Regressor(Backbone(), Head(body), body)
    settings = TrainingSettings(
        given.steps,
        batch_size=given.batch_size,
        learning_rate=2e-3,
        weight_decay=1e-3,
        warmup=100,
        decay="cosine",
        clip_norm=20.0,
        ema=0.995,
        workers=given.workers,
        log_every=100,
        save_every=500,
    )

    def validate(network: nets.Regressor) -> dict[str, float]:
        found, pa = errors(predict(network, known)[1]["keypoints_3d"], known)["all"]
        return {"held_out_mpjpe": found, "held_out_pa": pa}

    trained = train(network, data, objective(), given.output / "run", settings, validate=validate)
    if trained.averaged is not None:
        network.load_state_dict(trained.averaged)
    seen = [*batches(TrainingData(folders[0], size=(SIDE, SIDE)), 250, steps=4)]
    points = torch.cat([one.target["keypoints_3d"] for one in seen])
    mean = (points - LAYOUT.center(points)).mean(0).expand(sum(known.images.shape[:1]), -1, -1)
    table = {
        "mean pose": errors(mean, known),
        "network": errors(predict(network, known)[1]["keypoints_3d"], known),
    }
    print(f"\n{'MPJPE / PA-MPJPE [mm]':>22}" + "".join(f"{name:>14}" for name in table["network"]))
    for name, row in table.items():
        print(f"{name:>22}" + "".join(f"{found:8.0f} /{pa:4.0f}" for found, pa in row.values()))
    (given.output / "errors.json").write_text(json.dumps(table, indent=2) + "\n")
    draw(network, known, given.output / "predictions.png")
    print(f"wrote {given.output / 'predictions.png'}; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
