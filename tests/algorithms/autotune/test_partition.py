"""The cheapest cut, against all ways to cut there are."""

from dataclasses import dataclass, field
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.algorithms.autotune.fusion_groups import Boundary, FusionGroup, Parts
from onnxq.algorithms.autotune.partition import cheapest

MICRO = 1e-6


@dataclass
class Prices:
    """Stands in for `Costs`."""

    parts: Parts
    units: dict
    q: dict
    dq: dict = field(default_factory=dict)

    def seconds(self, unit, in_integers):
        return self.units[unit][in_integers] * MICRO

    def to_integers(self, tie):
        return self.q[tie.tensor] * MICRO

    def to_float(self, tie):
        return self.dq[tie.tensor] * MICRO


def unit(name, planned=True):
    return FusionGroup(frozenset({name}), frozenset({name} if planned else ()))


def total(prices, inside):
    """What a choice costs, counted one by one."""
    cost = sum(prices.seconds(u, u in inside) for u in prices.parts.units if u.planned)
    for tie in prices.parts.ties:
        made = tie.source in inside
        if not made and any(reader in inside for reader in tie.integers):
            cost += prices.to_integers(tie)
        if made:
            floats = [r for r in tie.integers if r not in inside] + list(tie.floats)
            cost += len(floats) * prices.to_float(tie)
    return cost


def subsets(units):
    return map(frozenset, chain.from_iterable(combinations(units, n) for n in range(len(units) + 1)))


@st.composite
def networks(draw):
    """Up to six groups; tensors go from earlier to later ones."""
    price = st.integers(0, 20)
    units = [unit(f"n{i}", draw(st.booleans())) for i in range(draw(st.integers(1, 6)))]
    ties = []
    for i, source in enumerate([None, *units]):
        later = units[i:]
        readers = draw(st.lists(st.sampled_from(later), unique=True)) if later else []
        integers = tuple(r for r in readers if r.planned and draw(st.booleans()))
        floats = [r for r in readers if r not in integers] + draw(st.sampled_from([[], [None]]))
        made = source if source is not None and source.planned and draw(st.booleans()) else None
        ties.append(Boundary("float" if i else "integers", made, integers, tuple(floats)))
    ties = [Boundary(f"{tie.tensor}{n}", tie.source, tie.integers, tie.floats) for n, tie in enumerate(ties)]
    return Prices(
        Parts(tuple(units), tuple(ties), {}),
        {u: (draw(price), draw(price)) for u in units},
        {tie.tensor: draw(price) for tie in ties},
        {tie.tensor: draw(price) for tie in ties},
    )


@given(networks())
def test_no_other_choice_is_cheaper(prices):
    planned = [u for u in prices.parts.units if u.planned]
    found = cheapest(prices)
    assert found <= set(planned)
    assert total(prices, found) == pytest.approx(min(total(prices, c) for c in subsets(planned)), abs=1e-9)


def test_a_group_that_gains_less_than_its_neighbours_cost_is_float():
    a, b = unit("a"), unit("b", planned=False)
    prices = Prices(
        Parts((a, b), (Boundary("t", a, (), (b,)),), {}), {a: (10, 6), b: (1, 1)}, {"t": 0}, {"t": 5}
    )
    assert cheapest(prices) == frozenset()
    prices.dq["t"] = 3
    assert cheapest(prices) == {a}


def test_a_group_that_loses_alone_is_in_integers_between_integers():
    a, b, c = (unit(name) for name in "abc")
    ties = (Boundary("t", a, (b,), ()), Boundary("u", b, (c,), ()))
    units = {a: (10, 1), b: (2, 3), c: (10, 1)}
    prices = Prices(Parts((a, b, c), ties, {}), units, {"t": 4, "u": 4}, {"t": 4, "u": 4})
    assert cheapest(prices) == {a, b, c}
    prices.units[b] = (2, 30)
    assert cheapest(prices) == {a, c}


def test_several_readers_share_one_q():
    source, *readers = [unit("s", planned=False), unit("a"), unit("b"), unit("c")]
    prices = Prices(
        Parts((source, *readers), (Boundary("t", None, tuple(readers), ()),), {}),
        {source: (1, 1), **dict.fromkeys(readers, (3, 1))},
        {"t": 5},
        {"t": 0},
    )
    assert cheapest(prices) == set(readers)
