"""Folders that are whole or not there: every kind of damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil

import pytest

from vrft import files
from vrft.files import MANIFEST, DamagedFolderError, check_whole, file_hash, is_local, model_folder_fault, publish


@pytest.fixture
def folder(tmp_path):
    staging = tmp_path / "folder.partial"
    (staging / "inner").mkdir(parents=True)
    (staging / "weights.bin").write_bytes(bytes(1000))
    (staging / "inner" / "state.json").write_text('{"step": 3}')
    publish(staging, tmp_path / "folder")
    assert not staging.exists()
    return tmp_path / "folder"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def whole_manifest_of(entries) -> str:
    return json.dumps({"files": entries, "hash": files._hash_of_entries(entries)})


DAMAGES = {
    "entries that say nothing": (
        lambda f: (f / MANIFEST).write_text(whole_manifest_of({"weights.bin": 3})),
        "manifest.json is damaged",
    ),
    "a hash of an unknown kind": (
        lambda f: (f / MANIFEST).write_text(whole_manifest_of({"weights.bin": {"bytes": 1000, "hash": "md5:00"}})),
        "manifest.json is damaged",
    ),
    "a manifest under a hash of an unknown kind": (
        lambda f: rewrite_manifest(f, lambda m: m.update(hash="md5:00")),
        "manifest.json is damaged",
    ),
    "a manifest too deep": (lambda f: (f / MANIFEST).write_text("[" * 100_000), "manifest.json is damaged"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "has no manifest.json: it was never completed"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "has no manifest.json"),
    "cut manifest": (lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:-9]), "manifest.json is damaged"),
    "manifest of nothing": (lambda f: (f / MANIFEST).write_text("{}"), "manifest.json is damaged"),
    "manifest with an entry less": (
        lambda f: rewrite_manifest(f, lambda m: m["files"].popitem()),
        "manifest.json is damaged",
    ),
    "missing file": (lambda f: (f / "weights.bin").unlink(), "weights.bin is missing"),
    "missing file in a folder": (lambda f: shutil.rmtree(f / "inner"), "state.json is missing"),
    "cut file": (lambda f: (f / "weights.bin").write_bytes(bytes(500)), "weights.bin has 500 bytes in place of 1,000"),
    "file emptied": (lambda f: (f / "weights.bin").write_bytes(b""), "weights.bin has 0 bytes in place of 1,000"),
    "one bit": (lambda f: flip_a_bit(f / "weights.bin"), "weights.bin has other bytes than were written"),
    "another file's bytes": (
        lambda f: (f / "inner" / "state.json").write_text('{"step": 4}'),
        "state.json has other bytes than were written",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_named(folder, name):
    damage, message = DAMAGES[name]
    check_whole(folder)
    damage(folder)
    with pytest.raises(DamagedFolderError, match=message):
        check_whole(folder)


def test_all_damages_of_a_folder_are_named_at_once(folder):
    (folder / "weights.bin").unlink()
    flip_a_bit(folder / "inner" / "state.json")
    with pytest.raises(DamagedFolderError, match=r"state.json has other bytes.*; weights.bin is missing"):
        check_whole(folder)


def again(tmp_path, number: int):
    staging = tmp_path / "again.partial"
    staging.mkdir()
    (staging / "weights.bin").write_bytes(bytes([number]))
    return staging


def test_what_is_replaced_is_kept_if_asked_and_the_first_stays(folder, tmp_path):
    previous = tmp_path / "folder.previous"
    publish(again(tmp_path, 1), folder, previous=previous)
    publish(again(tmp_path, 2), folder, previous=previous)
    assert (folder / "weights.bin").read_bytes() == bytes([2])
    assert (previous / "weights.bin").read_bytes() == bytes(1000)
    for path in (folder, previous):
        check_whole(path)
    publish(again(tmp_path, 3), folder)
    assert (folder / "weights.bin").read_bytes() == bytes([3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.previous"]


def test_what_is_replaced_stays_until_all_is_written(folder, tmp_path, monkeypatch):
    def fail(path):
        assert (folder / "weights.bin").read_bytes() == bytes(1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(OSError, match="No space"):
        publish(again(tmp_path, 1), folder, previous=tmp_path / "folder.previous")
    check_whole(folder)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_is_written_to(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, "as some of FUSE say")

    monkeypatch.setattr("os.fsync", fail)
    folder = tmp_path / "folder"
    publish(again(tmp_path, 1), folder)
    check_whole(folder)
    files.append_lines(folder / "rows.jsonl", [{"a": 1}])
    files.write_text_atomically(folder / "text", "b", is_lasting=True)
    assert ((folder / "rows.jsonl").read_text(), (folder / "text").read_text()) == ('{"a": 1}\n', "b")


def test_a_disk_that_fails_to_flush_is_no_such_file_system(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        publish(again(tmp_path, 1), tmp_path / "folder")


def test_a_file_that_cannot_be_read_is_a_damage(folder, monkeypatch):
    def fail(path, kind):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "file_hash", fail)
    with pytest.raises(DamagedFolderError, match=r"inner/state.json cannot be read \(Input/output error\)"):
        check_whole(folder)


def test_a_manifest_of_an_earlier_version_is_understood(folder):
    """It holds SHA-256 under the key `sha256`."""
    names = {"inner/state.json": b'{"step": 3}', "weights.bin": bytes(1000)}
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in names.items()}
    of_all = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({"files": entries, "sha256": of_all}))
    check_whole(folder)
    flip_a_bit(folder / "weights.bin")
    with pytest.raises(DamagedFolderError, match=r"folder: weights.bin has other bytes than were written$"):
        check_whole(folder)
    rewrite_manifest(folder, lambda manifest: manifest["files"].popitem())
    with pytest.raises(DamagedFolderError, match=r"manifest.json is damaged"):
        check_whole(folder)


def test_a_hash_carries_its_kind(tmp_path):
    (tmp_path / "empty").touch()
    assert file_hash(tmp_path / "empty") == "xxh3_128:99aa06d3014798d86001c324468d497f"  # of xxHash's own tests
    assert file_hash(tmp_path / "empty", kind="sha256") == f"sha256:{hashlib.sha256().hexdigest()}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", False),  # though there is a folder Qwen
        ("Qwen/mine", True),
        ("Qwen/mine/", True),
        ("other/mine", False),
        ("mine", True),
        ("a/b/c", True),
        ("./other", True),
        ("~/mine", True),
    ],
)
def test_only_what_does_not_lie_here_is_a_name_on_the_hub(tmp_path, monkeypatch, path, expected):
    (tmp_path / "Qwen" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local(path) == expected


def test_a_folder_that_is_no_model_is_told_with_the_checkpoint_that_is_meant(tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoint-4", "last", "best"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "adapter_config.json").write_text("{}")
    meant = f"give one of them: model.path={run}/checkpoints/best or model.path={run}/checkpoints/last"
    assert meant in model_folder_fault(str(run))
    assert meant in model_folder_fault(str(run / "checkpoints"))
    assert model_folder_fault(str(run / "checkpoints" / "best")) is None
    assert "which does not exist" in model_folder_fault(str(tmp_path / "none"))
    assert "has no config.json" in model_folder_fault(str(run / ".."))
    assert model_folder_fault("ORG/NAME") is None
