"""Images of users' rows: found below the data root, decoded whole, and upright; or refused with the reason."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: 64 megapixels take 192 MB, and no model sees more than 13."""
MAX_ASPECT_RATIO = 200
"""The image processors of Qwen's models refuse longer ones."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Not EPS, which Pillow hands to another program."""

_EXIF_ORIENTATION = 0x0112
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


class ReadImage(NamedTuple):
    """path: as it stands in a row; image_wh: of the upright image; content: a hash of its RGB pixels."""

    path: str
    image_wh: tuple[int, int]
    content: str


class ImageReader:
    """Reads the images of one source of rows, each file once.

    Files stay where they are and are named by their absolute path. Embedded images, and files that are not upright
    (EXIF) 8-bit RGB or grey without transparency, are written as such a PNG below `out_dir/images` and named relative
    to `out_dir`: transparent parts become white, 16 bits become 8.

    root: the folder that paths start from and may not leave; None: no path is followed, only embedded images are read.
    """

    def __init__(self, *, root: Path | None, out_dir: Path) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.out_dir = Path(out_dir)
        self._read: dict[str, ReadImage] = {}

    def read(self, value: Any) -> ReadImage:
        """The checked image of a row's value: a path, or `{"bytes", "path"}` as `datasets` stores it.

        Raises ValueError saying what is wrong with it.
        """
        stored = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        data = stored.get("bytes") if isinstance(stored.get("bytes"), bytes) else None
        path = locate(stored.get("path"), self.root) if data is None else None
        key = str(path) if path else hashlib.sha256(data).hexdigest()
        if key not in self._read:
            try:
                self._read[key] = self._keep(path, path.read_bytes() if path else data)
            except ValueError as error:
                raise ValueError(f"image {stored.get('path') or '(embedded)'!r} {error}") from None
        return self._read[key]

    def _keep(self, path: Path | None, data: bytes) -> ReadImage:
        image, is_as_stored = decode_upright(data)
        content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        if path is not None and is_as_stored:
            return ReadImage(str(path), image.size, content)
        target = self.out_dir / "images" / f"{content[:32]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)
        return ReadImage(f"images/{target.name}", image.size, content)


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
    return image.convert("RGB")


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
