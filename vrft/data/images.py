"""Images of users' rows: located, decoded completely and turned upright, or refused with a reason."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vrft.errors import UserError, first_line
from vrft.files import open_to_append, written_whole

MAX_PIXELS = 64_000_000
"""Larger images are refused before decoding: 64 megapixels take 192 MB, and no model sees more than 13."""
MAX_BYTES = 8 * MAX_PIXELS
"""Of a file: 64 megapixels of four channels in 16 bits, not compressed."""
MAX_ASPECT_RATIO = 200
"""Of the longer side to the shorter. The image processors of Qwen's models refuse larger ratios."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Not EPS, which Pillow hands to another program."""
KEPT_FILE = ".checked_images"
"""JSON lines, but without .jsonl: a run reads every .jsonl file of its data folder as a split."""

_EXIF_ORIENTATION, _TRANSPOSED = 0x0112, (5, 6, 7, 8)  # orientations that swap width and height
_BITS = (8, 10, 12, 14, 16)
"""Of the sensors whose grey values are saved in 16-bit files; a file does not say which."""
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)
"""Exceptions of Pillow's decoders for damaged files."""


class ReadImage(NamedTuple):
    """path: for the row; image_wh: of the upright image, in pixels; content: a hash of its RGB pixels."""

    path: str
    image_wh: tuple[int, int]
    content: str


class Unread(NamedTuple):
    """An image to decode. key: its file, or a hash of its bytes; state: size in bytes, and modification time in ns."""

    key: str
    source: Path | bytes
    state: tuple[int, int]


class ImageReader:
    """Reads the images of one source of rows, each file once.

    Upright 8-bit RGB or grey files without transparency stay in place; rows name their absolute path. Other files, and
    embedded images, are converted to such a PNG below `out_dir/images`; rows name it relative to `out_dir`. Transparent
    parts become white. Grey values of 16 bits become 8: those of 8, 10, 12 or 14 bits, by the largest one in the image,
    keep their upper 8. Upright: by the EXIF orientation.

    root: the folder of relative paths; no path may leave it. None: only embedded images are read.
    is_kept: True records each decoded image in `out_dir/.checked_images`. A later build decodes a file again only if
        its size or modification time has changed, its PNG is gone, or it was damaged.
    known: a folder of built rows: what its build recorded is used in the same way, and nothing is recorded.
    """

    def __init__(self, *, root: Path | None, out_dir: Path, is_kept: bool = False, known: Path | None = None) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.out_dir = Path(out_dir)
        self.is_kept = is_kept
        self._located: dict[str, Path] = {}
        self._read: dict[str, ReadImage | str] = {}
        self._returned: set[str] = set()
        self._earlier_dir = Path(known or out_dir)
        self._earlier = _read_kept(self._earlier_dir) if is_kept or known else {}

    def read(self, value: Any) -> ReadImage:
        """The checked image of a row's value: a path, or `{"bytes", "path"}` as `datasets` stores it.

        Raises ValueError that says what is wrong with it.
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
        """The images that no earlier call has returned and no earlier build has decoded, each once.

        Values that are no image are skipped; `read` raises for them.
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
        """Store the results of `decode_images`."""
        self._read.update((item.key, image) for item, image in zip(unread, found, strict=True))
        good = [(item, image) for item, image in zip(unread, found, strict=True) if isinstance(image, ReadImage)]
        if self.is_kept and good:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            noted = [(item.key, item.state, image) for item, image in good]
            made = [
                (self.out_dir.resolve() / image.path, image) for _, image in good if not Path(image.path).is_absolute()
            ]
            noted += [(str(path), _state(path), image) for path, image in made]
            with open_to_append(self.out_dir / KEPT_FILE) as file:
                file.write("".join("\n" + json.dumps(one) for one in noted))

    def _look_up(self, key: str, source: Path | bytes) -> Unread | None:
        """The image to decode; None if an earlier build has decoded it, and then its result is used."""
        state, earlier = _state(source), self._earlier.get(key)
        if earlier and earlier[0] == state and (self._earlier_dir / earlier[1].path).is_file():
            self._read[key] = earlier[1]
            return None
        return Unread(key, source, state)

    def _source(self, value: Any) -> tuple[str, Path | bytes]:
        """The key of an image, and its file or bytes. Raises ValueError if the value names no image."""
        stored = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        path, data = stored.get("path"), stored.get("bytes")
        if isinstance(data, bytes):
            return f"sha256:{hashlib.sha256(data).hexdigest()}", data
        if not isinstance(path, str) or path not in self._located:
            self._located[path] = locate(path, self.root)
        return str(self._located[path]), self._located[path]


def decode_images(unread: Iterable[Unread], out_dir: Path) -> list[ReadImage | str]:
    """For each image the result, or what is wrong with it. Writes a PNG of each image that must be converted."""
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
    image, is_as_stored = decode_upright(source if isinstance(source, bytes) else image_bytes(source))
    content = content_of(image)
    if isinstance(source, Path) and is_as_stored:
        return ReadImage(str(source), image.size, content)
    target = Path(out_dir) / "images" / f"{content[:32]}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as file:
        image.save(file, "PNG")
    return ReadImage(f"images/{target.name}", image.size, content)


def content_of(image: Image.Image) -> str:
    """SHA-256 (hex) over the size and the pixels of an upright RGB image: by it a manifest knows an image."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _state(source: Path | bytes) -> tuple[int, int]:
    if isinstance(source, bytes):
        return len(source), 0
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _read_kept(out_dir: Path) -> dict[str, tuple[tuple[int, int], ReadImage]]:
    """`{key: (state, result)}` of earlier builds. A line that was cut by a kill is skipped."""
    kept, path = {}, out_dir / KEPT_FILE
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            key, (size, changed), (stored, (width, height), content) = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(key, str) and isinstance(stored, str):  # the folder may be somebody else's
            kept[key] = (size, changed), ReadImage(stored, (width, height), content)
    return kept


def locate(path: Any, root: Path | None, *, remedy: str = "set dataset.image_root") -> Path:
    """The file of an image path, relative to `root` or absolute, symbolic links resolved.

    remedy: what else helps against a path outside `root`. Raises ValueError for a URL, such a path, or a missing file.
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"image {path!r} is not the path of an image file")
    if "://" in path or path.startswith("data:"):
        raise ValueError(f"image {path[:100]!r} is a URL, and none is fetched; download it and give its path")
    if root is None:
        raise ValueError(
            f"image {path!r} is a path, but rows of the hub have no folder; set dataset.image_root to the folder"
        )
    try:
        found = (root / path).resolve()
        is_file = found.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, until Python 3.12
        raise ValueError(f"image {path[:100]!r} is not the path of an image file ({first_line(error)})") from None
    if not found.is_relative_to(root):
        raise ValueError(f"image {path!r} is {found}, outside of {root}; move it, or {remedy}")
    if not is_file:
        raise ValueError(f"image {path!r} is missing: there is no file {found}")
    return found


def image_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises ValueError for a device, a pipe, a folder, or more than `MAX_BYTES`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no file, but a device, a pipe or a folder")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
    return path.read_bytes()


def load_image(path: Path, *, what: str) -> Image.Image:
    """The image in RGB, turned upright by its EXIF orientation (as `datasets` shows it to the trainers).

    what: what the image is for. Raises `UserError` that names it and the file if the image cannot be read.
    """
    if not path.exists() or path.is_dir():
        found = "is a folder" if path.is_dir() else "is missing: there is no such file"
        raise UserError(f"{what}: the image {path} {found}; give the path of a PNG or JPEG file")
    try:
        return decode_upright(image_bytes(path))[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: the image {path} cannot be read ({error}); a PNG or JPEG file is needed") from None


def decode_upright(data: bytes) -> tuple[Image.Image, bool]:
    """The image of a file's bytes as upright RGB, and True if the file already is upright 8-bit RGB or grey.

    Raises ValueError if it is damaged, animated, of an unknown format, too large, too long or a single pixel.
    """
    if not data:
        raise ValueError("is empty (0 bytes)")
    with _decoding():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*image.size)
    if image.format == "JPEG" and len(data) < image.width * image.height / 512:
        raise ValueError(f"is damaged: no {len(data):,} bytes can hold {image.width} × {image.height} pixels")
    with _decoding():
        image.verify()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
        has_16_bits = any(";16" in str(args) for *_, args in image.tile)
        image.load()
        is_upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        upright = image if is_upright else ImageOps.exif_transpose(image)
    if is_animated:
        raise ValueError(f"is animated ({image.n_frames} frames); keep one frame")
    if has_16_bits and image.mode == "RGB" and max(high for _, high in image.getextrema()) < 64:
        raise ValueError(
            "has 16 bits a channel and no value of more than 14, which Pillow reads as black; save it in 8"
        )
    is_plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    return _to_rgb(upright), is_upright and is_plain


def upright_wh(path: str, root: Path) -> tuple[int, int] | None:
    """Width and height of the upright image, from the file's header; None if it cannot be read.

    path, root: as in `locate`.
    """
    try:
        with Image.open(locate(path, root.resolve()), formats=FORMATS) as header:
            width, height = header.size
            is_transposed = header.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    except (*_DAMAGE, Image.DecompressionBombError):
        return None
    return (height, width) if is_transposed else (width, height)


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
        values = np.asarray(image)
        bits = next(bits for bits in _BITS if values.max() < 1 << bits)
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"has pixels of mode {image.mode}; 8 or 16 bits a channel are read")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy: a fifth of the whole time


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn every exception of Pillow for a damaged file into a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked here, and about unusual metadata
            yield
    except Image.DecompressionBombError:
        raise ValueError(f"has too many pixels; at most {MAX_PIXELS:,} are read, so scale it down") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
    except _DAMAGE as error:
        raise ValueError(f"is damaged ({error})") from None
