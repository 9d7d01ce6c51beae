"""Files are written whole or not at all, and names are shown harmlessly."""

import errno
import os
import resource
import stat

import pytest

from iba_core.errors import InputError
from iba_core.files import as_path, discard_unfinished, is_file, require_writable, shown, write_atomically


def write(path, content=b"new"):
    with write_atomically(path) as file:
        file.write(content)


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Grüße 東京.png", "Grüße 東京.png"),
        ("two\nlines", "two\\nlines"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        (b"caf\xe9.png", "caf\\udce9.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\udce9.png"),
        ("a" + chr(0x9B) + "31m", "a\\x9b31m"),
    ],
)
def test_names_are_shown_without_effects(name, text):
    assert shown(name) == text
    text.encode()


@pytest.mark.parametrize("path", ["", "a\0b", None, 3, 2.5, ["a"]])
def test_what_is_no_path_is_named(path):
    with pytest.raises(InputError, match=r"file=.* is not the name of a file"):
        as_path(path, "file")


def test_only_regular_files_are_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert is_file(tmp_path / "file")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / ("x" * 300), "a\0b", tmp_path / "none"):
        assert not is_file(path)


# -- what can be written ------------------------------------------------------------------------------


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        tmp_path: "is a folder; a file was expected",
        tmp_path / "pipe": "is a device or a pipe; a file was expected",
        "/dev/full": "is a device or a pipe; a file was expected",
        tmp_path / "none" / "file": "cannot be written: its folder does not exist",
        tmp_path / "file" / "below": "cannot be written: its folder does not exist",
        tmp_path / ("x" * 300): "cannot be written: File name too long",
        tmp_path / "loop": "cannot be written: Too many levels of symbolic links",
        "": "is not the name of a file",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError, match=reason) as caught:
            write(path)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "pipe"]


def test_read_only_files_and_folders_are_left_alone(tmp_path, monkeypatch):
    # An administrator, as whom tests may run, is not kept out by permissions.
    def access(path, mode):
        return bool(os.stat(path).st_mode & stat.S_IWUSR)

    monkeypatch.setattr(os, "access", access)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(InputError, match="cannot be written: it is read-only"):
        write(path)
    path.chmod(0o644)
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="cannot be written: its folder is read-only"):
        require_writable(path)
    with pytest.raises(InputError, match="cannot be written: its folder is read-only"):
        require_writable(tmp_path / "new")
    tmp_path.chmod(0o755)
    assert path.read_bytes() == b"old"


# -- writing ------------------------------------------------------------------------------------------


def test_the_longest_name_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write(path)
    assert path.read_bytes() == b"new"


def test_links_are_followed_and_permissions_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (tmp_path / "dangling").symlink_to(tmp_path / "folder" / "made")
    write(tmp_path / "dangling")
    assert (tmp_path / "folder" / "made").read_bytes() == b"new"


def test_new_files_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


class BugError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [BugError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")]
)
def test_what_fails_half_way_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    expected = InputError if isinstance(error, OSError) else type(error)

    def fail_half_way():
        with write_atomically(path) as file:
            file.write(b"half of it")
            raise error

    with pytest.raises(expected):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"path='.*file' cannot be written: No space left on device"):
        write(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_a_program_that_ends_at_once_can_clean_up(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def end():
        with write_atomically(path) as file:
            file.write(b"half")
            discard_unfinished()
            assert os.listdir(tmp_path) == ["file"]

    with pytest.raises(InputError, match="No such file"):
        end()
    assert path.read_bytes() == b"old"


def test_a_file_that_grows_too_large_is_one_sentence(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            write(path, bytes(10**6))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(InputError, match="cannot be written: File too large"):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
