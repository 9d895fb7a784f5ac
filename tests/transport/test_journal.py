"""The file behind `serve --state`: what is written stays, what was changed is refused, one process at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from virtio_ipsec.transport import journal
from virtio_ipsec.transport.journal import Journal, StateError


def rng(n: int) -> bytes:
    return bytes(range(n))


def lines_of(directory: Path) -> list[str]:
    found = Journal(directory, rng)
    found.close()
    return found.lines


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A state directory with three lines."""
    path = tmp_path / "state"
    written = Journal(path, rng)
    written.append(["one", "two"])
    written.append(["three"])
    written.close()
    return path


def test_lines_are_there_in_the_next_life(directory: Path) -> None:
    assert lines_of(directory) == ["one", "two", "three"]


def test_only_the_owner_can_read_it(directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "state").stat().st_mode) == 0o600


def test_a_directory_has_one_process(directory: Path) -> None:
    first = Journal(directory, rng)
    with pytest.raises(StateError, match="in use by another process"):
        Journal(directory, rng)
    first.close()
    assert lines_of(directory)


@pytest.mark.parametrize("cut", [1, 3, 9, 14])
def test_a_line_whose_writing_was_interrupted_is_dropped_and_written_over(directory: Path, cut: int) -> None:
    file = directory / "state"
    file.write_bytes(file.read_bytes()[:-cut])
    found = Journal(directory, rng)
    assert found.lines == ["one", "two"]
    found.append(["four"])
    found.close()
    assert lines_of(directory) == ["one", "two", "four"]


def test_every_changed_octet_is_refused_or_loses_the_line_that_was_being_written(directory: Path) -> None:
    file = directory / "state"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if at == len(whole) - 1:
            assert lines_of(directory) == ["one", "two"]
            continue
        with pytest.raises(StateError, match=r"damaged or changed|no state file"):
            lines_of(directory)


@pytest.mark.parametrize("line", [1, 2])
def test_a_line_that_was_taken_out_is_missed(directory: Path, line: int) -> None:
    file = directory / "state"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(StateError, match=f"line {line + 1} was damaged or changed"):
        lines_of(directory)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"# notes of somebody\n", b"virtio-ipsec state 2 00 00000000\n", b"x" * 5000]
)
def test_a_foreign_file_is_refused_and_left_alone(directory: Path, content: bytes) -> None:
    file = directory / "state"
    file.write_bytes(content)
    with pytest.raises(StateError, match="no state file of this version"):
        lines_of(directory)
    assert file.read_bytes() == content


def test_a_file_that_is_too_large_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_SIZE", 60)
    with pytest.raises(StateError, match="no state file"):
        lines_of(directory)


def replaced_by_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def replaced_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.chmod(0o640),
        replaced_by_link,
        replaced_by_pipe,
        lambda file: file.parent.chmod(0o770),
    ],
)
def test_what_others_could_have_written_is_refused(directory: Path, spoil: Callable[[Path], None]) -> None:
    spoil(directory / "state")
    with pytest.raises(StateError):
        lines_of(directory)


def test_a_place_that_is_no_directory_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file: Not a directory"):
        Journal(tmp_path / "file", rng)
    with pytest.raises(StateError, match="No such file or directory"):
        Journal(tmp_path / "not" / "there", rng)


def test_compacting_keeps_what_it_is_given_and_the_identity(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_FROM", 200)
    found = Journal(directory, rng)
    ident = found.ident
    assert not found.wants_compacting
    found.append(f"line {n}" for n in range(100))
    assert found.wants_compacting
    (directory / "state.new").write_text("left by a process that was killed")
    found.compact(["three", "line 99"])
    found.append(["four"])
    found.close()
    assert lines_of(directory) == ["three", "line 99", "four"]
    assert Journal(directory, rng).ident == ident
    assert stat.S_IMODE((directory / "state").stat().st_mode) == 0o600
    assert sorted(os.listdir(directory)) == ["state"]


def test_a_full_disk_loses_nothing_that_was_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Journal(directory, rng)
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(StateError, match="No space left on device"):
            found.append(["x" * 100])
    found.append(["four"])
    found.close()
    assert lines_of(directory) == ["one", "two", "three", "four"]


def test_nothing_is_written_behind_an_end_that_is_unknown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Journal(directory, rng)

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", failing)
        broken.setattr(os, "ftruncate", failing)
        with pytest.raises(StateError, match="Input/output error"):
            found.append(["four"])
    with pytest.raises(StateError, match="closed"):
        found.append(["five"])


def test_a_file_does_not_grow_without_bound(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_SIZE", 200)
    found = Journal(directory, rng, sync=False)
    with pytest.raises(StateError, match="would exceed 200 octets"):
        found.append(["x" * 200])
    found.append([])
    found.close()
    assert lines_of(directory) == ["one", "two", "three"]
