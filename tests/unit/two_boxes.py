"""Ground truth of two boxes, as COCO writes it, and the two detections that find them."""

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
