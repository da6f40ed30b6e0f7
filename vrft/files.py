"""Files that are whole or not there: JSON lines, texts written atomically, folders completed by a manifest."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import xxhash
import yaml

from vrft.errors import UserError, first_line, form_faults, raise_all

if TYPE_CHECKING:
    from pydantic import BaseModel

MANIFEST = "manifest.json"
_MOST_VALUES = 20_000
_AS_WRITTEN = "the file as vrft wrote it is needed"
_HASHES = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}  # the first is written, both are read


class DamagedFolderError(UserError):
    """A folder differs from what its manifest says."""


def is_local(path: str) -> bool:
    """True unless the path of a model can only be a hub name, ORG/NAME, for nothing of that name lies here."""
    return path.startswith((".", "/", "~")) or len(Path(path).parts) != 2 or Path(path).exists()


def model_folder_fault(path: str) -> str | None:
    """Why a model's path is no folder of a saved model, or None; other paths are names on the hub, and None too.

    For the directory of a run it says which checkpoints are there.
    """
    folder = Path(path)
    if not is_local(path) or _holds_model(folder):
        return None
    if not folder.is_dir():
        return f"model.path is {path}, which does not exist; give a folder with a saved model, or a hub name ORG/NAME"
    within = [*folder.glob("checkpoints/*"), *folder.glob("*")]
    saved = sorted(filter(_holds_model, within), key=lambda found: (found.name not in ("best", "last"), found.name))
    if saved:
        named = " or ".join(f"model.path={found}" for found in saved[:3])
        return f"model.path is {path}, a folder with checkpoints; give one of them: {named}"
    return (
        f"model.path is {path}, a folder that has no config.json (or, for an adapter, adapter_config.json); give one "
        "with a saved model, or a hub name ORG/NAME"
    )


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def publish(staging: Path, folder: Path, *, previous: Path | None = None) -> None:
    """Write a manifest of all files in `staging`, flush everything to the disk and rename `staging` to `folder`.

    An old `folder` becomes `previous`, if that is given and does not exist; else it is removed. After a power cut
    `folder` is there with every byte, or not at all. All files get the permissions that the umask gives.
    """
    paths = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    files = {
        path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "hash": file_hash(path)} for path in paths
    }
    text = json.dumps({"files": files, "hash": _hash_of_entries(files)}, indent=1) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    mode = (staging / MANIFEST).stat().st_mode
    for path in paths:
        if path.stat().st_mode != mode:
            path.chmod(stat.S_IMODE(mode))  # safetensors writes files that nobody else may read
    for path in [*staging.rglob("*"), staging]:
        _flush(path)
    if folder.exists() and previous and not previous.exists():
        folder.rename(previous)
    remove(folder)
    staging.rename(folder)
    _flush(folder.parent)


def check_whole(folder: Path) -> None:
    """Raise `DamagedFolderError` that names everything in which a published folder differs from its manifest.

    README.md may differ: PEFT writes one for its reader to fill in, as before an upload.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, noted = manifest["files"], _noted_hash(manifest)
        is_intact = noted == _hash_of_entries(files, kind=hash_kind(noted))
        is_intact &= all("bytes" in entry and hash_kind(_noted_hash(entry)) in _HASHES for entry in files.values())
    except FileNotFoundError:
        raise DamagedFolderError(f"{folder} has no {MANIFEST}: it was never completed") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files, is_intact = {}, False
    if not is_intact:
        raise DamagedFolderError(f"{folder}: {MANIFEST} is damaged")
    read = {name: entry for name, entry in files.items() if name != "README.md"}
    faults = [f"{name} {fault}" for name, entry in read.items() if (fault := _fault(folder / name, entry))]
    if faults:
        raise DamagedFolderError(f"{folder}: {'; '.join(faults)}")


def check_model_files(folder: Path) -> None:
    """Raise `DamagedFolderError` where a model's folder has a manifest of ours and differs from it."""
    if not (folder / MANIFEST).is_file() or _is_of_others(folder / MANIFEST):
        return
    try:
        check_whole(folder)
    except DamagedFolderError as error:
        raise DamagedFolderError(
            f"model.path: {error}, as {folder / MANIFEST} says; take a whole copy of the folder, or delete {MANIFEST} "
            "if you have changed these files yourself"
        ) from None


def _is_of_others(manifest: Path) -> bool:
    """True for a file of that name which another program has written: JSON without the two keys of ours."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # ours, damaged
    return not isinstance(found, dict) or not found.keys() & {"hash", "sha256"} or "files" not in found


def manifest_hash(folder: Path) -> str:
    """The hash of a published folder as its manifest has it: of names and bytes of all files, none of them read."""
    return _noted_hash(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def _fault(path: Path, entry: dict) -> str | None:
    """What is wrong with one file, or None."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"has {size:,} bytes in place of {entry['bytes']:,}"
        noted = _noted_hash(entry)
        return None if file_hash(path, kind=hash_kind(noted)) == noted else "has other bytes than were written"
    except OSError as error:  # a bad sector
        return f"cannot be read ({error.strerror})"


def parse_yaml(text: str) -> Any:
    """The text's value. Raises `yaml.YAMLError` where it is no YAML, or one whose aliases unfold without end."""
    refuse_unfolding(text)
    return yaml.safe_load(text)


def refuse_unfolding(text: str) -> None:
    """Raise `yaml.YAMLError` if a YAML text's aliases, each written out, add more than 20,000 values to it.

    >>> refuse_unfolding("a: &a [1, 2]\\nb: [*a, *a]")
    """
    if "*" not in text or "&" not in text:
        return
    sizes: dict[int, float] = {}  # of the nodes that are complete; one that holds itself has no size

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            sizes[id(node)] = 1 + sum(
                size(one) for part in parts for one in (part if isinstance(part, tuple) else [part])
            )
        return sizes[id(node)]

    root = yaml.compose(text, yaml.SafeLoader)
    if root and size(root) - len(sizes) > _MOST_VALUES:  # of the values that are written, each is a node
        raise yaml.YAMLError(f"its aliases (*name) add more than {_MOST_VALUES:,} values; write out what is meant")


def file_hash(path: Path, *, kind: str = "xxh3_128") -> str:
    """`KIND:HEX` over a file's bytes, to notice damage and changes; nobody is kept from forging it.

    kind: `xxh3_128`, or `sha256` as earlier versions wrote.
    """
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, _HASHES[kind]).hexdigest()}"


def hash_of(texts: Iterable[str]) -> str:
    """`xxh3_128:HEX` over texts, in order.

    >>> hash_of(["a", "b"]) == hash_of(["a"])
    False
    """
    digest = xxhash.xxh3_128()
    for text in texts:
        digest.update(text.encode())
    return f"xxh3_128:{digest.hexdigest()}"


def weight_hash(folder: Path) -> str | None:
    """`xxh3_128:HEX` over names and bytes of a local model's weight files; None for a hub model (see its revision)."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []
    return hash_of(text for path in files for text in (path.name, file_hash(path))) if files else None


def hash_kind(noted: str) -> str:
    """The kind of a hash; that of earlier versions, which wrote no kind, is SHA-256.

    >>> hash_kind("xxh3_128:99aa06d3014798d86001c324468d497f"), hash_kind("9f86d081884c7d65")
    ('xxh3_128', 'sha256')
    """
    return noted.partition(":")[0] if ":" in noted else "sha256"


def _noted_hash(entry: dict) -> str:
    """The hash that a manifest or one of its entries holds, with its kind."""
    return entry["hash"] if "hash" in entry else f"sha256:{entry['sha256']}"


def _hash_of_entries(files: dict, *, kind: str = "xxh3_128") -> str:
    return f"{kind}:{_HASHES[kind](json.dumps(files, sort_keys=True).encode()).hexdigest()}"


def _flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int) -> None:
    """Have the disk take what was written to an open file; do nothing on a file system that cannot (some of FUSE)."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def read_written(path: Path, form: type[BaseModel]) -> Any:
    """The plain values of a JSON or YAML file that vrft has written.

    Everything that a run has left is read here or by `read_rows`: it may be cut, edited, or of another version. Raises
    `UserError` that names the file, and each value that is not as the form has it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); {_AS_WRITTEN}") from None
    raise_all(form_faults(values, form), heading=f"{path} has another form; {_AS_WRITTEN}:")
    return values


def read_rows(path: Path, form: type[BaseModel] | None = None, *, may_be_cut: bool = False) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, blank lines aside.

    may_be_cut: True leaves out what follows the last line end, which a killed process has left. Raises `UserError`
    naming the lines that are no JSON object, or not of the given form.
    """
    faults: list[str] = []
    rows = []
    for number, row in numbered_rows(path, faults, may_be_cut=may_be_cut):
        rows.append(row)
        faults += [f"{path}, line {number}: {fault}" for fault in (form_faults(row, form) if form else ())]
    raise_all(faults, heading=f"{path} has lines that cannot be read:")
    return rows


def numbered_rows(path: Path, faults: list[str], *, may_be_cut: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line number, row)` of each line of a JSON-lines file, in UTF-8 with or without a byte order mark.

    A line that is no JSON object is left out, and what is wrong with it is appended to `faults`.
    """
    # Not str.splitlines, which also splits at the U+2028 that JSON may hold.
    lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines[:-1] if may_be_cut else lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=distinct_keys)
        except UnicodeDecodeError as error:
            faults.append(f"{path}, line {number}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8")
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}, line {number}: not JSON ({error}); each line must be one JSON object")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                faults.append(f"{path}, line {number}: {type(row).__name__} found; each line must be one JSON object")


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, for `json.loads(object_pairs_hook=…)`; without it the first of two values would be lost in silence.

    Raises ValueError that names a key which stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} stands twice in {str(found)[:100]}")
    return found


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines with sorted keys, so that the same rows give the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text_atomically(path, "".join(lines))


def append_lines(path: Path, entries: Iterable[Any]) -> None:
    """Append entries to a file of JSON lines, and flush them to the disk: what is saved later must not outlive them."""
    with open_to_append(path) as file:
        file.writelines(json.dumps(entry, ensure_ascii=False, default=float) + "\n" for entry in entries)
        file.flush()
        flush_to_disk(file.fileno())


def write_text_atomically(path: Path, text: str, *, is_lasting: bool = False) -> Path:
    """Write the whole text or nothing; the path. is_lasting: True flushes it, so that it survives a power cut."""
    with written_whole(path, is_lasting=is_lasting) as file:
        file.write(text.encode())
    return path


@contextlib.contextmanager
def written_whole(path: Path, *, is_lasting: bool = False) -> Iterator[BinaryIO]:
    """A file to write bytes in, which takes the place of `path` when the block ends; after an error it stays as it was.

    The files of a run that are written in one go are written here, but for those in a folder that `publish` renames.
    The file is new and has a name that nobody can foresee, so a link that somebody has planted is never written
    through; `path` itself is replaced if it is a link. Raises `UserError` if `path` is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        what = "folder" if path.is_dir() else "device or a pipe"
        raise UserError(f"{path} is a {what}; the name of a file is needed")
    partial = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            if is_lasting:
                file.flush()
                flush_to_disk(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def open_to_append(path: Path) -> TextIO:
    """The file, opened to append text in UTF-8. Raises `UserError` if it is a link, which is never written through."""
    try:
        return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link to {os.readlink(path)}, and vrft writes through none; remove it") from None


def remove(path: Path) -> None:
    """Remove a file, a folder with all that can be removed in it, or a link but not what it points to, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
