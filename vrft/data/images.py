"""Images of users' rows: found below the data root, decoded whole, and upright; or refused with the reason."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vrft.errors import UserError

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: 64 megapixels take 192 MB, and no model sees more than 13."""
MAX_ASPECT_RATIO = 200
"""The image processors of Qwen's models refuse longer ones."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Not EPS, which Pillow hands to another program."""
KEPT_FILE = ".checked_images"
"""JSON lines, but not named so: every .jsonl file of a run's data folder is read as a split."""

_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # in which width and height change places
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


class ReadImage(NamedTuple):
    """path: as it stands in a row; image_wh: of the upright image; content: a hash of its RGB pixels."""

    path: str
    image_wh: tuple[int, int]
    content: str


class Unread(NamedTuple):
    """An image still to be decoded. key: its file, or a hash of its bytes; state: its size and time of change."""

    key: str
    source: Path | bytes
    state: tuple[int, int]


class ImageReader:
    """Reads the images of one source of rows, each file once.

    Files stay where they are and are named by their absolute path. Embedded images, and files that are not upright
    (EXIF) 8-bit RGB or grey without transparency, are written as such a PNG below `out_dir/images` and named relative
    to `out_dir`: transparent parts become white, 16 bits become 8.

    root: the folder that paths start from and may not leave; None: no path is followed, only embedded images are read.
    is_kept: True notes what was read in `out_dir/.checked_images`, so that a later build decodes a file only if its
        size or time of change is another, or its PNG is gone; a damaged image is looked at again.
    """

    def __init__(self, *, root: Path | None, out_dir: Path, is_kept: bool = False) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.out_dir = Path(out_dir)
        self.is_kept = is_kept
        self._located: dict[str, Path] = {}
        self._read: dict[str, ReadImage | str] = {}
        self._returned: set[str] = set()
        self._earlier = _read_kept(self.out_dir) if is_kept else {}

    def read(self, value: Any) -> ReadImage:
        """The checked image of a row's value: a path, or `{"bytes", "path"}` as `datasets` stores it.

        Raises ValueError saying what is wrong with it.
        """
        key, source = self._source(value)
        if key not in self._read and (unread := self._look_up(key, source)):
            self.keep([unread], decode_images([unread], self.out_dir))
        found = self._read[key]
        if isinstance(found, str):
            named = value.get("path") if isinstance(value, dict) else value if isinstance(source, Path) else None
            raise ValueError(f"image {named or '(embedded)'!r} {found}")
        return found

    def unread(self, values: Iterable[Any]) -> list[Unread]:
        """The images among the values that no earlier call has returned and no earlier build has decoded, each once.

        Values that are no image are passed over; `read` says so.
        """
        found = []
        for value in values:
            try:
                key, source = self._source(value)
            except ValueError:
                continue
            is_known = key in self._read or key in self._returned
            if not is_known and (unread := self._look_up(key, source)):
                self._returned.add(key)
                found.append(unread)
        return found

    def keep(self, unread: Sequence[Unread], found: Sequence[ReadImage | str]) -> None:
        """Take what `decode_images` has found."""
        self._read.update((item.key, image) for item, image in zip(unread, found, strict=True))
        good = [(item, image) for item, image in zip(unread, found, strict=True) if isinstance(image, ReadImage)]
        if self.is_kept and good:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            with (self.out_dir / KEPT_FILE).open("a", encoding="utf-8") as file:
                file.write("".join("\n" + json.dumps([item.key, item.state, image]) for item, image in good))

    def _look_up(self, key: str, source: Path | bytes) -> Unread | None:
        """The image as one to decode; None if an earlier build has done so, which then counts as read."""
        state, earlier = _state(source), self._earlier.get(key)
        if earlier and earlier[0] == state and (self.out_dir / earlier[1].path).is_file():
            self._read[key] = earlier[1]
            return None
        return Unread(key, source, state)

    def _source(self, value: Any) -> tuple[str, Path | bytes]:
        """What an image is known by here, and its file or its bytes. Raises ValueError where the value names none."""
        stored = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        path, data = stored.get("path"), stored.get("bytes")
        if isinstance(data, bytes):
            return f"sha256:{hashlib.sha256(data).hexdigest()}", data
        if not isinstance(path, str) or path not in self._located:
            self._located[path] = locate(path, self.root)
        return str(self._located[path]), self._located[path]


def decode_images(unread: Iterable[Unread], out_dir: Path) -> list[ReadImage | str]:
    """Each image, a PNG of it written where it cannot stay as it is; or what is wrong with it."""
    found: list[ReadImage | str] = []
    for item in unread:
        try:
            found.append(_decode(item.source, out_dir))
        except OSError as error:
            found.append(f"cannot be read ({error.strerror})")
        except ValueError as error:
            found.append(str(error))
    return found


def _decode(source: Path | bytes, out_dir: Path) -> ReadImage:
    image, is_as_stored = decode_upright(source if isinstance(source, bytes) else source.read_bytes())
    content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    if isinstance(source, Path) and is_as_stored:
        return ReadImage(str(source), image.size, content)
    target = Path(out_dir) / "images" / f"{content[:32]}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")  # two processes may meet the same picture
    image.save(partial, "PNG")
    partial.replace(target)
    return ReadImage(f"images/{target.name}", image.size, content)


def _state(source: Path | bytes) -> tuple[int, int]:
    if isinstance(source, bytes):
        return len(source), 0
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _read_kept(out_dir: Path) -> dict[str, tuple[tuple[int, int], ReadImage]]:
    """What earlier builds have noted; a line that a kill has cut is passed over."""
    kept, path = {}, out_dir / KEPT_FILE
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            key, (size, changed), (stored, (width, height), content) = json.loads(line)
        except (ValueError, TypeError):
            continue
        kept[key] = (size, changed), ReadImage(stored, (width, height), content)
    return kept


def locate(path: Any, root: Path | None) -> Path:
    """The file of an image path, relative to `root` or absolute, symbolic links resolved.

    Raises ValueError where it is an address, lies outside `root`, or is no file.
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"image {path!r} is not the path of an image file")
    if "://" in path or path.startswith("data:"):
        raise ValueError(f"image {path[:100]!r} is an address, and none is fetched; download it and give its path")
    if root is None:
        raise ValueError(
            f"image {path!r} is a path, and the hub's rows hold none; set dataset.image_root to its folder"
        )
    try:
        found = (root / path).resolve()
        is_file = found.is_file()
    except OSError as error:
        raise ValueError(f"image {path[:100]!r} is not the path of an image file ({error.strerror})") from None
    if not found.is_relative_to(root):
        raise ValueError(f"image {path!r} is {found}, outside of {root}; move it, or set dataset.image_root")
    if not is_file:
        raise ValueError(f"image {path!r} is missing: there is no file {found}")
    return found


def load_image(path: Path, *, what: str) -> Image.Image:
    """The image in RGB, upright by its EXIF orientation (as `datasets` shows it to the trainers).

    Raises `UserError` naming the file and `what` it is for if it cannot be read.
    """
    try:
        return decode_upright(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: the image {path} cannot be read ({error}); a PNG or JPEG file is needed") from None


def decode_upright(data: bytes) -> tuple[Image.Image, bool]:
    """The image of a file's bytes as upright RGB, and True if the file holds it so already (or in 8-bit grey).

    Raises ValueError where it is damaged, animated, of a kind that is not read, too large, too long or a single pixel.
    """
    if not data:
        raise ValueError("is empty (0 bytes)")
    with _decoding():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*image.size)
    with _decoding():
        image.verify()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
        image.load()
        is_upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        upright = image if is_upright else ImageOps.exif_transpose(image)
    if is_animated:
        raise ValueError(f"is animated ({image.n_frames} frames); keep one frame")
    is_plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    return _to_rgb(upright), is_upright and is_plain


def upright_wh(path: str, root: Path) -> tuple[int, int] | None:
    """Width and height of the upright image, by its header alone; None where it cannot be read.

    path, root: as `locate` takes them.
    """
    try:
        with Image.open(locate(path, root.resolve()), formats=FORMATS) as header:
            width, height = header.size
            is_lying = header.getexif().get(_EXIF_ORIENTATION) in _LYING
    except (*_DAMAGE, Image.DecompressionBombError):
        return None
    return (height, width) if is_lying else (width, height)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width} × {height} pixels; at most {MAX_PIXELS:,} are read, so scale it down")
    if max(width, height) < 2:
        raise ValueError("is a single pixel")
    if max(width, height) >= MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"has {width} × {height} pixels; one side must be less than {MAX_ASPECT_RATIO} times the other"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"has pixels of mode {image.mode}; 8 or 16 bits a channel are read")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy, a fifth of the whole time


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file into a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are refused here, and of odd metadata
            yield
    except Image.DecompressionBombError:
        raise ValueError(f"has too many pixels; at most {MAX_PIXELS:,} are read, so scale it down") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"is no image of a kind that is read ({', '.join(FORMATS)})") from None
    except _DAMAGE as error:
        raise ValueError(f"is damaged ({error})") from None
