"""Readers of users' rows: JSON, JSON lines, parquet, folders of them, data sets saved by `datasets`, and the hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrft.errors import UserError, first_line
from vrft.files import distinct_keys, numbered_rows

FILE_KINDS = (".jsonl", ".json", ".parquet")
_SAVED_BY_DATASETS = ("dataset_dict.json", "dataset_info.json", "state.json")
_MOST_TIMES = 50
"""A .gz, or a column of parquet, may unpack to so many times its file's size, or to 16 MiB. Annotations shrink to a
fifth, indented ones to a thirtieth; 6 MB of zeros hold 6 GB."""

Located = tuple[str, int, dict[str, Any]]
"""A raw row: the name of its file, its number in the file from 1 (JSON lines: its line), and its columns."""


@contextmanager
def reading(path: Any, form: str, advice: str = "") -> Iterator[None]:
    """Within, whatever a library raises about a file's bytes becomes a `UserError` that names the file.

    Parsers of damaged or hostile bytes raise anything, memory that runs out too; so no list of exceptions is whole.
    form: what the file ought to be. advice: what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(f"{path} cannot be read as {form} ({reason}){advice}") from None


def read_hub(name: str, *, split: str, revision: str | None) -> Iterator[Located]:
    """The rows of a data set on the hub; only this uses the network. Raises `UserError` if they cannot be loaded."""
    import datasets

    what = f"dataset.hub={name} (split {split}, revision {revision or 'newest'})"
    advice = "; check the name, the split and the network, or download it and give its folder as dataset.path"
    with reading(what, "a data set", advice):
        dataset = datasets.load_dataset(name, split=split, revision=revision)
    return _read_dataset(dataset, f"{name}/{split}")


def read_path(path: Path, *, key: str, split: str, faults: list[str]) -> Iterator[Located]:
    """The rows of a file, or of one split of a folder. Lines that cannot be read are appended to `faults`.

    A folder was saved by `datasets`, or has SPLIT.jsonl, .json or .parquet, or SPLIT-*.parquet (also below `data/`, as
    in a download from the hub). Raises `UserError` that names the config's `key` if none of these is there.
    """
    if not path.exists():
        raise UserError(f"{key} is {str(path)!r}: there is no such file or folder")
    if path.is_dir() and any((path / name).is_file() for name in _SAVED_BY_DATASETS):
        yield from _read_saved(path, key=key, split=split)
        return
    for file in _files_of(path, key=key, split=split):
        if file.suffix == ".jsonl":
            yield from ((file.name, number, row) for number, row in numbered_rows(file, faults))
        elif file.suffix == ".json":
            yield from _read_json(file, faults, key=key)
        else:
            yield from _read_parquet(file)


def _files_of(path: Path, *, key: str, split: str) -> list[Path]:
    if path.is_file() and path.suffix in FILE_KINDS:
        return [path]
    if path.is_file():
        raise UserError(f"{key} is {str(path)!r}; files of rows end in {', '.join(FILE_KINDS)}")
    files = [path / f"{split}{suffix}" for suffix in FILE_KINDS if (path / f"{split}{suffix}").is_file()]
    files = files or sorted([*path.glob(f"{split}-*.parquet"), *path.glob(f"data/{split}-*.parquet")])
    if not files or len({file.suffix for file in files}) > 1:
        found = ", ".join(file.name for file in files) or "none of them"
        raise UserError(
            f"{key} is the folder {str(path)!r}, and of the split {split!r} it holds {found}; right is one of "
            f"{split}.jsonl, {split}.json, {split}.parquet, {split}-*.parquet, or a folder saved by datasets"
        )
    return files


def _read_json(file: Path, faults: list[str], *, key: str) -> Iterator[Located]:
    rows = read_json(file, key=key)
    if not isinstance(rows, list):
        raise UserError(f"{file} holds a {type(rows).__name__}; a list of objects is right, one for each row")
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield file.name, number, row
        else:
            faults.append(f"{file.name}, row {number}: {type(row).__name__} found; each row must be one object")


def read_json(path: Path, *, key: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The content of a JSON file in UTF-8, also if it is compressed (.gz).

    Raises `UserError` that names the file and the config's `key`.
    """
    try:
        return json.loads(
            _text_of(path), object_hook=object_hook, object_pairs_hook=None if object_hook else distinct_keys
        )
    except FileNotFoundError:
        raise UserError(f"{key} is {path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    except (OSError, EOFError, ValueError, RecursionError, MemoryError, zlib.error) as error:
        raise UserError(f"{path}: not JSON ({error}); {key} takes JSON in UTF-8, or the same in .gz") from None


def _text_of(path: Path) -> str:
    data = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8-sig")


def _most_bytes(path: Path) -> int:
    """How many bytes a compressed file may unpack to."""
    return max(2**24, _MOST_TIMES * path.stat().st_size)


def _unpacked(path: Path) -> bytes:
    """The bytes in a .gz file. Raises `UserError` as soon as they are more than a sound file holds."""
    size, most, data = path.stat().st_size, _most_bytes(path), bytearray()
    with gzip.open(path) as file:
        while chunk := file.read(2**20):
            data += chunk
            if len(data) > most:
                raise UserError(
                    f"{path}: its {size:,} bytes unpack to more than {most:,}, which could fill the memory; if that is "
                    "right, unpack it (gunzip) and give the .json"
                )
    return bytes(data)


def _read_parquet(file: Path) -> Iterator[Located]:
    from pyarrow.parquet import ParquetFile

    with reading(file, "a parquet file"):
        table, n_bytes = ParquetFile(file), Counter()
        for group in table.metadata.to_dict()["row_groups"]:
            for column in group["columns"]:
                n_bytes[column["path_in_schema"].partition(".")[0]] += column["total_uncompressed_size"]
        for name, n in n_bytes.items():
            if n > _most_bytes(file):
                raise UserError(
                    f"{file}: its {file.stat().st_size:,} bytes unpack to {n:,} in the column {name!r}, which could "
                    "fill the memory; leave the column out, or save the file without compression"
                )
        rows = (row for batch in table.iter_batches(batch_size=32) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield file.name, number, row


def _read_saved(path: Path, *, key: str, split: str) -> Iterator[Located]:
    import datasets

    with reading(f"{key}={path}", "a folder saved by datasets"):
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise UserError(f"the split is {split!r}; {key} {str(path)!r} has {', '.join(dataset)}")
            dataset = dataset[split]
        yield from _read_dataset(dataset, f"{path.name}/{split}")


def _read_dataset(dataset, name: str) -> Iterator[Located]:
    """The rows as stored. Images stay `{"bytes", "path"}`: decoding them here would raise on a damaged one."""
    stored = dataset.with_format("arrow")
    for start in range(0, len(stored), 32):
        for offset, row in enumerate(stored[start : start + 32].to_pylist(), 1):
            yield name, start + offset, row
