"""Files appear whole or not at all."""

import os
import resource
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write, new_folder, regular


def test_text_is_utf8_and_bytes_are_bytes(tmp_path):
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("盘古\n")
    with atomic_write(str(tmp_path / "a.bin"), "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "盘古\n".encode()
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


def test_folders_are_made(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "c.txt") as file:
        file.write("x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path):
    """The new file takes the name; nothing is written into the old one."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open(path) as reader:
        with atomic_write(path) as file:
            file.write("new")
            made = os.fstat(file.fileno()).st_ino
        assert path.stat().st_ino == made
        assert (reader.read(), path.read_text()) == ("old", "new")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_a_failing_block_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write("half")
        raise error("stop")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("size", [4097, 1 << 20])
def test_a_full_disk_half_way(tmp_path, size):
    """A limit on the size of files stands for the full disk; the smaller write fails at closing."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        message = r"cannot write .*a\.bin: File too large"
        with pytest.raises(InputError, match=message), atomic_write(path, "wb") as file:
            file.write(b"x" * 4000)
            file.write(b"x" * (size - 4000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_errors_name_the_place(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"cannot make the folder .*file: "
    with pytest.raises(InputError, match=message), atomic_write(tmp_path / "file" / "a.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(InputError, match=r"cannot write .*folder: "),
        atomic_write(tmp_path / "folder"),
    ):
        pass
    message = r"cannot write .*: File name too long"
    with pytest.raises(InputError, match=message), atomic_write(tmp_path / ("x" * 300)):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_the_umask_is_respected(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    barrier = threading.Barrier(4)

    def write(letter):
        barrier.wait()
        for _ in range(20):
            with atomic_write(path) as file:
                file.write(letter * 10_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["a.txt"]


def left(folder):
    return sorted(os.listdir(folder))


def fill(place, text="new", **options):
    with new_folder(place, **options) as temporary:
        (temporary / "a").write_text(text)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a link to an empty folder"])
def test_a_folder_appears_when_it_is_whole(tmp_path, there):
    place = tmp_path / "parent" / "out"
    if there != "nothing":
        place.parent.mkdir()
        real = tmp_path / "real" if "link" in there else place
        real.mkdir()
        if real != place:
            place.symlink_to(real)
    with new_folder(place) as temporary:
        (temporary / "a").write_text("new")
        assert not (place / "a").exists()
    assert (place / "a").read_text() == "new" and place.is_symlink() == ("link" in there)
    assert left(place.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_a_failing_block_leaves_the_old_folder_and_no_other(tmp_path, error):
    fill(tmp_path / "out", "old")
    with pytest.raises(error), new_folder(tmp_path / "out", replace=True) as temporary:
        (temporary / "a").write_text("half")
        raise error("stop")
    assert (tmp_path / "out" / "a").read_text() == "old" and left(tmp_path) == ["out"]


def test_a_folder_is_replaced_only_on_request(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(InputError, match="out exists and is not empty; name a new folder"):
        fill(tmp_path / "out")
    fill(tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "a").read_text() == "new" and left(tmp_path) == ["out"]
    (tmp_path / "file").write_text("mine")
    for options in ({}, {"replace": True}):
        with pytest.raises(InputError, match="file exists"):
            fill(tmp_path / "file", **options)


def test_a_folder_filled_meanwhile_is_let_be(tmp_path):
    with pytest.raises(InputError, match="late exists"), new_folder(tmp_path / "late"):
        fill(tmp_path / "late", "mine")
    assert (tmp_path / "late" / "a").read_text() == "mine" and left(tmp_path) == ["late"]


def test_at_every_moment_of_a_replacement_one_of_the_two_is_there(tmp_path):
    fill(tmp_path / "out", "0")
    missing, done = [], threading.Event()

    def watch():
        while not done.is_set():
            if not os.path.exists(tmp_path / "out" / "a"):
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(100):
        fill(tmp_path / "out", str(number), replace=True)
    done.set()
    watcher.join()
    assert not missing and left(tmp_path) == ["out"]


KILLED = """
import os, sys
from pangu_jax.core import files
moment = sys.argv[2]
if moment != "filling":
    files._swap = lambda a, b: False  # as on a file system that cannot
    real, number = os.rename, iter(range(9))
    def rename(a, b):
        if moment == f"rename {next(number)}":
            os._exit(9)
        return real(a, b)
    os.rename = rename
with files.new_folder(sys.argv[1], replace=True) as temporary:
    (temporary / "a").write_text("killed")
    if moment == "filling":
        os._exit(9)
os._exit(0)
"""


@pytest.mark.parametrize("moment", ["filling", "rename 1", "rename 2"])
def test_what_a_killed_process_left_is_cleared_or_put_back(tmp_path, moment):
    place = tmp_path / "out"
    fill(place, "old")
    subprocess.run([sys.executable, "-c", KILLED, place, moment], timeout=60, check=False)
    assert len(left(tmp_path)) > 1 or moment == "rename 1"
    assert place.exists() == (moment != "rename 2")
    (tmp_path / ".out.mine.new").mkdir()
    with pytest.raises(InputError, match="out exists"):
        fill(place)
    assert (place / "a").read_text() == "old" and left(tmp_path) == [".out.mine.new", "out"]


def test_what_a_living_process_fills_is_let_be(tmp_path):
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        fill(tmp_path / "out", "second")
        fill(tmp_path / "other")
        assert (first / "a").read_text() == "first"
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_folders_made_at_once_do_not_clear_one_another(tmp_path):
    failed = []

    def write(number):
        for _ in range(30):
            try:
                fill(tmp_path / "out", str(number), replace=True)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and left(tmp_path) == ["out"]


def test_a_folder_and_its_files_have_the_mode_of_ordinary_ones(tmp_path):
    old = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out") as temporary:
            (temporary / "a").touch(0o600)  # as some libraries make theirs
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o640


def test_what_fills_a_folder_may_use_the_same_function(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as temporary:
        fill(temporary)
        assert (temporary / "a").read_text() == "new" and left(tmp_path) == [temporary.name]
        raise RuntimeError
    assert left(tmp_path) == []


def test_folders_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the folder .*file"):
        fill(tmp_path / "file" / "out")
    with pytest.raises(InputError, match=r"cannot write .*: File name too long"):
        fill(tmp_path / ("x" * 250))
    with pytest.raises(InputError, match=r": File name too long"):
        fill(tmp_path / ("x" * 300))
    message = r"cannot write .*out: No space left"
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "out"):
        raise OSError(28, os.strerror(28))
    assert left(tmp_path) == ["file"]


def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    assert regular(tmp_path / "file") == tmp_path / "file"
    for name, words in [
        ("pipe", "no ordinary file"),
        (".", "Is a directory"),
        ("none", "No such file"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(InputError, match=f"cannot read .*: .*{words}"):
            regular(tmp_path / name)
