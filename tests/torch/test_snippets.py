"""The Python examples of README.md and docs/ run as they stand, with a small model and a few batches."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import onnxq  # noqa: E402
import onnxq.torch  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SNIPPETS = [
    (page.name, code)
    for page in PAGES
    if page.name != "metrics.md"  # tests/flow/test_metric.py
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]
EXAMPLE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONFIG = onnxq.QuantConfig(verify="off")


class Plain(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        """Give scores of four classes."""
        return self.two(torch.relu(self.one(x))).mean((2, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the files that the examples read."""
    folder = tmp_path_factory.mktemp("files")
    exported = onnxq.torch.export(Plain().eval(), EXAMPLE, folder / "model.onnx", input_names=["input"])
    assert exported.inputs == ("input",)
    (folder / "pictures").mkdir()
    np.savez(folder / "pictures" / "a.npz", input=EXAMPLE.numpy().repeat(3, axis=0))
    onnxq.quantize_static(folder / "model.onnx", folder / "from_elsewhere.onnx", [EXAMPLE] * 5, CONFIG)
    return folder


def test_there_are_examples():
    assert len(SNIPPETS) >= 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("page", "code"), SNIPPETS, ids=[f"{p}-{c.splitlines()[0][:30]}" for p, c in SNIPPETS]
)
def test_the_example_runs(made, tmp_path, monkeypatch, page, code):
    if "s3://" in code:
        pytest.skip("it needs a cluster and object storage; tests/distributed has the like on two workers")
    # A copy: some examples overwrite what others read.
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "files"))
    loader = [(EXAMPLE + i, torch.zeros(4, dtype=torch.long)) for i in range(5)]
    module = Plain().eval()
    names = {
        "onnxq": onnxq,
        "QuantConfig": onnxq.QuantConfig,
        "torch": torch,
        "model": module,
        "module": module,
        "x": EXAMPLE,
        "example_inputs": EXAMPLE,
        "data": [{"input": EXAMPLE}] * 5,
        "loader": loader,
        "some_batches": loader,
        "criterion": nn.CrossEntropyLoss(),
        "my_batches": [(f"batch {i}", {"input": EXAMPLE.numpy()}) for i in range(5)],
    }
    if "pt2e" in code:
        flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
        names |= {"prepare_pt2e": flow.prepare_pt2e, "convert_pt2e": flow.convert_pt2e}
    # The names of tensors are those of the reader's model.
    exec(compile(code.replace('"conv1"', '"conv2d"').replace('"conv2"', '"relu"'), page, "exec"), names)
