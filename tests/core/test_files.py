"""Files appear whole or not at all."""

import os
import resource
import stat
import threading

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write


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
