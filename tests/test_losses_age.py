import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody.age import AGE_CLASSES, age_class
from agebody.losses import age_class_loss, age_offset_loss

ADULT, TEEN, KID, BABY = range(4)

few = settings(max_examples=25)
crowds = st.lists(st.tuples(st.floats(-0.5, 1.5), st.integers(-1, 3)), min_size=1, max_size=12)


def of(crowd) -> tuple[torch.Tensor, torch.Tensor]:
    offsets, classes = zip(*crowd, strict=True)
    return torch.tensor(offsets, dtype=torch.float64), torch.tensor(classes)


def bev(offset: float, kind: int) -> float:
    """One person's term."""
    if kind == ADULT:
        return offset**2
    low, mid, high = {TEEN: (0.15, 0.3, 0.45), KID: (0.45, 0.6, 0.75), BABY: (0.75, 0.9, 1.0)}[kind]
    return 0.0 if low < offset <= high else (offset - mid) ** 2


@few
@given(crowds)
def test_class_loss_is_bevs_person_by_person_and_class_by_class(crowd):
    offsets, classes = of(crowd)
    terms = [bev(offset, kind) if kind >= 0 else 0.0 for offset, kind in crowd]
    torch.testing.assert_close(
        age_class_loss(offsets, classes, reduction="none"), torch.tensor(terms, dtype=torch.float64)
    )
    means = [
        np.mean([t for t, (_, k) in zip(terms, crowd, strict=True) if k == kind])
        for kind in {k for _, k in crowd if k >= 0}
    ]
    assert age_class_loss(offsets, classes).item() == pytest.approx(sum(means))
    # BEV's public code: each class's sum over the number of all people.
    public = sum(sum(t for t, (_, k) in zip(terms, crowd, strict=True) if k == kind) / len(crowd) for kind in range(4))  # fmt: skip # noqa: E501
    assert age_class_loss(offsets, classes, reduction="none").mean().item() == pytest.approx(public)


def test_a_class_is_open_below_and_closed_above():
    for kind in (TEEN, KID, BABY):
        _, low, mid, high = AGE_CLASSES[kind]
        offsets = torch.tensor(
            [low, np.nextafter(low, 1), mid, high, np.nextafter(high, 2)], dtype=torch.float64
        )
        free = age_class_loss(offsets, torch.full((5,), kind), reduction="none") == 0
        assert free.tolist() == [False, True, True, True, False]


def test_only_the_right_class_of_a_child_is_free():
    offsets = torch.linspace(0, 1, 501, dtype=torch.float64)
    for kind in (TEEN, KID, BABY):
        free = age_class_loss(offsets, torch.full((501,), kind), reduction="none") == 0
        assert torch.equal(free, (age_class(offsets) == kind) & (offsets > 0))
    assert (age_class_loss(offsets[1:], torch.zeros(500, dtype=torch.long), reduction="none") > 0).all()


def test_gradient_leads_to_the_middle_of_the_class():
    offsets = torch.linspace(-0.2, 1.2, 57, dtype=torch.float64).repeat(4).requires_grad_()
    kinds = torch.arange(4).repeat_interleave(57)
    loss = age_class_loss(offsets, kinds, reduction="sum")
    (slope,) = torch.autograd.grad(loss, offsets)
    mids = torch.tensor([kind.mid for kind in AGE_CLASSES], dtype=torch.float64)[kinds]
    assert ((slope == 0) | (slope.sign() == (offsets - mids).sign())).all()
    torch.testing.assert_close(slope[:57], 2 * offsets[:57].detach())


def test_a_few_babies_are_heard_among_many_adults():
    kinds = torch.tensor([ADULT] * 99 + [BABY])
    offsets = torch.zeros(100, requires_grad=True)
    (slope,) = torch.autograd.grad(age_class_loss(offsets, kinds), offsets)
    assert slope[-1] == pytest.approx(-1.8)  # as if it were alone


def test_unknown_ages_may_be_anything():
    offsets = torch.tensor([0.2, torch.nan, torch.inf, 0.1], requires_grad=True)
    kinds = torch.tensor([ADULT, -1, 7, BABY])
    loss = age_class_loss(offsets, kinds)
    assert loss.item() == pytest.approx(0.04 + 0.64)
    (slope,) = torch.autograd.grad(loss, offsets)
    assert slope.tolist() == pytest.approx([0.4, 0, 0, -1.6])
    assert age_class_loss(offsets, torch.full((4,), -1)) == 0


@few
@given(crowds)
def test_weights_count_in_each_class(crowd):
    offsets, classes = of(crowd)
    twice = torch.cat((offsets, offsets)), torch.cat((classes, classes))
    weights = torch.cat((torch.ones(len(crowd)), torch.zeros(len(crowd)))).double()
    torch.testing.assert_close(age_class_loss(*twice, weights=weights), age_class_loss(offsets, classes))
    torch.testing.assert_close(age_class_loss(*twice, weights=weights > 0), age_class_loss(offsets, classes))
    torch.testing.assert_close(age_class_loss(*twice), age_class_loss(offsets, classes))
    torch.testing.assert_close(age_class_loss(*twice, weights=3 * weights), age_class_loss(offsets, classes))


def test_bevs_two_losses_together():
    pred = torch.tensor([[0.1], [0.5], [0.9]])
    known = torch.tensor([[0.0], [torch.nan], [0.7]])
    loss = age_class_loss(pred, torch.tensor([[ADULT], [TEEN], [-1]])) + 2 * age_offset_loss(
        pred, known, weights=~known.isnan()
    )
    assert loss.item() == pytest.approx(0.01 + 0.04 + 2 * (0.01 + 0.04) / 2)


def test_age_offsets_of_other_shapes_are_not_mixed(unchecked):
    with pytest.raises(ValueError, match=r"target: expected the shape of pred, \(3, 1\), got \(3,\)"):
        age_offset_loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"age_class: expected shape \(3, 1\), got \(3,\)"):
        age_class_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="age_class: expected a torch.Tensor of integers, got torch.float32"):
        age_class_loss(torch.zeros(3), torch.zeros(3))
