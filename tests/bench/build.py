"""Building rows from annotations of COCO's size: generated JPEG files of 640 × 480 pixels, seven boxes each on average.

    .venv/bin/python tests/bench/build.py --images 118287    (COCO's train2017; some 6 GB in the temporary folder)

Prints the wall time and the memory of `vrft build`, and the same again with the checked images known: a build that was
killed goes on like that.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

WH, N_CLASSES, BITS = (640, 480), 80, 20


@functools.cache
def background() -> np.ndarray:
    """(height, width, 3) of colours that run into each other."""
    x, y = np.meshgrid(np.arange(WH[0]), np.arange(WH[1]))
    return np.stack([x / 3, y / 2, (x + y) / 5], axis=-1).astype(np.uint8)


def write_image(job: tuple[Path, int]) -> None:
    """One background for all, and the image's number as a row of black and white squares, so that no two are alike."""
    folder, number = job
    pixels = background().copy()
    for bit in range(BITS):
        pixels[:16, 16 * bit : 16 * (bit + 1)] = 255 * (number >> bit & 1)
    Image.fromarray(pixels).save(folder / f"{number:012}.jpg", quality=85)


def annotation_file(n_images: int) -> dict:
    """COCO's form, with boxes of one to three classes in each image."""
    generator = np.random.default_rng(0)
    annotations = []
    for image_id in range(n_images):
        classes = generator.choice(N_CLASSES, generator.integers(1, 4), replace=False)
        for category_id in generator.choice(classes, max(len(classes), generator.integers(1, 14))):
            x, y, w, h = (generator.uniform(5, 300, 4) * [1, 0.7, 1, 0.7]).round(2).tolist()
            own = {"image_id": image_id, "category_id": int(category_id) + 1, "bbox": [x, y, w, h], "area": w * h}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **own})
    return {
        "images": [{"id": n, "file_name": f"{n:012}.jpg", "width": 640, "height": 480} for n in range(n_images)],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": f"class {n}"} for n in range(N_CLASSES)],
    }


def build(folder: Path, *extra: str) -> tuple[float, float]:
    """Wall seconds of one build, and the highest memory of its parent process in GB."""
    out = f"out={folder / 'rows'}"
    command = ["task=detection", "dataset=coco", f"dataset.path={folder / 'gt.json'}", f"dataset.image_root={folder}"]
    code = "import resource, sys; from vrft.cli.main import main; code = main(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "build", *command, out, *extra], stdout=subprocess.PIPE, check=True
    )
    return time.perf_counter() - started, int(done.stdout.split()[-1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    n_images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name, multiprocessing.Pool() as pool:
        folder = Path(name)
        truth = annotation_file(n_images)
        (folder / "gt.json").write_text(json.dumps(truth))
        jobs = ((folder, number) for number in range(n_images))
        list(tqdm(pool.imap_unordered(write_image, jobs, chunksize=64), total=n_images, desc="images", unit="image"))
        n_annotations = len(truth.pop("annotations"))
        for what, extra in (("first build", ()), ("with checked images known", ("run.resume=true",))):
            seconds, memory = build(folder, *extra)
            each = f"{seconds:.0f} s, {1000 * seconds / n_images:.1f} ms an image"
            print(
                f"{what:28}{n_images} images, {n_annotations} boxes: {each}, {memory:.1f} GB in the parent", flush=True
            )


if __name__ == "__main__":
    main()
