"""Images of users' rows: which are read, how they are stored, and which are refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vrft.data.images import FORMATS, ImageReader, decode_upright


def picture(seed=0, size=(64, 48), mode="RGB"):
    """An image of its own content for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def reader(data) -> ImageReader:
    return ImageReader(root=data, out_dir=data.parent / "run")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_named_is_read(kind):
    stream = io.BytesIO()
    picture().save(stream, kind)
    image, is_as_stored = decode_upright(stream.getvalue())
    assert (image.size, image.mode) == ((64, 48), "RGB")
    assert is_as_stored is (kind != "GIF")  # a palette is not RGB


def test_a_rotated_photograph_is_stored_upright(data):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:32] = 255  # white above, black below; stored lying on its left side
    Image.fromarray(np.rot90(upright)).save(data / "photo.png", exif=exif)
    read = reader(data).read("photo.png")
    assert read.image_wh == (48, 64)
    stored = Image.open(data.parent / "run" / read.path)
    assert np.array_equal(np.asarray(stored), upright)
    assert not stored.getexif()


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), (255, 255, 255)),  # transparent: white
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (8, 8), (7, 255)), (7, 7, 7)),
        (Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), (128, 128, 128)),  # 16 bits, not cut to white
        (Image.new("RGB", (8, 8), (1, 2, 3)).quantize(2), (1, 2, 3)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
    ],
    ids=["transparent", "opaque", "grey and alpha", "16 bits", "palette", "1 bit"],
)
def test_other_kinds_of_pixels_are_stored_as_rgb(image, pixel):
    upright, is_as_stored = decode_upright(png(image))
    assert not is_as_stored
    assert (upright.mode, upright.getpixel((3, 3))) == ("RGB", pixel)


@pytest.mark.parametrize(("bits", "n_levels"), [(8, 256), (10, 256), (12, 256), (14, 256), (16, 256)])
def test_a_scan_keeps_its_grey_levels(bits, n_levels):
    """Scanners write 10, 12 or 14 bits into files of 16."""
    ramp = np.linspace(0, 2**bits - 1, 64 * 48).astype(np.uint16).reshape(48, 64)
    upright, _ = decode_upright(png(Image.fromarray(ramp)))
    levels = np.unique(np.asarray(upright))
    assert (len(levels), levels[0], levels[-1]) == (n_levels, 0, 255)


def png_of_16_bits(largest: int) -> bytes:
    """A colour PNG of 16 bits a channel, which Pillow reads and does not write."""
    row = b"\0" + np.linspace(0, largest, 3 * 8).astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_colours_of_16_bits_are_read():
    assert decode_upright(png_of_16_bits(65535))[0].getextrema() == ((0, 233), (11, 244), (22, 255))


def animated() -> bytes:
    stream = io.BytesIO()
    picture(0).save(stream, "GIF", save_all=True, append_images=[picture(1)])
    return stream.getvalue()


def deep() -> bytes:
    stream = io.BytesIO()
    Image.new("F", (8, 8)).save(stream, "TIFF")
    return stream.getvalue()


def jpeg() -> bytes:
    stream = io.BytesIO()
    picture(0).save(stream, "JPEG")
    return stream.getvalue()


def enlarged_jpeg() -> bytes:
    """A header that claims 8000 × 8000 pixels; libjpeg makes up those that are not there."""
    content = bytearray(jpeg())
    at = content.index(b"\xff\xc0") + 5  # after the marker, its length and the bits
    content[at : at + 4] = (8000).to_bytes(2) * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>404</html>", "is not an image of a known format"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "is not an image of a known format",
        ),  # Pillow would start Ghostscript
        (png(picture(0))[:2000], "is damaged"),
        (jpeg()[:1000], "is damaged"),
        (enlarged_jpeg(), "is damaged: no [0-9,]+ bytes can hold 8000 × 8000 pixels"),
        (png(Image.new("1", (8001, 8000))), "has 8001 × 8000 pixels; at most 64,000,000"),
        (png(Image.new("1", (20000, 10000))), "has too many pixels"),  # Pillow's own limit
        (png(Image.new("L", (1, 1))), "is a single pixel"),
        (png(Image.new("L", (2000, 10))), "has 2000 × 10 pixels; one side must be less than 200 times"),
        (animated(), r"is animated \(2 frames\)"),
        (deep(), "has pixels of mode F"),
        (png_of_16_bits(4095), "has 16 bits a channel and no value of more than 14"),
    ],
    ids=[
        "empty",
        "text",
        "program",
        "cut PNG",
        "cut JPEG",
        "enlarged JPEG",
        "large",
        "bomb",
        "1x1",
        "long",
        "animated",
        "float",
        "dark",
    ],
)
def test_an_image_that_cannot_be_used_is_named(data, content, words):
    (data / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"^image 'bad.png' {words}"):
        reader(data).read("bad.png")


def test_the_wrong_extension_does_no_harm(data):
    (data / "a.png").write_bytes(jpeg())
    assert reader(data).read("a.png").path == str(data / "a.png")


def test_a_link_to_itself_is_no_image(data):
    (data / "round.png").symlink_to("round.png")
    with pytest.raises(ValueError, match=r"^image 'round.png' is (not the path of an image file|missing)"):
        reader(data).read("round.png")


@pytest.mark.parametrize("progressive", [False, True])
def test_the_smallest_jpeg_is_no_damage(data, progressive):
    Image.new("L", (4000, 4000)).save(data / "a.jpg", optimize=True, progressive=progressive)
    assert reader(data).read("a.jpg").image_wh == (4000, 4000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(data):
    picture().save(data / "a.png")
    (data / "a.png").chmod(0)
    with pytest.raises(ValueError, match=r"a\.png"):
        reader(data).read("a.png")


def test_the_content_is_that_of_the_pixels(data):
    for name in ("a.png", "a.bmp", "a.tiff"):
        picture(0).save(data / name)
    picture(1).save(data / "b.png")
    picture(0).resize((48, 64)).save(data / "c.png")
    contents = [reader(data).read(name).content for name in ("a.png", "a.bmp", "a.tiff", "b.png", "c.png")]
    assert len(set(contents[:3])) == 1
    assert len(set(contents)) == 3


def test_an_embedded_image_needs_no_folder_and_a_path_does(data):
    images = ImageReader(root=None, out_dir=data.parent / "run")
    stored = [images.read(value).path for value in ({"bytes": png(picture(0)), "path": "/etc/x"}, png(picture(0)))]
    assert stored[0] == stored[1]
    assert (data.parent / "run" / stored[0]).is_file()
    with pytest.raises(ValueError, match=r"set dataset\.image_root"):
        images.read({"bytes": None, "path": str(data / "a.png")})
