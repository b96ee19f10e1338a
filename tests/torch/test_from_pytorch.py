"""docs/from-pytorch.md: what the right column says is run, row by row."""

import re
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch")

from torch_modules import Net, pictures, settled  # noqa: E402

import onnxq  # noqa: E402
import onnxq.torch  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "from-pytorch.md"
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ") and "onnxq." in line
]
LATER = {
    "prepare_qat(model, x": ("prepare_qat", onnxq.torch),
    "onnxq.quantize_dynamic": ("quantize_dynamic", onnxq),
}
"""What other parts of the project give."""


def train(module):
    """A step of training."""
    optimizer = torch.optim.SGD(module.parameters(), 1e-4)
    module.train()
    module(pictures(4)).square().mean().backward()
    optimizer.step()
    module.eval()


def test_the_table_is_found():
    assert len(ROWS) >= 18
    assert all(len(row) == 2 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[re.sub(r"\W+", "-", row[0])[:50] for row in ROWS])
def test_every_row_runs(row, tmp_path, monkeypatch):
    for word, (name, home) in LATER.items():
        if word in row[1] and name not in dir(home):
            pytest.skip(f"there is no {name} yet")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"`([^`]+)`", row[1]))
    data = pictures(20)
    names = {
        "onnxq": onnxq,
        "QuantConfig": onnxq.QuantConfig,
        "torch": torch,
        "model": settled(Net(classes=256)),
        "x": data[:10],
        "loader": [(data[i : i + 5], torch.zeros(5)) for i in range(0, 20, 5)],
        "train": train,
    }
    exec(compile(code, str(PAGE), "exec"), names)
    written = "out.onnx" if "out.onnx" in code else "model.onnx"
    operators = {node.op_type for node in onnx.load(written).graph.node}
    quantized = {"DequantizeLinear", "DynamicQuantizeLinear", "Cast"}
    assert bool(operators & quantized) == (written == "out.onnx")
