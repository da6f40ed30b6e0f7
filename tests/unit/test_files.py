"""Files and folders that are whole or not there: no link is followed, and every kind of damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

from vrft import files
from vrft.errors import UserError
from vrft.files import (
    MANIFEST,
    DamagedFolderError,
    append_lines,
    check_model_files,
    check_whole,
    file_hash,
    is_local,
    model_folder_fault,
    parse_yaml,
    publish,
    read_rows,
    read_written,
    remove,
    weight_hash,
    write_text_atomically,
    written_whole,
)


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


def test_a_models_folder_is_compared_where_it_has_a_manifest(folder):
    check_model_files(folder)
    flip_a_bit(folder / "weights.bin")
    with pytest.raises(DamagedFolderError, match=r"weights.bin has other bytes.*delete manifest.json if"):
        check_model_files(folder)
    (folder / MANIFEST).unlink()
    check_model_files(folder)


def test_the_readme_of_a_model_may_be_edited(tmp_path):
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "README.md").write_text("[More Information Needed]")
    publish(tmp_path / "staging", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("A model of mine.")
    check_model_files(tmp_path / "model")


@pytest.mark.parametrize("text", ['{"name": "theirs", "version": 1}', "[]", '{"files": ["model.safetensors"]}'])
def test_a_manifest_of_another_program_says_nothing_about_a_model(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    check_model_files(tmp_path)


def test_files_that_were_written_for_the_owner_alone_get_the_permissions_of_the_others(tmp_path):
    staging = again(tmp_path, 1)
    (staging / "plain.txt").touch()
    expected = (staging / "plain.txt").stat().st_mode
    (staging / "weights.bin").chmod(0o600)  # as safetensors does
    publish(staging, tmp_path / "folder")
    found = {path.name: path.stat().st_mode for path in (tmp_path / "folder").iterdir()}
    assert found == dict.fromkeys(["plain.txt", "weights.bin", MANIFEST], expected)
    assert expected != 0o100600


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


def test_weights_are_hashed_by_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = weight_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert first.startswith("xxh3_128:")
    assert weight_hash(tmp_path) != first
    assert weight_hash(tmp_path / "no_such_folder") is None


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


# --- one writer ------------------------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link_that_lies_in_wait(tmp_path):
    """Neither of the name that is written to, nor of one that could be foreseen beside it."""
    victim, path = tmp_path / "victim", tmp_path / "report.html"
    victim.write_text("precious")
    for name in ("report.html", "report.html.partial"):
        (tmp_path / name).symlink_to(victim)
    write_text_atomically(path, "page")
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == "page"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask(), "others may read it, as they may any file"


def current_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write_half():
        with written_whole(path) as file:
            file.write(b"ne")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_half()
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match=f"{path} is a device or a pipe"):
            write_text_atomically(path, "text")
        assert not path.is_file()


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder; the name of a file is needed"):
        write_text_atomically(tmp_path, "text")


def test_nothing_is_appended_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"log.jsonl is a link to .*victim.*remove it"):
        append_lines(tmp_path / "log.jsonl", [{"step": 1}])
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_folder_is_published_over_a_link_not_through_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    publish(again(tmp_path, 1), tmp_path / "folder")
    check_whole(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]


@pytest.mark.parametrize("kind", ["file", "folder", "link to a folder", "nothing"])
def test_what_is_removed_is_never_behind_a_link(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    path = tmp_path / "x.partial"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "link").symlink_to(tmp_path / "elsewhere")
    elif kind == "link to a folder":
        path.symlink_to(tmp_path / "elsewhere")
    remove(path)
    assert [one.name for one in tmp_path.rglob("*")] == ["elsewhere", "precious"]


# --- one reader ------------------------------------------------------------------------------------------------------


class Form(BaseModel):
    step: int
    interval: list[float] | None = None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "", "cannot be read"),
        ("a.json", '{"step": 1', "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", "\0" * 9, "cannot be read"),
        ("a.json", b"\xff", "cannot be read"),
        ("a.json", "[1]", "it is '\\[1\\]': input should be a valid dict"),
        ("a.json", "{}", "step is missing"),
        ("a.json", '{"step": "1"}', "step is '1': input should be a valid integer"),
        ("a.json", '{"step": 1, "interval": [[0]]}', "interval.0 is '\\[0\\]': input should be a valid number"),
        ("a.yaml", "step: [", "cannot be read"),
        ("a.yaml", "text", "it is 'text'"),
    ],
)
def test_a_file_of_another_form_is_named_with_what_is_wrong(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"(?s){name}.*{told}"):
        read_written(path, Form)


def test_a_file_that_is_missing_is_named_and_a_whole_one_is_read(tmp_path):
    with pytest.raises(UserError, match=r"a.json cannot be read .*No such file"):
        read_written(tmp_path / "a.json", Form)
    (tmp_path / "a.json").write_text('{"step": 1, "more": {}}')
    assert read_written(tmp_path / "a.json", Form) == {"step": 1, "more": {}}


def test_a_cut_last_line_is_left_out_only_where_a_kill_may_have_cut_it(tmp_path):
    path = tmp_path / "oom.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "t')
    assert read_rows(path, Form, may_be_cut=True) == [{"step": 1}]
    with pytest.raises(UserError, match=r"oom.jsonl, line 2: not JSON"):
        read_rows(path, Form)
    path.write_text('{"step": 1}\n{"n": 2}\n')
    with pytest.raises(UserError, match=r"oom.jsonl, line 2: step is missing"):
        read_rows(path, Form, may_be_cut=True)


MANY = "".join(f"- class {number}\n" for number in range(21_000))


@pytest.mark.parametrize("text", ["- Arts & Crafts, *****\n" + MANY, "- &one [x]\n- *one\n" + MANY])
def test_a_long_yaml_is_no_unfolding_one(text):
    assert len(parse_yaml(text)) > 21_000
