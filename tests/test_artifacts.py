import json
import os
import stat
from pathlib import Path

import pytest

from full_disk import files_no_larger_than
from perplab.artifacts import atomic_file, atomic_folder, read_json, recover_folder, remove_temporaries, write_json
from perplab.errors import PerplabError


class Killed(BaseException):
    """Not an Exception, as a signal is not."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(folder, text):
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_text(text)


def killed_at_rename(monkeypatch, number):
    """From now on the process dies before the rename of this number, and its cleaning up does not happen."""
    replace, counted = Path.replace, iter(range(1, number))

    def replace_or_die(path, target):
        if next(counted, None) is None:
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)


def test_file_appears_whole_with_its_folders_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "first"
    assert names(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_old_file_is_read_until_the_new_one_is_whole(tmp_path):
    write_json(tmp_path / "file", 1)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        assert read_json(tmp_path / "file", "") == 1
    assert (tmp_path / "file").read_text() == "half"


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_failing_writer_leaves_the_old_file_or_folder_and_nothing_else(tmp_path, error):
    write_json(tmp_path / "file", 1)
    write_folder(tmp_path / "folder", "old")

    def fail_half_way(file):
        file.write_text("half")
        raise error

    with pytest.raises(error), atomic_file(tmp_path / "file") as temporary:
        fail_half_way(temporary)
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as temporary:
        fail_half_way(temporary / "a")
    assert names(tmp_path) == ["file", "folder"]
    assert read_json(tmp_path / "file", "") == 1
    assert (tmp_path / "folder" / "a").read_text() == "old"


def test_folder_takes_the_place_of_the_old_one_with_no_file_of_it(tmp_path):
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "only in the old one").write_text("")
    write_folder(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["a", "inner"]
    assert (tmp_path / "folder" / "inner" / "b").read_text() == "new"


@pytest.mark.parametrize(("rename", "found"), [(1, "old"), (2, "old"), (3, "new")])
def test_writer_killed_around_the_renames_loses_no_folder(tmp_path, monkeypatch, rename, found):
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    with monkeypatch.context() as dying:
        killed_at_rename(dying, rename)
        if rename < 3:
            with pytest.raises(Killed):
                write_folder(folder, "new")
        else:
            write_folder(folder, "new")  # dies after both renames: the old folder is still aside
    assert folder.exists() == (rename != 2)
    recover_folder(folder)
    assert (folder / "a").read_text() == (folder / "inner" / "b").read_text() == found
    remove_temporaries(tmp_path)
    write_folder(folder, "last")
    assert names(tmp_path) == ["folder"]


def test_recovering_a_folder_that_is_there_or_never_was_does_nothing(tmp_path):
    write_folder(tmp_path / "folder", "old")
    recover_folder(tmp_path / "folder")
    recover_folder(tmp_path / "never")
    assert names(tmp_path) == ["folder"]


def test_only_temporaries_are_removed(tmp_path):
    write_folder(tmp_path / "folder", "kept")
    (tmp_path / ".partial-folder").mkdir()
    (tmp_path / ".partial-folder" / "file").write_text("")
    (tmp_path / ".partial-file").write_text("")
    (tmp_path / "partial-file").write_text("")
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["folder", "partial-file"]


def test_full_disk_is_named_and_the_old_file_and_folder_stay(tmp_path):
    write_json(tmp_path / "file", 1)
    write_folder(tmp_path / "folder", "old")
    with files_no_larger_than(10):
        with pytest.raises(PerplabError, match=f"cannot write {tmp_path / 'file'} .*File too large"):
            write_json(tmp_path / "file", "x" * 100)
        with pytest.raises(PerplabError, match=f"cannot write {tmp_path / 'folder'} .*File too large"):
            write_folder(tmp_path / "folder", "x" * 100)
    assert names(tmp_path) == ["file", "folder"]
    assert read_json(tmp_path / "file", "") == 1
    assert (tmp_path / "folder" / "a").read_text() == "old"


def test_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerplabError, match=r"cannot write .*(Not a directory|File exists)"):
        write_json(tmp_path / "file" / "inner", 1)


def test_json_is_indented_unescaped_and_read_back(tmp_path):
    value = {"name": "café", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file", "") == value
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert "café" in text
    assert text.endswith("}\n")
    assert text == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_json_does_not_know_are_refused_and_the_old_file_stays(tmp_path, number):
    write_json(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", number)
    assert read_json(tmp_path / "file", "") == 1


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_file_that_is_not_json_is_named_with_the_mend(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PerplabError, match=r"file is not valid JSON .*: write it again"):
        read_json(tmp_path / "file", "write it again")


def test_missing_json_is_named_with_the_mend(tmp_path):
    with pytest.raises(PerplabError, match="file does not exist: write it again"):
        read_json(tmp_path / "file", "write it again")


def test_everything_is_on_the_device_before_it_is_renamed(tmp_path, monkeypatch):
    """Each file is flushed under the temporary name, and the parent folder after the rename."""
    flushed, fsync = [], os.fsync

    def remember(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    write_folder(tmp_path / "folder", "text")
    temporary = flushed[0].split("/a")[0].split("/inner")[0]
    assert {f"{temporary}/a", f"{temporary}/inner/b", f"{temporary}/inner", temporary} == set(flushed[:-1])
    assert flushed[-1] == str(tmp_path)
