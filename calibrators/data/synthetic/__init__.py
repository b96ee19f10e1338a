"""Synthetic inputs: samples that fit the types, shapes and tables of a model, where there is no data."""

from __future__ import annotations

from calibrators.data.synthetic.generate import check_sizes, id_bounds, synthetic_samples, token_sample

__all__ = ["check_sizes", "id_bounds", "synthetic_samples", "token_sample"]
