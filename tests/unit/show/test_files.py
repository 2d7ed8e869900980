"""A file is whole or not there, and nobody who was in the folder before decides where it goes.

Wrong versions these catch: `open` as it is, which follows a link and waits for a pipe.
"""

import os
import stat

import pytest

from picolab.show.files import private, write_beside


def test_a_private_file_is_this_accounts(tmp_path):
    with open(tmp_path / "mine", "w", opener=private) as file:
        file.write("x")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    write_beside(tmp_path / "beside", "x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "beside").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", ["r", "w", "a", "w+b"])
def test_links_pipes_and_folders_are_not_opened(mode, tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        with pytest.raises(OSError):
            open(tmp_path / name, mode, opener=private).close()
    assert (tmp_path / "theirs").read_text() == "precious" and not (tmp_path / "new").exists()
    open(tmp_path / "dangling", "a").close()  # mutant: the link is followed
    assert (tmp_path / "new").exists()


def test_what_is_written_beside_follows_no_link(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / f".run.json.{os.getpid()}").symlink_to(tmp_path / "theirs")
    write_beside(tmp_path / "run.json", "{}")
    assert (tmp_path / "run.json").read_text() == "{}"
    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (tmp_path / "run.json").is_symlink()
