"""What an upload must survive: refused by name, never a crash, a hang or a heap of memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ltdeploy.errors import ImageError
from ltdeploy.images import load_image

MOST_MEMORY_MB = 500
LONGEST_S = 30

HOSTILE = [
    "bomb_40000x40000.png",
    "empty.jpg",
    "html.png",
    "lying_header.png",
    *(f"maybe_bitflips{n}.jpg" for n in range(5)),
    "ok.webp",
    "ok_1x1.png",
    "ok_4000x1.png",
    "ok_animated.gif",
    "ok_cmyk.jpg",
    "ok_exif_rotate6.jpg",
    "ok_gray.jpg",
    "ok_gray16.png",
    "ok_palette.png",
    "ok_rgba.png",
    "svg_as_png.png",
    "text.jpg",
    "truncated.jpg",
]

# VmHWM and not ru_maxrss: the latter starts from the parent's size and would measure pytest.
_PEAK = """
def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))
"""
_CHILD = (
    _PEAK
    + """
import sys, warnings
warnings.simplefilter("error")
from ltdeploy.errors import ImageError
from ltdeploy.images import Preprocessing, load_prepared
try:
    shape = load_prepared(sys.argv[1], Preprocessing.from_crop_pct(224, 224)).shape
    print("accepted", shape == (224, 224, 3))
except ImageError as error:
    print("refused", error)
print(peak_mb())
"""
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def load_in_child(path: Path, child: str = _CHILD) -> tuple[str, int]:
    """Return what became of the file in a fresh process, and the process's peak memory in MB."""
    run = subprocess.run(
        [sys.executable, "-c", child, str(path)],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    outcome, peak = run.stdout.splitlines()
    return outcome, int(peak)


def check_refused(outcome: str, path: Path) -> None:
    assert outcome.startswith("refused")
    assert str(path) in outcome
    assert "xpected" in outcome or "accepted" in outcome


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64)).save(buffer, kind, **options)
    return buffer.getvalue()


def overwritten(data: bytes, after: bytes, skip: int, value: bytes) -> bytes:
    """Return a small file whose header claims another size."""
    at = data.index(after) + len(after) + skip
    return data[:at] + value + data[at + len(value) :]


def huge_webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", (width - 1) | (height - 1) << 14 | 1 << 28)
    return overwritten(saved("WEBP", "RGBA", lossless=True), b"VP8L", 5, size)


def huge_tiff() -> bytes:
    data = saved("TIFF", "1", compression="group4")
    for tag in (256, 257):  # width and height, as one SHORT each
        entry = struct.pack("<HHI", tag, 3, 1)
        data = overwritten(data, entry, 0, struct.pack("<H", 60000))
    return data


@linux_only
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(data_dir: Path, name: str) -> None:
    path = data_dir / "hostile_images" / name
    outcome, peak_mb = load_in_child(path)
    assert peak_mb < MOST_MEMORY_MB
    if name.startswith("ok"):
        assert outcome == "accepted True"
    elif not (name.startswith("maybe_") and outcome == "accepted True"):
        check_refused(outcome, path)


def test_no_hostile_file_is_forgotten(data_dir: Path) -> None:
    there = {path.name for path in (data_dir / "hostile_images").iterdir()} - {"README.md"}
    assert there == set(HOSTILE)


@linux_only
@pytest.mark.parametrize(
    ("content", "accepted"),
    [
        pytest.param(lambda: png(30000, 30000, 1, 0, b"\0" * 10_000), False, id="png-bomb"),
        pytest.param(lambda: png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), False, id="png-2^62-pixels"),
        pytest.param(lambda: huge_webp(12000, 12000), False, id="webp-bomb"),
        pytest.param(lambda: huge_webp(16383, 16383), False, id="webp-largest"),
        pytest.param(
            lambda: overwritten(saved("GIF", "P"), b"GIF87a", 0, struct.pack("<HH", 60000, 60000)),
            False,
            id="gif-bomb",
        ),
        pytest.param(huge_tiff, False, id="tiff-bomb"),
        pytest.param(
            lambda: overwritten(saved("JPEG"), b"\xff\xc0", 3, b"\xff\xff\xff\xff"),
            False,
            id="jpeg-bomb",
        ),
        pytest.param(
            lambda: png(40_000_000, 1, 8, 0, b"\0" * 40_000_001), False, id="png-strip-wide"
        ),
        pytest.param(
            lambda: png(1, 40_000_000, 8, 0, b"\0" * 80_000_000), False, id="png-strip-tall"
        ),
        pytest.param(lambda: png(65535, 1, 8, 0, b"\0" * 65536), True, id="png-longest-wide"),
        pytest.param(lambda: png(1, 65535, 8, 0, b"\0" * 131_070), True, id="png-longest-tall"),
    ],
)
def test_drawn_bomb(content: Callable[[], bytes], accepted: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.img"
    path.write_bytes(content())
    outcome, peak_mb = load_in_child(path)
    assert peak_mb < MOST_MEMORY_MB
    if accepted:
        assert outcome == "accepted True"
    else:
        check_refused(outcome, path)


@linux_only
def test_the_memory_guard_can_fail(tmp_path: Path) -> None:
    glutton = _PEAK + "held = b'x' * (600 << 20)\nprint('accepted')\nprint(peak_mb())"
    assert load_in_child(tmp_path, glutton)[1] > MOST_MEMORY_MB
    assert load_in_child(tmp_path, _PEAK + "print()\nprint(peak_mb())")[1] < 100


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"not an image", r"begins with b'not an i'. Expected JPEG, PNG"),
        (b"\x00\x00\x01\x00 an icon", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0 runs a program", "not an image of a known format"),
        (b"\xff\xd8\xff\xe0", "cannot be decoded as JPEG"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded as PNG"),
        (b"GIF89a", "cannot be decoded as GIF"),
        (b"BM", "cannot be decoded as BMP"),
        (b"II*\0", "cannot be decoded as TIFF"),
        (b"P6 5 5 255\nxx", "cannot be decoded as PPM"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "cannot be decoded as WEBP"),
    ],
)
def test_damaged_content_is_named(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "upload.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=text) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ImageError, match=r"^field 'photo' "):
        load_image(content, name="field 'photo'")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    data = buffer.getvalue()
    assert load_image(data).size == (64, 64)
    for share in (0.2, 0.5, 0.8):
        with pytest.raises(ImageError, match="undamaged image file"):
            load_image(data[: int(len(data) * share)])


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder; expected an image file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match=r"nothing\.jpg does not exist"):
        load_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is not a regular file"):
        load_image(tmp_path / "pipe.jpg")
