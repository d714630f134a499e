import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from agebody.age import (
    AGE_CLASSES,
    AgeCurve,
    age_class,
    median_head_circumference,
    median_stature,
    parse_ages,
    percentile,
    stature_at_percentile,
    stature_sd,
    z_score,
)
from agebody.age.classes import AgeError
from agebody.assets.asset import AssetError, BodyAsset, Metadata
from agebody.measure import stature


def stick(heights=(1.72, 0.534), offsets=(1.0,), gender="neutral"):
    """A body of three vertices that is as tall as said: first at offset 0, then at each of the offsets."""
    bodies = np.array([[[0, 0, 0], [0, height, 0], [0.1, 0.3 * height, 0]] for height in heights])
    return BodyAsset(
        template=bodies[0],
        faces=np.array([[0, 1, 2]]),
        parents=np.array([-1]),
        joint_names=("pelvis",),
        joint_regressor=sparse.csr_array(np.eye(1, 3)),
        skin_joints=np.zeros((3, 1), int),
        skin_weights=np.ones((3, 1)),
        shapedirs=np.zeros((3, 3, 0)),
        age_offsets=np.array(offsets),
        age_templates=bodies[1:] if len(heights) > 1 else None,
        metadata=Metadata(name="stick", gender=gender),
    )


CURVE = AgeCurve.from_asset(stick())


def test_classes_cover_the_offsets_without_gaps():
    assert [kind.name for kind in AGE_CLASSES] == ["adult", "teen", "kid", "baby"]
    for older, younger in pairwise(AGE_CLASSES):
        assert older.high == younger.low
    assert all(kind.low < kind.mid < kind.high for kind in AGE_CLASSES)


def test_age_class_takes_the_upper_end_into_the_class():
    offsets = torch.tensor([[-1.0, 0.0, 0.15, 0.16], [0.45, 0.6, 0.75, 0.76]], dtype=torch.float64)
    assert age_class(offsets).tolist() == [[0, 0, 0, 1], [1, 2, 2, 3]]
    assert age_class(torch.tensor([0.9, 1.0, 1.3])).tolist() == [3, 3, 3]
    mids = torch.tensor([kind.mid for kind in AGE_CLASSES])
    assert age_class(mids).tolist() == [0, 1, 2, 3]
    assert age_class(torch.tensor([0.9, torch.nan, 0.0])).tolist() == [3, -1, 0]


@pytest.mark.parametrize(
    ("years", "boys", "girls"),
    [
        (0, 0.4988, 0.4915),
        (1 / 12, 0.547, 0.537),
        (0.5, 0.676, 0.657),
        (1, 0.757, 0.74),
        (2 - 1e-6, 0.878, 0.864),  # lying
        (2, 0.871, 0.857),  # standing
        (3, 0.961, 0.951),
        (8, 1.273, 1.266),
        (19, 1.765, 1.632),
    ],
)
def test_median_stature_passes_through_the_tables(years, boys, girls):
    assert median_stature(years, sex="male") == pytest.approx(boys)
    assert median_stature(years, sex="female") == pytest.approx(girls)
    assert median_stature(years) == pytest.approx((boys + girls) / 2)


@pytest.mark.parametrize("sex", ["neutral", "female", "male"])
def test_stature_only_grows_and_ends_at_nineteen(sex):
    for years in (np.linspace(0, 2 - 1e-6, 500), np.linspace(2, 19, 2000)):
        assert (np.diff(median_stature(years, sex=sex)) > 0).all()
    assert median_stature(40.0, sex=sex) == median_stature(19.0, sex=sex)
    assert median_stature(-1.0, sex=sex) == median_stature(0.0, sex=sex)


# Medians by month [cm] of the WHO's LMS tables, which are finer than ours.
GIRLS_FROM_20_MONTHS = [82.70, 83.67, 84.60, 85.52, 85.72, 86.59, 87.45, 88.28, 89.10, 89.90, 90.68, 91.44]
BOYS_FROM_20_MONTHS = [84.20, 85.13, 86.05, 86.94, 87.12, 87.97, 88.81, 89.62, 90.41, 91.18, 91.93, 92.66]


@pytest.mark.parametrize(
    ("sex", "medians"), [("female", GIRLS_FROM_20_MONTHS), ("male", BOYS_FROM_20_MONTHS)]
)
@pytest.mark.parametrize("dtype", [np.float64, torch.float64, torch.float32])
def test_the_median_child_is_at_the_fiftieth_percentile_lying_and_standing(sex, medians, dtype):
    years, statures = (20 + np.arange(12)) / 12, np.array(medians) / 100
    if dtype != np.float64:
        years, statures = (torch.tensor(part, dtype=dtype) for part in (years, statures))
    np.testing.assert_allclose(percentile(statures, years, sex=sex), 50, atol=1)


def test_the_third_year_of_a_body_absorbs_the_step_from_lying_to_standing():
    years = np.linspace(1.9, 3.1, 500)
    assert (np.diff(CURVE.years_to_stature(years)) > 0).all()


def test_deviations_are_those_of_the_tables_and_of_the_mixture():
    assert stature_sd(10.0, sex="male") == pytest.approx(0.0637)
    assert stature_sd(10.0, sex="female") == pytest.approx(0.064)
    draws = np.random.default_rng(0).normal([1.765, 1.632], [0.073, 0.0654], (200_000, 2))
    assert stature_sd(19.0) == pytest.approx(draws.std(), abs=3 * draws.std() / np.sqrt(2 * draws.size))


@pytest.mark.parametrize("value", ["kid", [0.1, "x"]])
def test_non_numbers_are_named(value, unchecked):
    for call in (age_class, median_stature, median_head_circumference, stature_sd):
        with pytest.raises(TypeError, match=r"expected numbers, got .*(kid|x)"):
            call(value)


def test_an_unknown_sex_is_refused(unchecked):
    with pytest.raises(ValueError, match="sex: expected one of neutral, female, male, got 'boy'"):
        median_stature(3.0, sex="boy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sex: expected one of neutral, female, male, got 'boy'"):
        median_head_circumference(3.0, sex="boy")  # pyright: ignore[reportArgumentType]


def test_age_offsets_of_a_smpl_sized_body():
    # Read from H(a) = 1.72 + a (0.534 - 1.72) in the WHO's table, rounded; that this body is 1.3 % taller
    # than the WHO's adult makes its teenagers up to 0.6 years younger, and smaller children less so.
    expected = {0.15: 13, 0.3: 9.7, 0.45: 6.5, 0.6: 3.7, 0.75: 1.5, 0.8: 13 / 12, 0.9: 5 / 12}
    for offset, years in expected.items():
        assert CURVE.offset_to_years(offset) == pytest.approx(years, rel=0.07), offset


@given(years=st.floats(0, 18.9))
def test_years_and_offsets_invert_each_other(years):
    assert CURVE.offset_to_years(CURVE.years_to_offset(years)) == pytest.approx(years, abs=1e-9)


@given(st.floats(1.3, 2.2), st.floats(0.4, 0.7), st.integers(1, 4))
def test_every_body_has_its_adult_at_nineteen_and_the_stature_it_should(adult, infant, anchors):
    fractions = np.linspace(0, 1, anchors + 1) ** 1.5  # offsets that are not linear in stature
    heights = np.linspace(adult, infant, anchors + 1)
    asset = stick(heights, fractions[1:])
    curve = AgeCurve.from_asset(asset)
    assert curve.years_to_offset(19.0) == pytest.approx(0, abs=1e-12)
    assert curve.years_to_offset(70.0) == pytest.approx(0, abs=1e-12)
    years = np.linspace(0, 19, 50)
    offsets = curve.years_to_offset(years)
    assert (np.diff(offsets) < 0).all()
    # The stature of the body itself at those offsets, extrapolated beyond its youngest template.
    slope = (heights[-1] - heights[-2]) / (fractions[-1] - fractions[-2])
    measured = np.interp(offsets, fractions, heights) + np.maximum(offsets - fractions[-1], 0) * slope
    # The map is linear between months; where the body passes an anchor within one, that is a mm or two off.
    np.testing.assert_allclose(measured, curve.years_to_stature(years), atol=2e-3)
    assert curve.years_to_stature(0.0) == pytest.approx(median_stature(0.0))
    assert curve.years_to_stature(19.0) == pytest.approx(adult)


def test_newborns_shorter_than_the_infant_lie_beyond_its_offset():
    newborn = CURVE.years_to_offset(0.0)
    assert newborn > 1
    assert 1.72 + newborn * (0.534 - 1.72) == pytest.approx(median_stature(0.0))
    assert CURVE.offset_to_years(newborn + 1) == 0
    assert CURVE.offset_to_years(-0.3) == 19


def test_stature_is_measured_between_the_anchors_too():
    # The vertex that is the highest in the middle is second in both anchors.
    tall = np.array([[0, 0, 0], [0, 1.7, 0], [0, 1.6, 0], [0, 0.1, 0]])
    small = np.array([[0, 0, 0], [0, 0.2, 0], [0, 0.5, 0], [0, 0.53, 0]])
    base = stick()
    asset = base.replace(
        template=tall,
        age_templates=small[None],
        joint_regressor=sparse.csr_array(np.eye(1, 4)),
        skin_joints=np.zeros((4, 1), int),
        skin_weights=np.ones((4, 1)),
        shapedirs=np.zeros((4, 3, 0)),
    )
    curve = AgeCurve.from_asset(asset)
    for years in (0.5, 2.0, 6.0, 12.0):
        offset = curve.years_to_offset(years)
        body = torch.from_numpy(tall + offset * (small - tall))
        # Chords of an eighth of the way are at most 3 mm off a kink of this strength.
        assert stature(body).item() == pytest.approx(curve.years_to_stature(years), abs=4e-3)


@pytest.mark.parametrize("sex", ["female", "male"])
def test_the_curve_follows_the_gender_of_the_body(sex):
    curve = AgeCurve.from_asset(stick(gender=sex))
    assert curve.years_to_stature(0.0) == pytest.approx(median_stature(0.0, sex=sex))
    other = AgeCurve.from_asset(stick(gender=sex), sex="neutral")
    assert other.years_to_stature(0.0) == pytest.approx(median_stature(0.0))


def test_numbers_arrays_and_tensors_agree_and_keep_their_type():
    years = np.array([[0.0, 0.4], [5.0, 30.0]])
    offsets = CURVE.years_to_offset(years)
    assert isinstance(CURVE.years_to_offset(5.0), float)
    assert offsets.shape == (2, 2)
    for dtype in (torch.float32, torch.float64):
        tensor = CURVE.years_to_offset(torch.tensor(years, dtype=dtype))
        assert tensor.dtype == dtype
        # float32 offsets near 1 carry 6e-8, times the slopes of a few table rows
        tolerance = 1e-6 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(tensor.numpy(), offsets, atol=tolerance)
    back = CURVE.offset_to_years(torch.tensor(offsets))
    np.testing.assert_allclose(back, [[0, 0.4], [5, 19]], atol=1e-9)
    with pytest.raises(TypeError, match="years: expected a floating type"):
        CURVE.years_to_offset(torch.tensor(True))


def test_gradients_are_the_slopes():
    # Inside a month, away from the table's nodes, so that finite differences see one slope.
    years = torch.tensor([0.04, 1.37, 7.3, 15.02], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CURVE.years_to_offset, years)
    assert torch.autograd.gradcheck(median_stature, years)
    offsets = CURVE.years_to_offset(years.detach()).requires_grad_()
    assert torch.autograd.gradcheck(CURVE.offset_to_years, offsets, eps=1e-8, atol=1e-4)
    old = torch.tensor(40.0, requires_grad=True)
    CURVE.years_to_offset(old).backward()
    assert old.grad == 0


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        (stick((1.7,), ()), "stick: has no infant template"),
        (stick((1.7, 1.8), (-0.5,)), "stick: has no infant template"),
        (stick((0.5, 1.7)), "stick: expected a body that shrinks as its age offset grows"),
        (stick((0.3, 0.01)), "too far from people's stature to have ages; are its units metres?"),
    ],
)
def test_bodies_that_cannot_have_ages_are_refused(asset, message):
    with pytest.raises(AssetError, match=message):
        AgeCurve.from_asset(asset)


def test_older_than_adult_templates_do_not_matter():
    with_old = AgeCurve.from_asset(stick((1.72, 1.65, 0.534), (-0.5, 1.0)))
    np.testing.assert_array_equal(with_old.offsets, CURVE.offsets)


@pytest.mark.parametrize("stature", [110.0, np.array([1.1, 110]), torch.tensor([torch.nan, 1100])])
def test_statures_of_another_unit_are_refused(stature):
    for function in (percentile, z_score):
        with pytest.raises(ValueError, match="stature: expected metres, up to 5"):
            function(stature, 5.0)


@given(
    years=st.floats(0, 25), stature=st.floats(0.4, 2.1), sex=st.sampled_from(["neutral", "female", "male"])
)
def test_scores_and_percentiles_are_those_of_the_normal_distribution(years, stature, sex):
    normal = stats.norm(median_stature(years, sex=sex), stature_sd(years, sex=sex))
    assert z_score(stature, years, sex=sex) == pytest.approx((stature - normal.mean()) / normal.std())
    assert percentile(stature, years, sex=sex) == pytest.approx(100 * normal.cdf(stature), abs=1e-9)


@given(share=st.floats(0.01, 99.99), years=st.floats(0, 19))
def test_percentiles_and_statures_invert_each_other(share, years):
    stature = stature_at_percentile(share, years, sex="male")
    # The stature's rounding, 1e-16 m, is 1e-14 standard deviations; far out a percentile changes little.
    assert percentile(stature, years, sex="male") == pytest.approx(share, abs=1e-9)


def test_percentiles_of_the_tables():
    assert percentile(1.273, 8.0, sex="male") == pytest.approx(50)
    assert z_score(1.273 + 2 * 0.0565, 8.0, sex="male") == pytest.approx(2)
    assert stature_at_percentile(50.0, 8.0, sex="female") == pytest.approx(1.266)
    assert stature_at_percentile(100.0, 8.0) == np.inf
    assert np.isnan(stature_at_percentile(101.0, 8.0))


@pytest.mark.parametrize("years", [0.0, 2.0, 8.0, 14.0, 19.0])
def test_girls_and_boys_together_are_nearly_normal(years):
    statures = np.linspace(0.8, 1.2, 101) * median_stature(years)
    of_each = [percentile(statures, years, sex=sex) for sex in ("female", "male")]
    assert np.abs(percentile(statures, years) - np.mean(of_each, 0)).max() < (3 if years == 19 else 1)


def test_percentiles_broadcast_keep_their_kind_and_have_gradients():
    statures, years = np.array([[0.7], [1.2]]), np.array([1.0, 7.0, 30.0])
    found = percentile(statures, years)
    assert found.shape == (2, 3)
    tensors = torch.tensor(statures), torch.tensor(years)
    np.testing.assert_allclose(percentile(*tensors), found, atol=1e-12)
    np.testing.assert_allclose(
        stature_at_percentile(torch.tensor(found), tensors[1])[:, :2],
        stature_at_percentile(found, years)[:, :2],
        atol=1e-9,
    )
    assert isinstance(percentile(1.2, 7.0), float)
    assert isinstance(stature_at_percentile(50.0, 7.0), float)
    assert stature_at_percentile(50.0, years).shape == (3,)
    assert stature_at_percentile(torch.tensor(50.0), 7.0).shape == ()
    assert percentile(torch.tensor(1.2), 7.0).dtype == torch.float32
    inside = torch.tensor([1.37, 7.3], dtype=torch.float64, requires_grad=True)
    tall = torch.tensor([0.8, 1.25], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(percentile, (tall, inside))
    shares = torch.tensor([20.0, 70.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stature_at_percentile, (shares, inside))


def test_head_circumference_passes_through_its_table_and_ends_with_it():
    for years, boys, girls in (
        (0, 0.3446, 0.3388),
        (0.5, 0.4334, 0.4221),
        (2, 0.4825, 0.4718),
        (5, 0.5074, 0.4992),
    ):
        assert median_head_circumference(float(years), sex="male") == pytest.approx(boys)
        assert median_head_circumference(float(years), sex="female") == pytest.approx(girls)
        assert median_head_circumference(float(years)) == pytest.approx((boys + girls) / 2)
    years = np.linspace(0, 5, 500)
    grown = median_head_circumference(years)
    assert (np.diff(grown) > 0).all()
    assert (np.diff(grown[::50], 2) < 0).all()  # ever slower
    assert median_head_circumference(-1.0) == median_head_circumference(0.0)
    assert np.isnan(median_head_circumference(5.1))
    tensor = median_head_circumference(torch.tensor([1.0, 6.0], dtype=torch.float64))
    np.testing.assert_allclose(tensor, median_head_circumference(np.array([1.0, 6.0])))
    with_gradient = torch.tensor([0.21, 3.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(median_head_circumference, with_gradient)


KINDS = {
    "number": float,
    "array": lambda x: np.array([x, x]),
    "array ()": np.array,
    "tensor": lambda x: torch.tensor([x, x], dtype=torch.float64),
    "tensor ()": lambda x: torch.tensor(x, dtype=torch.float64),
}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("function", [z_score, percentile, stature_at_percentile])
def test_numbers_arrays_and_tensors_may_be_mixed(function, first, second):
    """The result is a tensor if either is one, else an array if either has elements."""
    a = 97.0 if function is stature_at_percentile else 1.1
    found = function(KINDS[first](a), KINDS[second](5.0))
    assert isinstance(found, torch.Tensor) == ("tensor" in first + second)
    assert np.shape(found) == ((2,) if {first, second} & {"array", "tensor"} else ())
    np.testing.assert_allclose(found, function(a, 5.0), rtol=1e-14)


def test_growth_has_gradients_under_vmap():
    years = torch.tensor([0.5, 5.02, 20.0], dtype=torch.float64)
    found = torch.func.vmap(torch.func.grad(median_stature))(years)
    leaf = years.clone().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(median_stature(leaf).sum(), leaf)[0])


NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"years": 4}, ([NAN], [4], [-1])),
        ({"age_class": "Kid"}, ([NAN], [NAN], [2])),
        ({"age_offset": [0.5, None, NAN, ""]}, ([0.5, NAN, NAN, NAN], [NAN] * 4, [-1] * 4)),
        ({"age_class": ["", "baby", 0, -1, None]}, ([NAN] * 5, [NAN] * 5, [-1, 3, 0, -1, -1])),
        ({"age_months": [18, NAN], "years": [8, 3]}, ([NAN] * 2, [1.5, 3], [-1, -1])),
        (
            {"age_offset": [1, NAN, NAN], "years": [2, 3, NAN], "age_class": 1},
            ([1, NAN, NAN], [NAN, 3, NAN], [-1, -1, 1]),
        ),
    ],
)
@pytest.mark.parametrize("kind", [lambda values: values, np.array, torch.tensor])
def test_ages_are_parsed_by_one_rule_however_they_are_given(given, expected, kind):
    numbers = all(
        isinstance(x, int | float) for value in given.values() for x in np.atleast_1d(value).tolist()
    )
    if numbers:
        given = {name: kind(value) for name, value in given.items()}
    for part, values in zip(parse_ages(**given), expected, strict=True):
        np.testing.assert_array_equal(part.reshape(-1), values)


@pytest.mark.parametrize(
    "given",
    [
        {"years": -0.5}, {"years": 130}, {"years": 2015.0}, {"years": math.inf}, {"years": True},
        {"years": "four"}, {"years": [1.0, [2.0]]}, {"years": 10**400}, {"years": torch.tensor([1.0, 130.0])},
        {"age_months": -1}, {"age_months": 1560},
        {"years": np.array([3, 200])}, {"age_offset": math.inf}, {"age_offset": np.array([True])},
        {"age_class": "old"}, {"age_class": 4}, {"age_class": -2}, {"age_class": 1.0}, {"age_class": True},
        {"age_class": torch.tensor([0.0])}, {"age_class": np.array(["kid", "1"])},
    ],
)  # fmt: skip
def test_ages_that_cannot_be_are_refused_by_name(given):
    (name,) = given
    with pytest.raises(AgeError, match=rf"^{name}: expected .*, got ") as error:
        parse_ages(**given)
    assert error.value.name == name
    assert error.value.person == (hasattr(given[name], "__len__") and len(given[name]) == 2)


def test_ages_broadcast_and_fill_unknown_ones():
    stated = parse_ages(years=[4.0, NAN, 130 - 1e-9])
    filled = stated.fill(parse_ages(age_class="adult", shape=(3,)))
    assert filled.years[[0, 2]].tolist() == stated.years[[0, 2]].tolist()
    assert filled.age_class.tolist() == [-1, 0, -1]
    assert filled.known.all()
    assert filled.select([1]).age_class.tolist() == [0]
    everyone = parse_ages(
        age_offset=[1.0, NAN, NAN, NAN], years=[NAN, 40, NAN, NAN], age_class=[-1, -1, 2, -1]
    )
    assert everyone.classes().tolist() == [3, 0, 2, -1]
    with pytest.raises(
        ValueError, match=r"age_class: expected a shape that broadcasts to \(3,\), got \(2,\)"
    ):
        parse_ages(age_class=[0, 1], shape=(3,))


@pytest.mark.parametrize(
    "offset", [-0.05, 0.0, 0.15, 0.1500001, 0.3, 0.45, 0.6, 0.75, 0.8, 1.2, float("nan")]
)
def test_a_class_is_the_same_whatever_the_offset_is_given_as(offset):
    expected = age_class(torch.tensor([offset])).item()
    assert type(age_class(offset)) is int
    found = {
        "number": age_class(offset),
        "NumPy number": age_class(np.float32(offset)),
        "array": age_class(np.array([offset]))[0],
        "array of a float32 file": age_class(np.array([offset], dtype=np.float32).astype(np.float64))[0],
        "float64 tensor": age_class(torch.tensor(offset, dtype=torch.float64)).item(),
        "parsed": parse_ages(age_offset=np.float32(offset)).classes().item(),
    }
    assert set(found.values()) == {expected}, found


@pytest.mark.parametrize(
    ("years", "kind"),
    [(0, 3), (1.4999, 3), (1.5, 2), (6.4999, 2), (6.5, 1), (12.4999, 1), (12.5, 0), (129, 0), (NAN, -1)],
)
def test_a_class_of_years_is_the_same_whatever_they_are_given_as(years, kind):
    for stated in (years, np.float32(years), np.array([years]), torch.tensor(years), [years]):
        assert parse_ages(years=stated).classes().tolist() in (kind, [kind])
        assert parse_ages(years=stated, age_class=0).classes().tolist() in (max(kind, 0), [max(kind, 0)])


def test_the_bounds_of_years_are_those_of_the_published_templates():
    statures = 1.72 + np.array([0.15, 0.45, 0.75]) * (0.534 - 1.72)
    every = np.linspace(0, 19, 2281)
    found = np.interp(statures, median_stature(every), every)
    np.testing.assert_array_equal(np.round(2 * found) / 2, [12.5, 6.5, 1.5])


def test_whole_numbers_are_offsets():
    assert age_class(1) == age_class(torch.tensor(1)) == 3
    assert age_class([0, 1]).tolist() == [0, 3]
