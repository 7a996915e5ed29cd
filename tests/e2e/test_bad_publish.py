"""Folders and names that cannot be published: one clear sentence, and nothing of it stays.

Each case runs the command against a real central and then looks that the catalogue, the trees,
the staging folder and the fleet's head are what they were.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.events import EventTap
from tests.fleet.inotify import CREATE, OPEN, FileWatch
from tests.fleet.local import FleetNode
from tests.fleet.refusals import Refusal, begun, ended, refused
from tests.fleet.scripts import noise
from tests.fleet.watched import watched_fleet
from tests.unit.store.disks import AS_OWNER, as_root


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNode]:
    """A central with one published script, `known`, of kind feature."""
    base = tmp_path_factory.mktemp("fleet")
    with watched_fleet(base) as fleet:
        node = fleet.found()
        (base / "known").mkdir()
        (base / "known" / "reel").write_text("a reel")
        fleet.publish(base / "known", "known", "feature")
        yield node


def estate(central: FleetNode) -> dict[str, Any]:
    """Everything that a publication could leave behind."""
    return {
        "scripts": central.call("scripts"),
        "head": (central.status()["trust"]["epoch"], central.status()["trust"]["serial"]),
        "trees": sorted(os.listdir(central.state / "trees")),
        "staging": sorted(os.listdir(central.state / "staging")),
        "links": sorted(os.listdir(central.scripts / "scripts")),
    }


@pytest.fixture
def nothing_happens(central: FleetNode) -> Iterator[None]:
    """The test publishes nothing and leaves nothing."""
    before = estate(central)
    assert before["staging"] == []
    yield
    assert estate(central) == before


# Folders

Make = Callable[[Path], None]


def a_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "reel").write_text("a reel")


def a_file(folder: Path) -> None:
    folder.write_text("not a folder")


def a_socket(folder: Path) -> None:
    a_folder(folder)
    before = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("talk")
    finally:
        os.chdir(before)


def a_pipe(folder: Path) -> None:
    a_folder(folder)
    os.mkfifo(folder / "pipe")


def a_device(folder: Path) -> None:
    a_folder(folder)
    os.mknod(folder / "disk", 0o060600, os.makedev(7, 0))


def odd_things(folder: Path) -> None:
    a_socket(folder)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")


def unreadable_file(folder: Path) -> None:
    a_folder(folder)
    (folder / "secret").write_text("")
    (folder / "secret").chmod(0)


def unreadable_folder(folder: Path) -> None:
    a_folder(folder)
    (folder / "private").mkdir()
    (folder / "private").chmod(0)


def not_utf8(folder: Path) -> None:
    a_folder(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).touch()


def control_character(folder: Path) -> None:
    a_folder(folder)
    (folder / "cue\x1b[2Jsheet").touch()


def linked(target: str) -> Make:
    def make(folder: Path) -> None:
        a_folder(folder)
        (folder / "media").mkdir()
        (folder / "media" / "link").symlink_to(target)

    return make


def link_through_links(folder: Path) -> None:
    a_folder(folder)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "up").symlink_to("../..")
    (folder / "a" / "b" / "out").symlink_to("up/../x")


def link_to_itself(folder: Path) -> None:
    a_folder(folder)
    (folder / "round").symlink_to("round")


def by_case(folder: Path) -> None:
    a_folder(folder)
    (folder / "Reel").write_text("another reel")


def by_normalisation(folder: Path) -> None:
    a_folder(folder)
    for form in ("NFC", "NFD"):
        (folder / unicodedata.normalize(form, "générique")).touch()


def folders_by_case(folder: Path) -> None:
    a_folder(folder)
    (folder / "CUES").mkdir()
    (folder / "cues").mkdir()


def deep(folder: Path) -> None:
    folder.mkdir()
    (folder / "/".join(["d"] * 70)).mkdir(parents=True)


@dataclass(frozen=True)
class Folder:
    """A folder that is no script: how it is made, and what must be said of it."""

    make: Make
    says: tuple[str, ...]
    code: int = 2
    prefix: tuple[str, ...] = ()


FOLDERS = {
    "missing": Folder(lambda _: None, ("There is no folder", "/script"), code=3),
    "file": Folder(a_file, ("script is not a folder",)),
    "socket": Folder(a_socket, ("'talk' is a socket",)),
    "pipe": Folder(a_pipe, ("'pipe' is a pipe",)),
    "device": Folder(a_device, ("'disk' is a device",)),
    "several": Folder(
        odd_things, ("as it is:\n  'link'", "\n  'pipe' is a pipe\n", "\n  'talk' is a socket.")
    ),
    "unreadable file": Folder(
        unreadable_file, ("'secret' may not be read by this user",), prefix=AS_OWNER
    ),
    "unreadable folder": Folder(
        unreadable_folder, ("'private/' cannot be listed (Permission denied)",), prefix=AS_OWNER
    ),
    "name not UTF-8": Folder(not_utf8, ("'caf\\xe9'", "name that is not UTF-8")),
    "control character": Folder(control_character, ("cue\\x1b[2Jsheet", "control character")),
    "absolute link": Folder(linked("/etc/passwd"), ("'media/link'", "'/etc/passwd'", "absolute")),
    "link outside": Folder(linked("../../x"), ("'media/link'", "'../../x'", "leaves the")),
    "link through links": Folder(link_through_links, ("'a/b/out'", "leaves the")),
    "link to itself": Folder(link_to_itself, ("'round'", "circle")),
    "case": Folder(by_case, ("'Reel'", "'reel'", "differ only by case")),
    "normalisation": Folder(by_normalisation, ("générique", "Unicode normalisation")),
    "folders by case": Folder(folders_by_case, ("'CUES'", "'cues'", "differ only by case")),
    "too deep": Folder(deep, ("nested deeper than 64",)),
}


@as_root
@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_an_unfit_folder_is_refused(central: FleetNode, tmp_path: Path, case: Folder) -> None:
    folder = tmp_path / "script"
    case.make(folder)
    refusal = refused(
        central, "publish", str(folder), "--script", "new", "--kind", "loop", prefix=case.prefix
    )
    refusal.check(case.code, str(folder), *case.says)


# Names and kinds

NAMES: dict[str, tuple[str | bytes, str, tuple[str, ...], int]] = {
    "slash": ("film/x", "feature", ("'film/x'", "slash"), 2),
    "parent": ("..", "feature", ("'..'", "dot"), 2),
    "path out": ("../../etc/x", "feature", ("'../../etc/x'", "slash"), 2),
    "hidden": (".film", "feature", ("'.film'", "dot"), 2),
    "empty": ("", "feature", ("empty",), 2),
    "line feed": ("film\nx", "feature", ("'film\\nx'", "control character"), 2),
    "escape": ("film\x1b[2J", "feature", ("control character",), 2),
    "long": ("x" * 300, "feature", ("300 bytes", "at most 120"), 2),
    "long in bytes": ("é" * 100, "feature", ("200 bytes", "at most 120"), 2),
    "space at the end": ("film ", "feature", ("'film '", "space"), 2),
    "decomposed": ("ge\u0301ne", "feature", ("normalisation form C",), 2),
    "not UTF-8": (b"caf\xe9", "feature", ("UTF-8",), 2),
    "like a version": ("film@3", "feature", ("'film@3'", "version"), 2),
    "another kind": ("known", "loop", ("'known'", "--kind feature"), 6),
    "unknown kind": ("film", "trailer", ("'trailer'", "feature"), 2),
    "known but for case": ("Known", "feature", ("'Known'", "'known'", "case"), 6),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(("name", "kind", "says", "code"), NAMES.values(), ids=NAMES)
def test_an_unfit_name_is_refused(
    central: FleetNode,
    tmp_path: Path,
    name: str | bytes,
    kind: str,
    says: tuple[str, ...],
    code: int,
) -> None:
    a_folder(tmp_path / "script")
    publish = ("publish", str(tmp_path / "script"), "--script", name, "--kind", kind)
    refused(central, *publish).check(code, *says)


# Folders that do not hold still

FILES = 400
"""More than the two batches that the command sends before the daemon has taken the first."""


def many_files(folder: Path) -> None:
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:04}").write_text(f"cue {number}")


@contextmanager
def stopped(node: FleetNode) -> Iterator[None]:
    """The daemon stands still meanwhile."""
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


@contextmanager
def abandoned(central: FleetNode) -> Iterator[None]:
    """What is published meanwhile is given up by the daemon, and cleared away, before the end."""
    with EventTap(central) as tap:
        yield
        tap.wait("publish.abandoned")


def rewrite_in_place(path: Path) -> None:
    with path.open("r+") as file:
        file.write("CUE")


def becomes_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def becomes_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("0001")


def takes_the_place(path: Path) -> None:
    # One that was not handed over yet: of those the daemon may be the first to notice.
    (path.parent / "0399").rename(path)


def longer(path: Path) -> None:
    path.write_text("longer than before")


def shorter(path: Path) -> None:
    os.truncate(path, 0)


def executable(path: Path) -> None:
    path.chmod(0o755)


# what happens to which file, and whose name must be said
CHANGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "handed over, rewritten": (rewrite_in_place, "0003", "0003"),
    "handed over, truncated": (shorter, "0003", "0003"),
    "handed over, grown": (longer, "0003", "0003"),
    "rewritten": (rewrite_in_place, "0390", "0390"),
    "grown": (longer, "0390", "0390"),
    "removed": (Path.unlink, "0390", "0390"),
    "replaced": (takes_the_place, "0390", "0390"),
    "added": (Path.touch, "0399b", "0399b"),
    "a pipe now": (becomes_a_pipe, "0390", "0390"),
    "a link now": (becomes_a_link, "0390", "0390"),
    "executable now": (executable, "0390", "0390"),
}


def while_published(central: FleetNode, folder: Path, change: Callable[[Path], None]) -> Refusal:
    """Publish many files and change something when the first of them have been handed over."""
    many_files(folder)
    with abandoned(central), stopped(central):
        # The first file of the second batch: the whole first one has been opened and handed over.
        with FileWatch(folder / "0128", OPEN) as watch:
            process = begun(central, "publish", str(folder), "--script", "new", "--kind", "feature")
            happened = watch.happens_within(0.1)
            while not happened:
                # Until the daemon has said that it does not know the folder, it goes on in steps,
                # each too short for reading what the first batch holds.
                os.kill(central.process.pid, signal.SIGCONT)
                happened = watch.happens_within(0.005)
                os.kill(central.process.pid, signal.SIGSTOP)
                happened = happened or watch.happens_within(0.1)
        change(folder)
    return ended(process)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(("change", "name", "named"), CHANGES.values(), ids=CHANGES)
def test_a_folder_that_changes_while_it_is_published_is_refused(
    central: FleetNode, tmp_path: Path, change: Callable[[Path], None], name: str, named: str
) -> None:
    folder = tmp_path / "script"
    refusal = while_published(central, folder, lambda changing: change(changing / name))
    refusal.check(6, str(folder), named, "while it was being published")


@pytest.mark.usefixtures("nothing_happens")
def test_a_folder_removed_while_it_is_published_is_refused(
    central: FleetNode, tmp_path: Path
) -> None:
    folder = tmp_path / "script"
    refusal = while_published(central, folder, shutil.rmtree)
    # Both ends notice: the daemon that what it was handed is no longer linked, the command that
    # the next file is gone. Whoever is first says it.
    refusal.check(6, "while it was being")
    assert "The file 0" in refusal.err or str(folder) in refusal.err


@pytest.mark.usefixtures("nothing_happens")
def test_a_file_truncated_while_it_is_read_is_refused(central: FleetNode, tmp_path: Path) -> None:
    folder = tmp_path / "script"
    folder.mkdir()
    with (folder / "reel").open("wb") as file:
        for block in noise("reel", 200_000_000):
            file.write(block)
    staging = central.state / "staging"
    with abandoned(central):
        with FileWatch(staging, CREATE) as watch:
            process = begun(central, "publish", str(folder), "--script", "new", "--kind", "feature")
            inside = staging / watch.wait().name
        with FileWatch(inside, CREATE) as watch:
            if not os.listdir(inside):
                watch.wait()
        with stopped(central):
            os.truncate(folder / "reel", 1_000)
    ended(process).check(6, "reel", "truncated", "publish")


def test_after_all_of_this_publishing_works(central: FleetNode, tmp_path: Path) -> None:
    a_folder(tmp_path / "script")
    made = central.json("publish", str(tmp_path / "script"), "--script", "new", "--kind", "feature")
    assert made["version"] == 1
    assert not made["unchanged"]
    assert os.listdir(central.state / "staging") == []
