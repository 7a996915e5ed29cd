"""Publishing a folder again without reading what is known: the outcome is as if all were read."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archid.errors import UsageError
from archid.source_listing import SourceListing, facts_of
from archid.store.announced import Announced, AnnouncedFile, AnnouncedFolder, AnnouncedLink
from archid.store.ingest import Ingest, Ingested
from archid.store.intake import SourceFile
from archid.store.layout import StatePaths
from archid.store.settling import TRUSTED_FILE_SYSTEMS, SettledSources
from archid.store.source_records import NO_FACTS, SourceRecord
from archid.store.syscalls import file_system_type
from protocol.ids import FleetId
from protocol.layout import Layout
from protocol.paths import PathRefused

FLEET = FleetId(b"f" * 32)


@pytest.fixture(autouse=True)
def _facts_count_here(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    kind = file_system_type(fd)
    os.close(fd)
    if kind not in TRUSTED_FILE_SYSTEMS:
        pytest.skip("facts prove nothing on the file system of the temporary files")


def at_rest() -> SettledSources:
    """Judges as if an hour had passed, so that fresh files count as old."""
    return SettledSources(lambda: time.time_ns() + 3600 * 1_000_000_000)


def look(folder: Path) -> list[Announced]:
    """The folder's entries in path order."""
    found: list[Announced] = []
    for path in sorted(folder.rglob("*"), key=lambda path: str(path.relative_to(folder)).encode()):
        name, info = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found.append(AnnouncedLink(name, os.readlink(path)))
        elif path.is_dir():
            found.append(AnnouncedFolder(name))
        else:
            executable = bool(info.st_mode & 0o100)
            found.append(AnnouncedFile(name, executable, info.st_size, facts_of(info)))
    return found


def bring(ingest: Ingest, folder: Path, files: list[AnnouncedFile]) -> None:
    sources = []
    for file in files:
        fd = os.open(folder / file.path, os.O_RDONLY)
        sources.append(SourceFile(file.path, fd, file.executable, os.fstat(fd).st_mtime_ns))
    try:
        ingest.bring(sources)
    finally:
        for source in sources:
            os.close(source.descriptor)


class Room:
    """A state folder in which one folder is published again and again."""

    def __init__(self, base: Path) -> None:
        self.paths = StatePaths(base / "state", base / "scripts")
        self.paths.prepare()
        self.folder = base / "source"
        self.folder.mkdir()
        self.layout: Layout | None = None
        self.record: SourceRecord | None = None
        self.wanted: list[str] = []

    def publish(self, *, known: bool = True, part: int = 3) -> Ingested:
        """Announce the folder in parts; remember what came of it."""
        self.wanted = []
        with Ingest(
            self.paths, FLEET, "feature", "Film", 1,
            previous=self.layout, record=self.record if known else None, settled=at_rest(),
        ) as ingest:  # fmt: skip
            entries = look(self.folder)
            for first in range(0, len(entries), part):
                some = entries[first : first + part]
                files = [one for at in ingest.announce(some) if (one := some[at])]
                self.wanted += [file.path for file in files]
                for file in files:
                    assert isinstance(file, AnnouncedFile)
                    bring(ingest, self.folder, [file])
            done = ingest.finish()
        if not done.unchanged:
            self.layout = Layout.from_pieces(done.root, done.pieces)
        self.record = done.source
        return done


@pytest.fixture
def room(tmp_path: Path) -> Room:
    made = Room(tmp_path)
    for name in ("cues/one", "cues/two", "reel", "tool"):
        (made.folder / name).parent.mkdir(exist_ok=True)
        (made.folder / name).write_bytes(os.urandom(20_000))
    (made.folder / "tool").chmod(0o755)
    (made.folder / "empty").touch()
    (made.folder / "link").symlink_to("reel")
    return made


def test_nothing_is_wanted_of_a_folder_that_did_not_change_but_empty_files(room: Room) -> None:
    assert not room.publish().unchanged
    assert room.wanted == ["cues/one", "cues/two", "empty", "reel", "tool"]
    assert room.publish().unchanged
    assert room.wanted == ["empty"]


def test_the_digest_is_that_of_the_listing_that_was_seen(room: Room) -> None:
    source = room.publish().source
    assert source is not None
    listing = SourceListing()
    for entry in look(room.folder):
        match entry:
            case AnnouncedFile():
                listing.add_file(*entry)
            case AnnouncedFolder():
                listing.add_folder(entry.path)
            case AnnouncedLink():
                listing.add_link(entry.path, entry.target)
    assert source.listing == listing.digest()


def test_only_what_changed_is_wanted_and_the_rest_is_linked(room: Room) -> None:
    room.publish()
    (room.folder / "reel").write_bytes(os.urandom(20_000))
    done = room.publish()
    assert room.wanted == ["empty", "reel"]
    assert done.linked_files == 3
    tree = room.paths.tree(done.root.id)
    for name in ("cues/one", "cues/two", "reel", "tool"):
        assert (tree / name).read_bytes() == (room.folder / name).read_bytes()


def test_the_same_size_and_date_do_not_hide_a_change(room: Room) -> None:
    room.publish()
    before = (room.folder / "reel").stat()
    (room.folder / "reel").write_bytes(os.urandom(20_000))
    os.utime(room.folder / "reel", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not room.publish().unchanged
    assert "reel" in room.wanted


def test_another_file_under_the_same_name_is_read(room: Room) -> None:
    room.publish()
    copy = room.folder.parent / "copy"
    copy.write_bytes((room.folder / "reel").read_bytes())
    copy.replace(room.folder / "reel")
    assert room.publish().unchanged
    assert "reel" in room.wanted


def test_a_rotten_file_of_the_previous_version_is_brought_anew(room: Room) -> None:
    first = room.publish()
    rotten = room.paths.tree(first.root.id) / "reel"
    info = rotten.stat()
    rotten.chmod(0o644)
    with rotten.open("r+b") as file:
        file.write(b"rot")
    os.utime(rotten, ns=(info.st_atime_ns, info.st_mtime_ns))
    rotten.chmod(0o444)
    (room.folder / "cues" / "one").write_bytes(b"new")
    done = room.publish()
    assert room.wanted == ["cues/one", "empty", "reel"]
    tree = room.paths.tree(done.root.id)
    assert (tree / "reel").read_bytes() == (room.folder / "reel").read_bytes()


def test_a_file_that_was_written_just_before_it_was_read_is_read_again(room: Room) -> None:
    with Ingest(room.paths, FLEET, "feature", "Film", 1) as ingest:
        entries = look(room.folder)
        files = [entries[at] for at in ingest.announce(entries)]
        for file in files:
            assert isinstance(file, AnnouncedFile)
            if file.path == "reel":  # after the sync that came with the first file
                (room.folder / "reel").write_bytes(os.urandom(20_000))
            bring(ingest, room.folder, [file])
        done = ingest.finish()
    assert done.source is not None
    assert done.source.listing is None
    layout = Layout.from_pieces(done.root, done.pieces)
    [number] = [file.number for file in layout.files if file.path == "reel"]
    assert done.source.facts_of(number) is None


def test_other_files_than_were_wanted_are_refused(room: Room) -> None:
    with Ingest(room.paths, FLEET, "feature", "Film", 1) as ingest:
        entries = look(room.folder)
        wanted = [entries[at] for at in ingest.announce(entries)]
        with pytest.raises(UsageError, match="Other files"):
            bring(ingest, room.folder, wanted[1:2])  # type: ignore[arg-type]


def test_a_part_that_is_not_brought_whole_can_be_neither_followed_nor_finished(room: Room) -> None:
    with Ingest(room.paths, FLEET, "feature", "Film", 1) as ingest:
        entries = look(room.folder)
        files = [entries[at] for at in ingest.announce(entries)]
        bring(ingest, room.folder, files[:1])  # type: ignore[arg-type]
        steps: list[Callable[[], object]] = [
            ingest.finish,
            lambda: ingest.announce([]),
            lambda: ingest.add_folder("z"),
            lambda: ingest.add_link("z", "reel"),
            lambda: ingest.add_files([]),
        ]
        for step in steps:
            with pytest.raises(UsageError, match="not brought whole"):
                step()
    assert list(room.paths.staging.iterdir()) == []
    assert list(room.paths.trees.iterdir()) == []


def test_a_folder_that_is_announced_must_be_a_tree(room: Room) -> None:
    facts = NO_FACTS
    parts: list[list[Announced]] = [
        [AnnouncedFile("../reel", False, 1, facts)],
        [AnnouncedFile("a/b", False, 1, facts)],
        [AnnouncedLink("a", "reel"), AnnouncedFile("a/b", False, 1, facts)],
        [AnnouncedLink("a", "/etc/passwd")],
        [AnnouncedFolder("b"), AnnouncedFolder("a")],
    ]
    for part in parts:
        with (
            Ingest(room.paths, FLEET, "feature", "Film", 1) as ingest,
            pytest.raises(PathRefused),
        ):
            ingest.announce(part)


NAMES = ("a", "b", "c", "f/a", "f/b", "g/a")
ACTIONS = ("write", "rewrite", "touch", "mode", "remove", "copy", "link")


def change(folder: Path, action: str, name: str, seed: int) -> None:
    """One thing that somebody does to the folder."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    there = path.is_file() and not path.is_symlink()
    match action:
        case "write":
            path.unlink(missing_ok=True)
            path.write_bytes(bytes([seed % 251]) * (seed * 997 % 70_000))
        case "rewrite" if there and path.stat().st_size:
            info = path.stat()
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.write(bytes([seed % 251]))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        case "touch" if there:
            path.touch()
        case "mode" if there:
            path.chmod(0o755 if seed % 2 else 0o644)
        case "copy" if there:
            other = folder / ("copy-" + path.name)
            other.write_bytes(path.read_bytes())
            other.replace(path)
        case "link":
            path.unlink(missing_ok=True)
            path.symlink_to("nothing")
        case "remove":
            path.unlink(missing_ok=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.integers(0, 1000)),
            max_size=6,
        ),
        min_size=2,
        max_size=5,
    )
)
def test_whatever_happens_to_a_folder_it_is_published_as_if_all_were_read(
    rounds: list[list[tuple[str, str, int]]],
) -> None:
    with tempfile.TemporaryDirectory() as base:
        room = Room(Path(base))
        for name in NAMES:
            change(room.folder, "write", name, len(name))
        room.publish()
        for actions in rounds:
            for action in actions:
                change(room.folder, *action)
            layout, record = room.layout, room.record
            known = room.publish()
            after = room.layout, room.record
            room.layout, room.record = layout, record
            everything = room.publish(known=False)
            assert known.root == everything.root
            assert known.unchanged == everything.unchanged
            assert known.source == everything.source
            room.layout, room.record = after
        for path in Path(base).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
