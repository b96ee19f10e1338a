"""Models whose tensors take much memory run one batch at a time, with the same results."""

import numpy as np
import pytest
from benches import bench_for

from onnxq.algorithms.watching import Watcher
from onnxq.graph import tensor_bytes


@pytest.mark.parametrize("limit", [1, 2**40])
def test_results_do_not_depend_on_how_many_run_at_a_time(limit, monkeypatch):
    draft, context = bench_for()
    monkeypatch.setattr(tensor_bytes, "MOST_BYTES", limit)
    names = [value.name for value in draft.reference.graph.outputs]

    def look(number, arrays):
        return number, [arrays[name].tobytes() for name in names]

    watcher = Watcher(("CPUExecutionProvider",), threads=2)
    found = list(watcher.watch(draft.reference, names, look, context.fit))
    assert [number for number, _ in found] == list(range(len(context.fit)))
    monkeypatch.undo()
    assert found == list(watcher.watch(draft.reference, names, look, context.fit))


def test_no_batches_give_nothing():
    draft, _ = bench_for()
    assert list(Watcher(("CPUExecutionProvider",)).watch(draft.reference, [], np.copy, [])) == []
