"""RefCOCO, RefCOCO+ and RefCOCOg: one row per sentence, with its box from COCO annotations.

    refs(unc).p      a pickled list of {ref_id, ann_id, image_id, split, sentences: [{sent, raw}], …}; or as JSON
    instances.json   images {id, width, height, file_name} and annotations {id, image_id, bbox: [x, y, width, height]}

A pickle can run code when it is read. So only containers, numbers and texts are accepted: a pickle that names anything
else is refused, with that name. Images are those of the annotations; a ref's own `file_name` is no file.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from vrft.data.assemble import build_splits
from vrft.data.coco_files import read_sections, with_ids
from vrft.data.options import CommonOptions
from vrft.data.readers import Located, read_json, reading
from vrft.data.reasonseg import clip_by_a_pixel, refuse_other_tasks, shown
from vrft.errors import UserError, raise_all
from vrft.tasks import Task
from vrft.tasks.rows import Row


class Options(CommonOptions):
    """The keys of `dataset` that only this source has.

    path: refs(unc).p, or such a list as JSON. instances: the COCO annotations; null: instances.json in path's folder.
    split, test_split: the refs for training and for the test (train, val, testA, testB, test); test_split null: no
        separate test set. test_path: another file of refs for the test.
    text: the form of a sentence that becomes the phrase: `sent` (lower case, no punctuation) or `raw`.
    """

    path: str
    instances: str | None = None
    split: str = "train"
    test_split: str | None = None
    test_path: str | None = None
    text: Literal["sent", "raw"] = "sent"


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of every split (see `vrft.data.assemble`). Raises `UserError` for a task without a box or point."""
    refuse_other_tasks(task, source="RefCOCO")
    return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)


def read(options: Options, *, is_test: bool, faults: list[str]) -> tuple[Iterator[Located], Path]:
    """The raw rows of the training or test source, and the folder of relative image paths.

    Each bad ref adds a text to `faults`. Raises `UserError` for files that cannot be read, or an unknown split.
    """
    key = "dataset.test_path" if is_test and options.test_path else "dataset.path"
    path = Path((options.test_path if is_test else None) or options.path)
    split = (options.test_split if is_test else None) or options.split
    refs = read_refs(path, key=key)
    n_refs = Counter(ref["split"] for ref in refs if isinstance(ref, dict) and isinstance(ref.get("split"), str))
    if split not in n_refs:
        found = ", ".join(f"{name} ({n})" for name, n in sorted(n_refs.items())) or "none"
        raise UserError(f"the split is {split!r}, and {path} has refs of the splits {found}")
    instances = Path(options.instances) if options.instances else path.parent / "instances.json"
    pictures, boxes = _read_instances(instances)
    return _rows(path.name, refs, split, text=options.text, pictures=pictures, boxes=boxes, faults=faults), path.parent


def _rows(
    name: str, refs: list, split: str, *, text: str, pictures: dict, boxes: dict, faults: list[str]
) -> Iterator[Located]:
    seen: set[int] = set()
    for number, ref in enumerate(refs, 1):
        if isinstance(ref, dict) and isinstance(ref.get("split"), str) and ref["split"] != split:
            continue
        where = f"{name}, row {number}"
        try:
            where = f"{name}, row {number} (ref_id {_whole(ref, 'ref_id')})"
            columns = _columns(ref, pictures, boxes)
            sentences = _sentences(ref, text)
            if ref["ref_id"] in seen:
                raise ValueError("an earlier row has its ref_id too; it must be unique")
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        seen.add(ref["ref_id"])
        for sentence, phrase in enumerate(sentences, 1):
            yield name, number, {"row_id": f"{ref['ref_id']}-{sentence}", "phrase": phrase, **columns}


def _columns(ref: dict, pictures: dict, boxes: dict) -> dict[str, Any]:
    """The columns that all rows of a ref share. Raises ValueError for a ref that does not fit the annotations."""
    ann_id, image_id = _whole(ref, "ann_id"), _whole(ref, "image_id")
    if not isinstance(ref.get("split"), str):
        raise ValueError(f"split is {shown(ref.get('split'))}; train, val, testA, testB or test is right")
    if ann_id not in boxes:
        raise ValueError(f"ann_id is {ann_id}; instances has no such annotation")
    of_image, xywh = boxes[ann_id].get("image_id"), boxes[ann_id].get("bbox")
    if image_id not in pictures:
        raise ValueError(f"image_id is {image_id}; instances has no such image")
    if of_image != image_id:
        raise ValueError(f"image_id is {image_id}, and its annotation {ann_id} is of image {shown(of_image)}")
    file_name, *image_wh = (pictures[image_id].get(key) for key in ("file_name", "width", "height"))
    if not isinstance(file_name, str) or not all(type(side) is int and side > 0 for side in image_wh):
        raise ValueError(f"image {image_id} of instances lacks file_name, width or height")
    is_box = isinstance(xywh, list) and len(xywh) == 4
    if not is_box or not all(type(v) in (int, float) and abs(v) < 1e9 for v in xywh):
        raise ValueError(f"annotation {ann_id} has the bbox {xywh!r:.100}; four finite numbers are right")
    x, y, width, height = xywh
    gold = clip_by_a_pixel([x, y, x + width, y + height], image_wh)
    return {"image": file_name, "image_wh": image_wh, "image_id": image_id, "gold": gold}


def _sentences(ref: dict, text: str) -> list[str]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise ValueError(f"sentences is {shown(sentences)}; a list of at least one {{{text}}} is needed")
    phrases = [sentence.get(text) if isinstance(sentence, dict) else None for sentence in sentences]
    for number, phrase in enumerate(phrases, 1):
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f"sentence {number} has the {text} {shown(phrase)}; a text is needed")
    return phrases


def _whole(ref: Any, key: str) -> int:
    value = ref.get(key) if isinstance(ref, dict) else None
    if type(value) is not int:
        raise ValueError(f"{key} is {shown(value)}; a whole number is needed")
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and texts. Refuses everything that needs an import."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside itself")


def read_refs(path: Path, *, key: str) -> list:
    """The refs of a pickle or a JSON file. Raises `UserError` if it holds no list of them."""
    refs = read_json(path, key=key) if path.suffix == ".json" else _unpickle(path, key=key)
    if not isinstance(refs, list) or not refs:
        raise UserError(f"{path} holds {shown(refs) if refs else 'nothing'}; a list of refs is right")
    return refs


def _unpickle(path: Path, *, key: str) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key} is {str(path)!r}, which cannot be read ({error.strerror})") from None
    with reading(path, "a pickle of containers, numbers and texts alone"):
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:  # texts of Python 2, in the code page of their author
            return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()


def _read_instances(path: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """The images and the annotations of a COCO file by id. Only ids are checked; the refs' checks find other faults."""
    lists, faults = ("images", "annotations"), []
    sections = read_sections(path, key="dataset.instances", sections=lists, may_be_empty=lists)
    pictures, boxes = (
        {entry["id"]: entry for entry, _ in with_ids(sections[name], name, path.name, faults)} for name in lists
    )
    raise_all(faults, heading=f"dataset.instances is {path}, which cannot be used:")
    return pictures, boxes
