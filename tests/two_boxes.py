"""Ground truth of two boxes, as COCO writes it, and the two detections that find them."""

import json

BOX = [0, 0, 10, 10]
TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0},
        {"id": 7, "image_id": 2, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0},
    ],
}
RIGHT = [{"image_id": i, "category_id": 1, "bbox": BOX, "score": 0.5} for i in (1, 2)]


def write(folder, truth, *shards):
    """The path of the annotations and those of the shards."""
    folder.mkdir(exist_ok=True)
    paths = [folder / "gt.json", *(folder / f"dt{i}.json" for i in range(len(shards)))]
    for path, content in zip(paths, [truth, *shards], strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths[0], paths[1:]
