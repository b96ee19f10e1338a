"""Run a model on samples and look at its tensors, with bit-identical results on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import processors, run_batch
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.core.parallel import in_order
from onnxq.graph.tensor_bytes import side_by_side

Arrays = Mapping[str, NDArray[np.generic]]
"""Tensor name -> array."""

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Watcher:
    """Runs models. It can be sent to another process if ``on_bad`` is None.

    Attributes:
        providers: the execution providers, the preferred one first.
        threads: the number of batches that run in parallel, on one thread each; 0: one a processor. Where
            their tensors take much memory, fewer run, each on more threads.
        on_bad: called for each batch that a model rejects; the batch is then skipped. If None, a rejected
            batch is an error.
        optimize: whether the runtime may fuse nodes. It fuses around the tensors that are looked at, so their
            last bits depend on which these are; without, they do not.
    """

    providers: Sequence[str]
    threads: int = 0
    on_bad: OnBad | None = None
    optimize: bool = True

    def watch(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        look: Callable[[int, Arrays], _Found],
        samples: Iterable[Sample],
    ) -> Iterator[_Found]:
        """Run ``model`` and yield what ``look`` computes from some of its tensors, batch by batch, in order.

        Args:
            model: the model to run.
            tensors: names of the tensors of its main graph that ``look`` reads.
            look: maps the batch number and the arrays by tensor name to a result. Called on several threads.
            samples: the batches.

        Raises:
            CalibrationError: the model does not load, or rejects a batch and `on_bad` is None.
        """
        names = list(dict.fromkeys(tensors))
        numbered = enumerate(samples)
        first = next(numbered, None)
        if first is None:
            return
        threads = self.threads or processors()
        room = side_by_side(model, first[1].feeds, threads)
        session = open_session(
            model,
            outputs=names,
            providers=self.providers,
            threads=threads // room,
            optimize=self.optimize,
            alone=False,
        )

        def one(numbered: tuple[int, Sample]) -> list[_Found]:
            number, batch = numbered
            try:
                arrays = run_batch(session, names, batch)
            except CalibrationError as error:
                if self.on_bad is None:
                    refuse(error)
                self.on_bad(error, batch.count)
                return []
            return [look(number, dict(zip(names, arrays, strict=True)))]

        for found in in_order(one, chain([first], numbered), room):
            yield from found
