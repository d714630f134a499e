"""Pose priors as files: SMPLify's and SMIL's are read without running them, ours are read back exactly."""

import contextlib
import json
import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import Ch, python2_dumps, write_gmm_prior, write_smil_pose_prior, write_smpl_pkl
from numpy.testing import assert_array_equal
from safetensors.numpy import save

from agebody import load_asset
from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.own_files import NO_CHECKSUM, with_checksum
from agebody.assets.prior_files import HEADER_KEY, Gaussian, Mixture, read_prior, write_prior
from agebody.losses import MahalanobisPrior, MaxMixturePrior

BODY = SMPL_JOINT_NAMES[1:]
pytestmark = pytest.mark.usefixtures("unchecked")


def smil(seed=0, **changes):
    """Return the content of SMIL's file: a lower Cholesky factor of the precision, in a chumpy object."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(69, 69)) / 20 + np.eye(69)
    attributes = {
        "mean": 0.2 * rng.normal(size=69),
        "prec": np.linalg.cholesky(spread @ spread.T),
        "prefix": 3,
    }
    return attributes | changes


def gmm(components=3, seed=0, **changes):
    rng = np.random.default_rng(seed)
    spread = 0.05 * rng.normal(size=(components, 69, 69)) + 0.3 * np.eye(69)
    attributes = {
        "means": 0.2 * rng.normal(size=(components, 69)),
        "covars": spread @ spread.transpose(0, 2, 1),
        "weights": rng.dirichlet(np.ones(components)),
    }
    return attributes | changes


def smil_pickle(attributes, *, module="__main__", chumpy=True):
    prior = type("Mahalanobis", (), {"__module__": module})()
    prior.__dict__.update(attributes)
    if chumpy:
        prior.__dict__["prec"] = Ch(attributes["prec"])
    return python2_dumps(prior)


def as_protocol_0(attributes):
    """Pickle an object as `cPickle.dump` of Python 2 does by default."""
    head = b"ccopy_reg\n_reconstructor\n(c__main__\nMahalanobis\nc__builtin__\nobject\nNtR"
    return head + pickle.dumps(attributes, 0)[:-1] + b"b."


@pytest.fixture
def put(tmp_path):
    def write(content, name="prior.pkl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    "dump",
    [
        smil_pickle,
        partial(smil_pickle, chumpy=False),
        partial(smil_pickle, module="smpl_webuser.priors"),
        as_protocol_0,
    ],
    ids=["chumpy", "numpy", "other module", "protocol 0"],
)
def test_smil_pose_prior(put, dump):
    expected = smil()
    path = put(dump(expected))
    mean, factor, names = read_prior(path, Gaussian)
    assert_array_equal(mean, expected["mean"])
    assert_array_equal(factor, expected["prec"])
    assert names == BODY
    pose = np.random.default_rng(1).normal(size=(5, 72))
    residuals = (pose[:, 3:] - expected["mean"]) @ expected["prec"]
    prior = MahalanobisPrior.from_file(path, dtype=torch.float64)
    body_pose = torch.from_numpy(pose[:, 3:])
    # Sums of 69 products of order one, in another order.
    np.testing.assert_allclose(prior.residuals(body_pose), residuals, rtol=0, atol=1e-13)
    energies = prior(body_pose, reduction="none")
    np.testing.assert_allclose(energies, np.sum(residuals**2, 1), rtol=1e-13)


def test_smplify_mixture(put):
    expected = gmm(components=8)
    means, covariances, weights, names = read_prior(put(python2_dumps(expected), "gmm_08.pkl"), Mixture)
    assert_array_equal(means, expected["means"])
    assert_array_equal(covariances, expected["covars"])
    assert_array_equal(weights, expected["weights"])
    assert names == BODY
    prior = MaxMixturePrior.from_file(put(python2_dumps(expected)), dtype=torch.float64)
    at_means = prior(torch.from_numpy(means), reduction="none")
    assert (at_means <= prior.constants).all()


def test_single_precision_files_give_double(put):
    attributes = {k: v.astype(np.float32) for k, v in gmm().items()}
    prior = MaxMixturePrior.from_file(put(python2_dumps(attributes)), dtype=torch.float64)
    assert_array_equal(prior.means.numpy(), attributes["means"].astype(np.float64))


def test_arrays_as_npz(tmp_path):
    expected, mixture = smil(), gmm()
    np.savez(tmp_path / "smil.npz", **{k: expected[k] for k in ("mean", "prec")})
    np.savez(tmp_path / "gmm.npz", **mixture)
    assert_array_equal(read_prior(tmp_path / "smil.npz", Gaussian).factor, expected["prec"])
    assert_array_equal(read_prior(tmp_path / "gmm.npz", Mixture).covariances, mixture["covars"])


def test_save_load_round_trip(tmp_path):
    names = ("left_knee", "a joint of my own")
    rng = np.random.default_rng(0)
    gaussian = Gaussian(rng.normal(size=6), rng.normal(size=(6, 4)), names)
    spread = rng.normal(size=(2, 6, 6)) + 3 * np.eye(6)
    mixture = Mixture(rng.normal(size=(2, 6)), spread @ spread.swapaxes(1, 2), np.array([0.3, 0.7]), names)
    for cls, arrays in (
        (MahalanobisPrior, gaussian),
        (MaxMixturePrior, mixture),
    ):
        prior = cls(*arrays)
        path = tmp_path / f"{cls.__name__}.safetensors"
        prior.save(path)
        for got, expected in zip(read_prior(path, type(arrays)), arrays, strict=True):
            assert_array_equal(got, expected)
        again = cls.from_file(path, dtype=torch.float64)
        assert again.joint_names == names
        pose = torch.from_numpy(rng.normal(size=(3, 6)))
        assert torch.equal(again(pose, reduction="none"), prior.double()(pose, reduction="none"))
        before = path.read_bytes()
        with pytest.raises(FileExistsError):
            prior.save(path)
        with pytest.raises(FileNotFoundError):
            prior.save(tmp_path / "no folder" / "prior")
        assert path.read_bytes() == before
        prior.save(path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "MahalanobisPrior.safetensors",
        "MaxMixturePrior.safetensors",
    ]


class Payload:
    """An object that pickles as a call."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def test_nothing_of_a_hostile_file_runs(put, tmp_path):
    sentinel = tmp_path / "ran"
    payload = Payload(os.system, f"touch {sentinel}")
    hostile = {
        "in the mean": pickle.dumps({"mean": payload, "prec": np.eye(69)}, 2),
        "an attribute": as_protocol_0(smil(extra=payload)),
        "instead of the object": pickle.dumps(payload, 2),
        "in the weights": pickle.dumps(gmm(weights=payload), 2),
        "setstate": b"\x80\x02c__main__\nMahalanobis\n)\x81cos\nsystem\nb.",
    }
    for content in hostile.values():
        for kind in (Gaussian, Mixture):
            with pytest.raises(AssetError, match="nothing was run"):
                read_prior(put(content), kind)
    assert not sentinel.exists()
    pickle.loads(hostile["in the weights"])
    assert sentinel.exists(), "the payload is not live, so the test proves nothing"


def test_a_class_of_that_name_is_never_made(put, monkeypatch):
    import __main__

    class Mahalanobis:
        def __new__(cls, *args):
            raise AssertionError("made")

        def __setstate__(self, state):
            raise AssertionError("set")

    monkeypatch.setattr(__main__, "Mahalanobis", Mahalanobis, raising=False)
    content = smil_pickle(smil())
    with pytest.raises(AssertionError, match="made"):
        pickle.loads(content, encoding="latin1")
    assert read_prior(put(content), Gaussian).joint_names == BODY


def own(kind="gaussian", version=1, names=("a",), key=HEADER_KEY, **arrays):
    header = {"format_version": version} | (NO_CHECKSUM if version > 1 else {})
    header |= {"kind": kind, "joint_names": names}
    arrays = {"mean": np.zeros(3), "factor": np.eye(3)} | arrays
    return with_checksum(save({k: v for k, v in arrays.items() if v is not None}, {key: json.dumps(header)}))


def eight_bits():
    """Change a file to numbers of 8 bits, which NumPy does not have."""
    content = own(mean=np.zeros(3, np.float32))
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(b'"F32","shape":[3]', b'"F8_E5M2","shape":[12]')
    return len(header).to_bytes(8, "little") + header + content[end:]


GAUSSIAN_ERRORS = {
    "mixture": (python2_dumps(gmm()), "SMPLify's mixture .* open it with MaxMixturePrior.from_file"),
    "other dict": (pickle.dumps({"a": 1}), "not SMIL's pose prior.*mean, prec missing; it holds a"),
    "list": (pickle.dumps([1]), "holds a list, not a pose prior; smil_pose_prior.pkl comes with SMIL"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "no mean": (smil_pickle({"prec": np.eye(69)}), "mean missing; it holds prec"),
    "mean of text": (smil_pickle(smil(mean="x")), "mean: expected an array of floating-point .* a str"),
    "mean of integers": (smil_pickle(smil(mean=np.zeros(69, int))), "mean: .* got int64 numbers"),
    "root in the mean": (smil_pickle(smil(mean=np.zeros(72))), r"mean: expected shape \(69\), got \(72\)"),
    "prec of MANO": (smil_pickle(smil(prec=np.eye(45))), r"prec: expected shape \(69, any\)"),
    "nan": (smil_pickle(smil(mean=np.full(69, np.nan))), "mean: 69 entries are NaN"),
    "prefix": (smil_pickle(smil(prefix=66)), "prefix: expected 3, the angles of the root, got 66"),
    "prefix of text": (smil_pickle(smil(prefix="3")), "prefix: expected 3"),
    "truncated": (smil_pickle(smil())[:-5000], "damaged or truncated"),
    "empty": (b"", "empty"),
    "ours, truncated": (own()[:-3], "pickle, npz|truncated"),
    "ours, a mixture": (own("mixture"), "kind 'mixture'.*open it with MaxMixturePrior.from_file"),
    "ours, of tomorrow": (own("flow"), "kind 'flow', expected 'gaussian'; install a newer"),
    "ours, version 3": (own(version=3), "format version 3; this agebody reads up to 2"),
    "ours, one bit": (own(version=2)[:-1] + b"\x01", "its bytes do not give its checksum"),
    "ours, too large": (own(version=2, mean=np.full(3, 1e300)), r"mean: expected numbers up to 1e\+12"),
    "another safetensors": (own(key="agebody"), "something else than a pose prior"),
    "ours, 8 bits": (eight_bits(), "expected arrays of float32 or float64"),
    "ours, no factor": (own(factor=None), "factor is missing"),
    "ours, wrong shape": (own(factor=np.eye(4)), r"factor: expected shape \(3, any\)"),
    "ours, names": (own(names=[1]), "joint_names: expected a list of names"),
    "ours, a name twice": (own(names=["a", "a"], mean=np.zeros(6), factor=np.eye(6)), "different names"),
}


@pytest.mark.parametrize("what", GAUSSIAN_ERRORS)
def test_files_that_are_no_gaussian(put, what):
    content, cause = GAUSSIAN_ERRORS[what]
    with pytest.raises(AssetError, match=rf"(?s)prior\.pkl: .*({cause})"):
        MahalanobisPrior.from_file(put(content))


MIXTURE_ERRORS = {
    "gaussian": (smil_pickle(smil()), "SMIL's pose prior, one Gaussian; open it with MahalanobisPrior"),
    "covariances": (python2_dumps(gmm(covars=np.zeros((2, 69, 69)))), r"expected shape \(3, 69, 69\)"),
    "singular": (python2_dumps(gmm(covars=np.zeros((3, 69, 69)))), "positive definite"),
    "not symmetric": (
        python2_dumps(gmm(covars=np.tile(np.eye(69) + np.eye(69, k=1) / 9, (3, 1, 1)))),
        "symmetric",
    ),
    "weights": (python2_dumps(gmm(weights=np.array([0.5, 0.5, -0.1]))), "weights: expected positive shares"),
    "sums": (python2_dumps(gmm(weights=np.ones(3))), "weights: expected positive shares"),
    "ours, a gaussian": (own(), "kind 'gaussian'.*open it with MahalanobisPrior.from_file"),
    "truncated": (python2_dumps(gmm())[:-5000], "damaged or truncated"),
}


@pytest.mark.parametrize("what", MIXTURE_ERRORS)
def test_files_that_are_no_mixture(put, what):
    content, cause = MIXTURE_ERRORS[what]
    with pytest.raises(AssetError, match=rf"prior\.pkl: .*({cause})"):
        MaxMixturePrior.from_file(put(content))


def test_missing_files_say_where_they_come_from(tmp_path):
    for kind in (Gaussian, Mixture):
        with pytest.raises(AssetError, match=r"p\.pkl: no such file.*smplify\.is\.tue\.mpg\.de"):
            read_prior(tmp_path / "p.pkl", kind)
        with pytest.raises(AssetError, match="a folder"):
            read_prior(tmp_path, kind)


def test_bodies_and_priors_are_not_confused(tmp_path):
    write_smpl_pkl(tmp_path / "SMPL.pkl", num_vertices=60)
    for kind in (Gaussian, Mixture):
        with pytest.raises(AssetError, match=r"SMPL\.pkl: this is a body, not a pose prior"):
            read_prior(tmp_path / "SMPL.pkl", kind)
    write_smil_pose_prior(tmp_path / "smil_pose_prior.pkl")
    write_gmm_prior(tmp_path / "gmm_08.pkl")
    write_prior(read_prior(tmp_path / "gmm_08.pkl", Mixture), tmp_path / "ours")
    for name, what in (("smil_pose_prior.pkl", "SMIL's pose prior"), ("gmm_08.pkl", "mixture"), ("ours", "")):
        with pytest.raises(AssetError, match=f"{name}: .*{what}"):
            load_asset(tmp_path / name)


SOUND = [smil_pickle(smil()), own(), own(version=2), python2_dumps(gmm(1))]


@settings(max_examples=100)
@given(
    content=st.sampled_from(SOUND),
    place=st.floats(0, 1),
    near_an_end=st.booleans(),
    patch=st.binary(max_size=6),
    drop=st.integers(0, 8),
    cut=st.booleans(),
)
def test_damaged_files_fail_cleanly(tmp_path_factory, content, place, near_an_end, patch, drop, cut):
    # Most of a file are numbers; its structure is at both ends.
    start = int(place * (300 if near_an_end else len(content)))
    start = min(start, len(content) - 1)
    damaged = content[:start] + patch + (b"" if cut else content[start + drop :])
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(damaged)
    for kind in (Gaussian, Mixture):
        with contextlib.suppress(AssetError):
            arrays = read_prior(path, kind)
            assert all(np.isfinite(array).all() for array in arrays[:-1])
