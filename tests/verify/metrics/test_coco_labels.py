"""A detector of coloured squares, COCO labels and mAP through the command line."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import parse
from PIL import Image

from onnxq.cli import commands

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")

CELLS, SIDE = 8, 8
CATEGORIES = (3, 11)

TEXT = """g (float[1,3,64,64] x) => (float[1,6,64] y)
<float[8,3,8,8] w, float[2,8,1,1] v, float[2] b, float[1,4,64] boxes, int64[3] flat>
{ c = Conv<strides=[8,8]>(x, w)  r = Relu(c)  s = Conv(r, v, b)  p = Sigmoid(s)  q = Reshape(p, flat)
  y = Concat<axis=1>(boxes, q) }"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The detector scores each cell by its colour; pictures with squares, and labels a little beside them."""
    made, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    kernel, scores = np.zeros((8, 3, SIDE, SIDE)), np.zeros((2, 8, 1, 1))
    for kind in (0, 1):
        kernel[kind, kind], kernel[kind, 1 - kind] = 1 / SIDE**2, -1 / SIDE**2
        scores[kind, kind] = 12
    rows, columns = np.divmod(np.arange(CELLS**2), CELLS)
    sides = np.full(CELLS**2, SIDE)
    cells = np.stack([columns * SIDE + SIDE / 2, rows * SIDE + SIDE / 2, sides, sides])[np.newaxis]
    model = parse(TEXT, opset=17, w=kernel, v=scores, b=[-6, -6], boxes=cells, flat=[1, 2, CELLS**2])
    ir.save(model, made / "m.onnx")
    (made / "pictures").mkdir()
    images, annotations = [], []
    for number in range(20):
        picture = rng.integers(0, 30, (64, 64, 3)).astype(np.uint8)
        for kind in rng.integers(0, 2, 2):
            row, column = rng.integers(0, CELLS, 2)
            picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE, kind] = 200
            x, y = np.clip(np.array([column, row]) * SIDE + rng.integers(-1, 2, 2), 0, 64 - SIDE)
            box = {"bbox": [int(x), int(y), SIDE, SIDE], "area": SIDE**2, "iscrowd": 0}
            ids = {"id": len(annotations) + 1, "image_id": 100 + number, "category_id": CATEGORIES[kind]}
            annotations.append(ids | box)
        Image.fromarray(picture).save(made / "pictures" / f"{number:02}.png")
        images.append({"id": 100 + number, "file_name": f"{number:02}.png"})
    categories = [{"id": one, "name": str(one)} for one in CATEGORIES]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (made / "coco.json").write_text(json.dumps(content))
    return made


def call(folder, command, *arguments, metric="map:yolo", labels="coco.json"):
    data = ("--data", folder / "pictures", "--preprocess", "resize=64,crop=64,mean=0,std=255")
    given = (command, folder / "m.onnx", *arguments, *data, "--metric", metric, "--labels", folder / labels)
    return commands.main([str(each) for each in (*given, "--threads", 1)])


def by_hand(folder):
    """The mAP of pycocotools on the same file, of what ONNX Runtime finds."""
    truth = coco.COCO(folder / "coco.json")
    session, found = ort.InferenceSession(folder / "m.onnx"), []
    for image in truth.dataset["images"]:
        picture = np.asarray(Image.open(folder / "pictures" / image["file_name"]), np.float32) / 255
        (rows,) = session.run(None, {"x": picture.transpose(2, 0, 1)[np.newaxis]})[0]
        for x, y, width, height, *scores in rows.T.astype(float):
            box = {"image_id": image["id"], "bbox": [x - width / 2, y - height / 2, width, height]}
            kinds = zip(CATEGORIES, scores, strict=True)
            found += [box | {"category_id": kind, "score": score} for kind, score in kinds if score >= 0.001]
    judge = cocoeval.COCOeval(truth, truth.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[0]


def test_compare_gives_what_pycocotools_gives(folder, capsys):
    expected = by_hand(folder)
    capsys.readouterr()
    assert call(folder, "compare", folder / "m.onnx", "--json") == 0
    told = json.loads(capsys.readouterr().out)["quality"]["metric"]
    assert 0.2 < expected < 0.9
    assert told["float_value"] == told["value"] == pytest.approx(expected, abs=1e-6)


def test_a_goal_on_map_is_reached(folder, capsys):
    goal = ("--goal", "metric>=0.95x", "--autotune", "off", "--correct", "none")
    assert call(folder, "quantize", folder / "o.onnx", *goal, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["quality"]["metric"]["value"] >= 0.95 * told["quality"]["metric"]["float_value"] > 0
    assert (folder / "o.onnx").exists()


@pytest.mark.parametrize(
    ("metric", "change", "told"),
    [
        ("map:detr", {}, "map:detr does not suit the model"),
        ("map:boxes", {}, "map:boxes does not suit the model"),
        ("map:ssd", {}, "one of map:yolo, map:detr, map:boxes"),
        ("map:yolo", {"images": [{"id": 100, "file_name": "00.png"}], "annotations": []}, "no label for 19"),
        ("map:yolo", {"annotations": []}, "the labels hold no box"),
        ("map:yolo", {"categories": [{"id": each} for each in (3, 11, 12)]}, "do not belong together"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(folder, capsys, metric, change, told):
    content = json.loads((folder / "coco.json").read_text())
    (folder / "changed.json").write_text(json.dumps(content | change))
    written = folder / "none.onnx"
    assert call(folder, "quantize", written, "--correct", "none", metric=metric, labels="changed.json") != 0
    assert told in capsys.readouterr().err
    assert not written.exists()
