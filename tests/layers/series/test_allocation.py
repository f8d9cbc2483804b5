import itertools

import pytest
import torch
from torch import Tensor, nn

from layers import CompressedConv2d, LayerForm, LayerShape, OvertoneError, UsageError
from layers.form import StoredIndices, stored_indices, stored_tensors
from layers.series.allocation import allocate, expand_coefficients, index_supports, supports
from layers.series.harmonic import least_squares_coefficients, series_taps
from layers.series.sampling import basis_matrix


@pytest.fixture
def kernel(rng):
    return rng.choice([(3, 3), (2, 3), (1, 5), (4, 2)])


@pytest.mark.parametrize("_", range(10))
def test_no_other_allocation_of_the_budget_has_less_error(_, kernel, normal, rng):
    filters, harmonics = rng.randint(1, 4), (rng.randint(1, kernel[0]), rng.randint(1, kernel[1]))
    budget = filters * harmonics[0] * harmonics[1]
    errors, costs = normal(filters, kernel[0] * kernel[1]), [y * x for y, x in supports(kernel)]
    totals = [
        sum(float(errors[f, s]) for f, s in enumerate(chosen))
        for chosen in itertools.product(range(len(costs)), repeat=filters)
        if sum(costs[s] for s in chosen) == budget
    ]
    chosen = allocate(errors, kernel, budget)
    assert sum(costs[s] for s in chosen.tolist()) == budget
    assert float(errors[torch.arange(filters), chosen].sum()) == pytest.approx(min(totals))


def test_many_filters_spend_the_budget_to_the_last_coefficient(kernel, normal):
    errors = normal(300, kernel[0] * kernel[1]).abs()
    budget = 300 * kernel[1]
    chosen = allocate(errors, kernel, budget)
    assert sum(y * x for y, x in (supports(kernel)[s] for s in chosen.tolist())) == budget


@pytest.mark.parametrize("budget", [3, 37])
def test_a_budget_that_cannot_be_met_is_named(budget, normal):
    with pytest.raises(OvertoneError, match=rf"4 filters of \(3, 3\) taps cannot have {budget} coefficients a channel"):
        allocate(normal(4, 9), (3, 3), budget)


def test_rows_stand_where_their_harmonics_are(kernel, normal, rng):
    chosen = torch.tensor([rng.randrange(kernel[0] * kernel[1]) for _ in range(5)])
    pairs = [supports(kernel)[s] for s in chosen.tolist()]
    budget = sum(y * x for y, x in pairs)
    stored, rows = normal(budget, 3), iter(range(budget))
    expected = torch.zeros(5, 3, *kernel, dtype=torch.float64)
    for f, (n_y, n_x) in enumerate(pairs):
        for y, x in itertools.product(range(n_y), range(n_x)):
            expected[f, :, y, x] = stored[next(rows)]
    slots = index_supports(chosen.to(torch.uint8), kernel, budget)
    assert torch.equal(expand_coefficients(stored, slots, 5, kernel), expected)


def test_supports_that_cannot_be_are_named():
    with pytest.raises(OvertoneError, match=r"^a filter's support \(=9\) must be below 9$"):
        index_supports(torch.tensor([0, 9], dtype=torch.uint8), (3, 3), 10)
    with pytest.raises(OvertoneError, match=r"supports make 3 coefficients a channel, not 4"):
        index_supports(torch.tensor([0, 1], dtype=torch.uint8), (3, 3), 4)


@pytest.mark.parametrize(("kernel", "bits"), [((3, 3), 4), ((7, 7), 6), ((1, 2), 1), ((2, 2), 2), ((16, 16), 8)])
def test_bits_of_a_support(kernel, bits):
    shape = LayerShape(kind="conv2d", in_channels=2, out_channels=3, kernel=kernel)
    form = LayerForm(basis="cosine", harmonics=(1, 1), allocation="filter")
    assert stored_indices(shape, form)["frequency_support"] == StoredIndices(3, bits)


@pytest.mark.parametrize("basis", ["cosine", "chebyshev"])
def test_a_layer_starts_at_the_nearest_filters_of_its_budget(basis, fill):
    conv = fill(nn.Conv2d(2, 3, 3).double())
    weight = conv.weight.detach()
    layer = CompressedConv2d(conv, LayerForm(basis=basis, harmonics=(2, 2), allocation="filter"))

    def nearest(f: int, support: int) -> Tensor:
        phi_y, phi_x = (basis_matrix(basis, 3, n) for n in supports((3, 3))[support])
        return series_taps(least_squares_coefficients(weight[f], phi_y, phi_x), phi_y, phi_x)

    def error(chosen: tuple[int, ...]) -> float:
        return sum(float((nearest(f, s) - weight[f]).square().sum()) for f, s in enumerate(chosen))

    costs = [y * x for y, x in supports((3, 3))]
    legal = [c for c in itertools.product(range(9), repeat=3) if sum(costs[s] for s in c) == 12]
    best = min(legal, key=error)
    assert tuple(layer.frequency_support.tolist()) == best
    assert torch.allclose(layer.filters(), torch.stack([nearest(f, s) for f, s in enumerate(best)]), atol=1e-9)


def test_one_budget_for_all_is_what_uniform_harmonics_store_but_for_the_supports(fill):
    shape = LayerShape.from_module(nn.Conv2d(8, 20, 3))
    plain, spent = (LayerForm(basis="cosine", harmonics=(2, 3), allocation=a) for a in (None, "filter"))
    values = [stored_tensors(shape, form)["coefficients"].values for form in (plain, spent)]
    assert values[0] == values[1]
    assert stored_indices(shape, spent)["frequency_support"].bytes == 10
    assert not stored_indices(shape, plain)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"allocation": "block", "basis": "cosine", "harmonics": (2, 2)}, r"allocation \(='block'\) must be filter"),
        ({"allocation": "filter"}, r"allocation \(='filter'\) must be filter, in a series without templates"),
        (
            {"allocation": "filter", "basis": "cosine", "harmonics": (2, 2), "templates": 4, "transform": "scalar"},
            r"in a series without templates",
        ),
    ],
)
def test_forms_that_cannot_be_allocated_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        LayerForm(**asked)


def test_filters_of_too_many_taps_are_refused():
    form = LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter")
    with pytest.raises(
        UsageError, match=r"^allocation \(='filter'\) must be None for filters of \(17, 16\) taps, more than 256$"
    ):
        stored_tensors(LayerShape.from_module(nn.Conv2d(1, 1, (17, 16))), form)
