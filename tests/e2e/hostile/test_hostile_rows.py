"""Hostile rows and images, through the command line: what they carry never runs, and they are refused by name."""

from __future__ import annotations

import http.server
import json
import os
import runpy
import shutil
import subprocess
import threading
import zlib
from contextlib import suppress

import pytest
import torch
from payloads import ran
from PIL import Image
from qwen_vl_utils import fetch_image
from small_models import picture


@pytest.fixture
def server():
    """A local server that shows a picture, and counts how often it was asked: `server.hits`."""

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.hits += 1
            self.send_response(200)
            self.end_headers()
            picture(56, 56).save(self.wfile, "PNG")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        server.hits = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_rows_reach_neither_the_network_nor_other_folders(tmp_path, refused, server, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    data, outside = tmp_path / "data", tmp_path / "outside.png"
    data.mkdir()
    picture(56, 56).save(outside)
    (data / "link.png").symlink_to(outside)
    (data / "folder").symlink_to(tmp_path)
    address = f"http://127.0.0.1:{server.server_port}/a.png"
    for image in (address, f"file://{outside}"):
        assert fetch_image({"image": image}).size == (56, 56), "another reader of rows takes it"
    assert server.hits == 1
    images = [address, f"file://{outside}", str(outside), "../outside.png", "link.png", "folder/outside.png"]
    images += ["data:image/png;base64,iVBORw0KGgo=", f"//127.0.0.1:{server.server_port}/a.png"]
    rows = [{"row_id": f"r{i}", "image": image, "phrase": "it", "gold": [0, 0, 5, 5]} for i, image in enumerate(images)]
    file = data / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grounding = ("task=grounding", "protocol=grounding", "dataset=json", f"dataset.path={file}")
    for verb, own in (("check", "run.dir"), ("train", "run.dir")):
        said = refused(verb, *grounding, f"{own}={tmp_path / 'run'}")
        assert all(f"row {number}: image" in said for number in range(1, len(images) + 1)), said
    cases = [row | {"completion": "(0,0),(5,5)"} for row in rows]
    file.write_text("".join(json.dumps(case) + "\n" for case in cases))
    said = refused("judge", "task=grounding", f"cases={file}", f"out={tmp_path / 'verdicts.jsonl'}")
    assert all(f"line {number}: image" in said for number in range(1, len(images) + 1)), said
    assert server.hits == 1


def test_a_data_sets_script_is_not_run(tmp_path, mark, refused):
    folder = tmp_path / "theirs"
    folder.mkdir()
    script = folder / "theirs.py"
    script.write_text(f"open({str(mark)!r}, 'w').close()\n")
    runpy.run_path(str(script))
    assert ran(mark)
    for source in ([f"dataset.path={folder}"], ["dataset.path=null", f"dataset.hub={folder}"]):
        said = refused("check", "task=grounding", "dataset=json", *source, f"run.dir={tmp_path / 'run'}")
        assert str(folder) in said


def test_pickled_answers_and_lists_are_not_loaded(tmp_path, mark, refused, pickles):
    torch.load(pickles["pt"], weights_only=False)
    assert ran(mark)
    cases = shutil.copy(pickles["pt"], tmp_path / "cases.pth")
    said = refused("score", "protocol=classification", f"cases={cases}", f"out={tmp_path / 'scores.json'}")
    assert str(cases) in said
    listed = shutil.copy(pickles["pt"], tmp_path / "list.pth")
    source = (f"dataset.path={listed}", f"dataset.image_root={tmp_path}")
    said = refused("build", "task=classification", "dataset=folders", *source, f"out={tmp_path / 'rows'}")
    assert "list.pth" in said


def test_no_other_program_draws_an_image(tmp_path, mark, refused, predict, monkeypatch):
    """Pillow hands EPS to Ghostscript; one that leaves `mark` behind stands in for it."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = tmp_path / "scene.png"
    eps.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\nshowpage\n%%EOF\n")
    with suppress(OSError, subprocess.CalledProcessError), Image.open(eps) as image:
        image.load()
    assert ran(mark)
    assert str(eps) in refused(*predict)


def test_an_image_bomb_is_refused_by_its_header(tmp_path, refused, predict):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = (12_000).to_bytes(4) + (12_000).to_bytes(4) + bytes([8, 2, 0, 0, 0])
    bomb = tmp_path / "scene.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.warns(Image.DecompressionBombWarning), Image.open(bomb) as image:
        assert image.size == (12_000, 12_000), "Pillow warns, and would go on"
    assert "12000 × 12000 pixels" in refused(*predict)
