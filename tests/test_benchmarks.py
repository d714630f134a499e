"""The scripts in benchmarks/: what they count, what they aim at, and the page made of their results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bodies import random_body
from PIL import Image

import agebody
from agebody.pipelines.bench import sample_arguments

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports one of the scripts, which import each other by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def timed(contender, batch, median, **extra):
    spread = {"median_s": median, "low_s": 0.9 * median, "high_s": 1.1 * median, "calls": 9}
    return {"contender": contender, "batch": batch, **spread, **extra}


def results(subject, rows, **extra):
    provenance = {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef",
        "processor": "P",
        "threads": 1,
        "cpu_capability": "AVX2",
        "python": "3.11",
        "versions": {"torch": "2", "anny": None},
    }
    return {"subject": subject, "device": "cpu", "rows": rows, "absent": {}, "provenance": provenance} | extra


def test_page_is_made_of_the_results(script):
    report = script("report")
    found = report.load()
    assert report.PAGE.read_text() == report.page(found), "run: python benchmarks/report.py"
    readme = report.README.read_text()
    assert report.with_speed_row(readme, found) == readme, "run: python benchmarks/report.py"
    assert report.speed_row(found) in readme
    for path, text in report.pages_with_tables(found).items():
        assert path.read_text() == text, "run: python benchmarks/report.py"


def test_pictures_show_the_results(script):
    report, plots = script("report"), script("plots")
    expected = {}
    for device, found in report.load().items():
        for name in report.plots_of(found):
            expected[f"bench_{name}_{device}.png"] = plots.fingerprint(plots.drawn_from(name, found))
    files = {path.name: path for path in report.IMAGES.glob("bench_*.png")}
    assert set(files) == set(expected)
    for name, path in files.items():
        with Image.open(path) as image:
            assert image.info["Description"] == expected[name], f"{name}: run python benchmarks/report.py"


def test_missed_targets_and_missing_figures_are_named(script):
    pages = script("pages")
    forward = results(
        "forward",
        [
            timed("smplx", 1, 2.4e-3),
            timed("agebody torch", 1, 1e-3),
            timed("smplx", 64, 2.4e-3),
            timed("agebody torch", 64, 1e-3),
            {"contender": "smplfitter", "batch": 64, "failed": "RuntimeError: a | and a `tick`"},
            {"contender": "smplfitter", "batch": 1, "failed": "does not fit in memory"},
        ],
        absent={"body-models warp": "ModuleNotFoundError: No module named 'warp'"},
    )
    text = pages.page({"cpu": {"forward": forward}, "cuda": {}})
    assert "| Forward | 1 | agebody torch | times as fast as smplx | 2.40 |" in text
    assert "| Forward | 256 | agebody torch | times as fast as smplx | not measured |" in text
    targets = pages.targets_met({"cpu": {"forward": forward}, "cuda": {}})
    said = "Forward, B = {}, agebody torch, times as fast as smplx: "
    assert "missed: " + said.format(1) + "2.40, target ≥ 2.50" in targets
    assert "met: " + said.format(64) + "2.40, target ≥ 2.20" in targets
    assert "not measured: " + said.format(256) + "target ≥ 3.00" in targets
    assert "| 64 | 15.6 | 37.5 | failed |" in text
    assert "no memory" in text
    assert "- smplfitter, B = 64: `RuntimeError: a / and a 'tick'`" in text
    assert "- body-models warp (forward): `ModuleNotFoundError: No module named 'warp'`" in text
    assert "python benchmarks/memory.py --device cpu" in text
    gpu = text[text.index("## On a GPU") :]
    assert "There are no figures yet" in gpu
    assert "make gpu" in gpu


@pytest.mark.parametrize(
    ("measure", "against", "bound", "expected", "met"),
    [
        ("times as fast", "smplx", 3.9, 4.0, True),
        ("times as fast", "smplx", 4.1, 4.0, False),
        ("times the time", "smplx", 0.3, 0.25, True),
        ("times the time", "smplx", 0.2, 0.25, False),
        ("times the memory", "smplx", 0.6, 0.5, True),
        ("bodies/s", None, 3000, 3200, True),
        ("bodies/s", None, 3300, 3200, False),
        ("µs a call", None, 20000, 20000, True),
        ("GB/s share", None, 0.7, 0.6, False),
        ("times the error", "smplx", 1, 0.5, True),
        ("pixels", None, 1, 1.5, False),
        ("% converged", None, 99, 98, False),
        ("% of stature", None, 3, 2, True),
    ],
)
def test_targets(script, measure, against, bound, expected, met):
    targets = script("targets")
    rows = [
        timed(
            "agebody warp",
            64,
            0.02,
            peak_bytes=10,
            bytes=12e9,
            px=2,
            px_median=1.5,
            converged_mean=0.98,
            stature_median=0.02,
        ),
        timed("agebody warp", 64, 0.5, which="forward + backward"),
        timed("smplx", 64, 0.08, peak_bytes=20, px=4),
    ]
    found = {"forward": results("forward", rows, ceilings={"copy_bytes": 1e12})}
    target = targets.Target("cpu", "forward", 64, "agebody warp", measure, bound, against)
    achieved = target.achieved(found)
    assert achieved == pytest.approx(expected)
    assert target.met(achieved) == met


def test_a_slow_peer_is_compared_by_the_time_of_one_body(script):
    rows = [timed("ours", 64, 0.5), timed("slow", 16, 100.0)]
    target = script("targets").Target("cpu", "fits", 64, "ours", "times as fast", 100, "slow", 16)
    assert target.achieved({"fits": results("fits", rows)}) == pytest.approx((100 / 16) / (0.5 / 64))


def test_targets_without_a_figure(script):
    targets = script("targets")
    rows = [timed("agebody warp", 1, 1.0), {"contender": "smplx", "batch": 1, "failed": "x"}]
    found = {"forward": results("forward", rows), "precision": results("precision", [], errors=[])}

    def achieved(subject, batch, measure, against=None):
        return targets.Target("cpu", subject, batch, "agebody warp", measure, 1, against).achieved(found)

    assert achieved("forward", 1, "times as fast", "smplx") is None
    assert achieved("forward", 64, "bodies/s") is None
    assert achieved("backward", 1, "bodies/s") is None
    assert achieved("precision", 1, "mm") is None


def test_every_target_can_be_measured(script):
    targets, pages, peers = script("targets"), script("pages"), script("peers")
    for target in targets.TARGETS:
        assert target.device in pages.DEVICES
        assert target.subject in pages.SUBJECTS
        module = script(target.subject)
        batches = getattr(module, "BATCHES", script("harness").BATCHES)
        assert target.batch in batches[target.device], target
        name = target.contender.removesuffix(" graph").removesuffix(" bfloat16").removesuffix(" float16")
        contenders = getattr(module, "CONTENDERS", peers.LOADERS)
        assert name in contenders
        assert target.against in (None, "product", "roofline", *contenders)


def test_every_subject_has_a_script(script):
    for subject in script("pages").SUBJECTS:
        module = script(subject)
        assert callable(module.main)
        assert module.__doc__


def test_roofline_counts_nine_megaflops_and_83_kilobytes_a_body(script):
    ceilings = script("ceilings")
    sizes = {"num_coefficients": 218, "num_vertices": 6890, "batch": 4096}
    arithmetic = ceilings.Ceilings(copy_bytes=1e30, float32_flops=1.0, bfloat16_flops=None)
    memory = ceilings.Ceilings(copy_bytes=1.0, float32_flops=1e30, bfloat16_flops=None)
    assert ceilings.blend_roofline(arithmetic, **sizes) / 4096 == pytest.approx(9.01e6, rel=1e-3)
    assert ceilings.blend_roofline(memory, **sizes) / 4096 == pytest.approx(82_680 + 872 + 4_401, rel=1e-3)
    assert ceilings.blend_roofline(arithmetic, **sizes, products=2) / 4096 == pytest.approx(18.02e6, rel=1e-3)
    assert ceilings.blend_roofline(arithmetic, **{**sizes, "batch": 64}) is None, "64 surfaces fit in a cache"


def test_ceilings_are_measured(script, monkeypatch):
    ceilings = script("ceilings")
    monkeypatch.setitem(ceilings.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(ceilings.MATRIX_SIDE, "cpu", 64)
    found = ceilings.measure(torch.device("cpu"), 0)
    assert found.copy_bytes > 1e8
    assert found.float32_flops > 1e7
    assert found.bfloat16_flops is None


def test_kernels_are_all_counted(script, mannequin_asset):
    kernels, package = script("kernels"), pytest.importorskip("agebody_kernels")
    found = kernels.operators(package)
    assert len(found) >= 5
    for name, operator in found.items():
        case = kernels.CASES[name](package, mannequin_asset)
        kernels.check(operator, case, torch.device("cpu"))
        batch = 3
        rows = case.rows(batch)
        shapes = operator.shapes(*rows, *case.constants)
        outputs = sum(torch.Size(shape).numel() for shape in shapes)
        inputs = sum(row.numel() for row in rows)
        if name != "regress_points":  # which reads only the vertices that its points are made of
            assert case.forward(batch).numbers >= inputs + outputs - 3 * 6890 * batch * (
                name == "blend_and_skin"
            )
        assert case.backward(batch).numbers >= outputs + inputs
        assert case.backward(batch).flops >= case.forward(batch).flops > 0


def test_an_uncounted_kernel_is_an_error(script):
    kernels = script("kernels")
    renamed = type("Package", (), {"OPERATORS": {"new_kernel": None}})
    with pytest.raises(ValueError, match="count bytes and operations of new_kernel"):
        kernels.operators(renamed)


def test_out_of_memory_is_distinguished_from_other_failures(script):
    harness = script("harness")

    def refuse(error):
        def function():
            raise error

        return function

    assert harness.attempt(lambda: None) is None
    assert harness.attempt(refuse(torch.cuda.OutOfMemoryError("x"))) == "does not fit in memory"
    no_memory = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert harness.attempt(refuse(no_memory)) == "does not fit in memory"
    assert harness.attempt(refuse(RuntimeError("a\nb"))) == "RuntimeError: a b"


def test_peers_agree(script, mannequin_asset, tmp_path):
    peers = script("peers")
    files = peers.Files.write(mannequin_asset, tmp_path, torch.device("cpu"))
    names = ["agebody torch", "smplx", "smplfitter"]
    found, absent = peers.load(names, files)
    assert [contender.name for contender in found] == names
    assert absent == {}
    given = sample_arguments(2)
    first, *others = found
    for other in others:
        torch.testing.assert_close(other.forward(**given), first.forward(**given), rtol=0, atol=4e-6)
        torch.testing.assert_close(other.keypoints(**given), first.keypoints(**given), rtol=0, atol=4e-6)
    posed = first.shape(given.pop("betas"))(**given)
    assert posed.shape == (2, 6890, 3)


def test_an_absent_peer_is_named(script, mannequin_asset, tmp_path, monkeypatch):
    peers = script("peers")
    monkeypatch.setitem(sys.modules, "smplx", None)
    files = peers.Files.write(mannequin_asset, tmp_path, torch.device("cpu"))
    found, absent = peers.load(["agebody torch", "smplx"], files)
    assert [contender.name for contender in found] == ["agebody torch"]
    assert absent["smplx"].startswith("ModuleNotFoundError: ")


def test_no_step_on_a_gpu_stops_the_next(script, tmp_path):
    gpu = script("gpu")
    ends = {"fails": "raise SystemExit(3)", "hangs": "import time; time.sleep(60)", "works": "print('done')"}
    limits = {"hangs": 0.5}
    steps = [gpu.Step(name, ["-c", code], limits.get(name, 60)) for name, code in ends.items()]
    failed = gpu.run(steps, tmp_path)
    assert [line.split(" (")[0] for line in failed] == ["fails: failed with 3", "hangs: ended after 0 s"]
    assert (tmp_path / "03_works.log").read_text() == "done\n"
    assert (tmp_path / "results.tar").stat().st_size
    for device in ("cpu", "cuda"):
        for step in gpu.plan(device, quick=False):
            assert all((SCRIPTS.parent / part).exists() for part in step.command if part.endswith(".py"))


def test_the_objective_is_that_of_plain_torch(script):
    objective = script("objective")
    gen = torch.Generator().manual_seed(0)
    points = torch.randn(4, 17, 3, generator=gen, dtype=torch.float64) + torch.tensor([0, 0, 5.0])
    target = tuple(part.double() for part in objective.sample_target(4, torch.device("cpu")))
    torch.testing.assert_close(objective.ours(points, target), objective.theirs(points, target))


def test_scripts_run(tmp_path):
    output = tmp_path / "results.json"
    options = ["--seconds", "0", "--batch", "2", "--threads", "1", "--output", output, "--commit", "abc"]
    command = [sys.executable, SCRIPTS / "forward.py", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = json.loads(output.read_text())
    assert found["subject"] == "forward"
    assert found["provenance"]["commit"] == "abc"
    names = {row["contender"] for row in found["rows"] if row["median_s"] > 0}
    assert {"agebody torch", "smplx"} <= names
    assert names | set(found["absent"]) >= {
        "agebody torch",
        "agebody warp",
        "smplx",
        "body-models torch",
        "body-models warp",
        "smplfitter",
        "soma warp",
    }


def test_figures_of_a_busy_machine_are_refused_or_marked(script, monkeypatch):
    harness, pages, provenance = script("harness"), script("pages"), script("provenance")
    monkeypatch.setattr(harness, "others_cores", lambda seconds: 1.5)
    monkeypatch.setattr(agebody, "mannequin", random_body)
    monkeypatch.setattr(sys, "argv", ["forward.py"])
    with pytest.raises(SystemExit, match=r"other programs use 1\.5 cores.*--busy"):
        harness.Session("forward", None)
    monkeypatch.setattr(sys, "argv", ["forward.py", "--busy"])
    harness.Session("forward", None)._folder.cleanup()
    found = {"forward": results("forward", [])}
    assert "not quiet" not in pages._machine(found)
    found["forward"]["provenance"]["others_cores"] = 1.5
    assert "**not quiet: other programs used up to 1.5 cores meanwhile**" in pages._machine(found)
    # Two seconds of CPU time of others in two seconds; this process and its children do not count.
    begin, end = (0.0, 10.0), (2.0, 12.0)
    monkeypatch.setattr(provenance, "_BEGIN", begin)
    monkeypatch.setattr(provenance, "_busy", lambda: end)
    assert provenance.others_cores() == 1.0
    monkeypatch.setattr(provenance, "_busy", lambda: (2.0, float("nan")))
    assert provenance.others_cores() is None


def test_installed_packages_are_not_collected(script, tmp_path):
    packages, there = script("gpu_packages"), tmp_path / "there.txt"
    there.write_text("# of the other machine\n-e .\nNumPy==2.5.2\npackaging @ file:///somewhere\n\n")
    skipped = packages.listed(there)
    assert skipped == {"numpy", "packaging"}
    assert {"numpy", "packaging"} <= set(packages.needed(set()))
    assert not skipped & set(packages.needed(skipped))
