"""Paths, names and links that a manifest may hold."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import MAX_PATH_DEPTH
from protocol.paths import (
    PathRefused,
    TreeShape,
    check_kind,
    check_link,
    check_path,
    check_script_name,
    folded,
    printable,
)

_DECOMPOSED = "cafe\u0301"
_COMPOSED = "caf\u00e9"


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c",
        "with space",
        "back\\slash",
        ".hidden",
        "..two",
        _COMPOSED,
        _DECOMPOSED,
        "日本/語.dat",
        "x" * 255,
        "\u202eabc",
    ],
)
def test_a_relative_path_that_stays_inside_is_accepted(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("./a", "'.'"),
        ("a/../b", "'..'"),
        ("..", "'..'"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        ("a\x9b31m", "control character"),
        ("x" * 256, "255"),
        ("ok/" + "é" * 128, "255"),
        ("/".join(["a"] * 65), "nested deeper"),
        ("/".join(["a" * 200] * 30), "4096"),
        ("bad\udcff", "UTF-8"),
    ],
)
def test_any_other_path_is_refused_with_the_reason(path: str, why: str) -> None:
    with pytest.raises(PathRefused, match=why) as caught:
        check_path(path)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a/b", "slash"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("a\x1b[31m", "control character"),
        ("x" * 300, "300 bytes"),
        (" a", "space"),
        (_DECOMPOSED, "normalisation form C"),
    ],
)
def test_a_name_that_cannot_be_one_folder_entry_is_refused(name: str, why: str) -> None:
    with pytest.raises(PathRefused, match=why):
        check_script_name(name)


def test_an_ordinary_script_name_is_accepted() -> None:
    for name in ("Le Film (VF) 2026", _COMPOSED, "x" * 120):
        check_script_name(name)


@pytest.mark.parametrize("kind", ["", "Feature", "a b", "9a", "a" * 33])
def test_a_kind_is_a_lower_case_word(kind: str) -> None:
    check_kind("feature")
    with pytest.raises(PathRefused):
        check_kind(kind)


@pytest.mark.parametrize("target", ["b", "../b", "./b", "b/../c", "../../b", "..", "../.."])
def test_a_relative_link_that_stays_inside_is_accepted(target: str) -> None:
    check_link("x/y/link", target)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("", "empty"),
        ("/etc", "absolute"),
        ("../../..", "leaves"),
        ("../../../etc/passwd", "leaves"),
        ("a/../../../../b", "leaves"),
        ("a\0", "control"),
        ("x" * 256, "255"),
        ("a/" * 3000, "4096"),
        ("bad\udcff", "UTF-8"),
    ],
)
def test_any_other_link_is_refused(target: str, why: str) -> None:
    with pytest.raises(PathRefused, match=why):
        check_link("x/y/link", target)


def _shape(*entries: str) -> TreeShape:
    """Entries as `folder/`, `file` and `link -> target`."""
    shape = TreeShape()
    for entry in entries:
        path, arrow, target = entry.partition(" -> ")
        if arrow:
            shape.add_link(path, target)
        elif entry.endswith("/"):
            shape.add_folder(entry[:-1])
        else:
            shape.add_file(entry)
    shape.finish()
    return shape


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (("b", "a"), "order"),
        (("a", "a"), "twice"),
        (("a/b",), "not a folder"),
        (("a", "a/b"), "not a folder"),
        (("a -> b", "a/c"), "not a folder"),
        (("A", "a"), "only by case"),
        (("A/", "A/x", "a/"), "only by case"),
        ((_DECOMPOSED, _COMPOSED), "normalisation"),
        (("STRASSE", "stra\u00dfe"), "only by case"),
        (("K", "\u212a"), "only by case"),
    ],
)
def test_entries_that_cannot_stand_together_are_refused(entries: tuple[str, ...], why: str) -> None:
    with pytest.raises(PathRefused, match=why):
        _shape(*entries)


def test_order_is_that_of_the_bytes_and_a_folder_comes_before_what_it_holds() -> None:
    _shape("a/", "a-b", "a/x", "z", "\u00e9", "\uffff", "\U00010000")


_PARTS = st.sampled_from(["a", "A", "a-", "a0", "b", "é", "e\u0301", "É", "ß", "ss"])


@given(st.lists(st.lists(_PARTS, min_size=1, max_size=3).map("/".join), max_size=8), st.data())
def test_the_verdict_is_that_of_a_shape_that_remembers_every_path(
    paths: list[str], data: st.DataObject
) -> None:
    if data.draw(st.integers(0, 3)):
        paths = sorted(set(paths))
    folders = data.draw(st.sets(st.sampled_from([*paths, "a"])))
    seen: set[str] = set()
    fine = True
    for path in paths:
        parent = path.rpartition("/")[0]
        fine = fine and (not parent or (parent in folders and parent in paths))
        fine = fine and folded(path) not in seen
        seen.add(folded(path))
    # A folder that comes too late makes the order wrong as well.
    fine = fine and paths == sorted(set(paths))
    try:
        _shape(*(f"{path}/" if path in folders else path for path in paths))
    except PathRefused:
        assert not fine
    else:
        assert fine


@pytest.mark.parametrize(
    "path", ["/a", "a//b", "a/", "a/../b", "a/./b", "a/x\x7f", "a/" + "x" * 256, "a/\udcff"]
)
def test_what_no_path_may_be_is_refused_below_a_folder_too(path: str) -> None:
    shape = TreeShape()
    shape.add_folder("a")
    with pytest.raises(PathRefused):
        shape.add_file(path)


def test_a_folder_is_as_deep_as_its_path_says_whatever_was_checked_before() -> None:
    shape = TreeShape()
    for depth in range(1, MAX_PATH_DEPTH + 1):
        shape.add_folder("/".join("a" * depth))
    with pytest.raises(PathRefused, match="deeper"):
        shape.add_file("/".join("a" * (MAX_PATH_DEPTH + 1)))


@pytest.mark.parametrize(
    "entries",
    [
        ("a/", "a/b/", "a/b/up -> ..", "z -> a/b/up/b/up"),
        ("dangling -> nowhere",),
        ("a/", "a/root -> ..", "b -> a/root/a/root/c"),
        tuple(f"l{n:02} -> l{n + 1:02}" for n in range(39)),
    ],
)
def test_links_may_lead_through_links_within_the_tree(entries: tuple[str, ...]) -> None:
    _shape(*entries)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        # As text `a/b/up/../x` is `a/b/x`; followed, `up` is the root and `..` leaves it.
        (("a/", "a/b/", "a/b/up -> ../..", "z -> a/b/up/../x"), "leaves the tree through"),
        (("a/", "a/b/", "a/b/top -> ../..", "m -> a/b/top", "z -> m/.."), "leaves the tree"),
        (("a -> b", "b -> a"), "circle"),
        (("a -> a",), "circle"),
        (("a -> a/x",), "circle"),
        (tuple(f"l{n:02} -> l{n + 1:02}" for n in range(50)), "too many links"),
    ],
)
def test_links_that_leave_through_other_links_or_circle_are_refused(
    entries: tuple[str, ...], why: str
) -> None:
    with pytest.raises(PathRefused, match=why):
        _shape(*entries)


def test_links_that_double_at_every_step_are_refused_without_following_them_all() -> None:
    chain = [f"l{n:02} -> l{n - 1:02}/../l{n - 1:02}" for n in range(1, 64)]
    with pytest.raises(PathRefused, match="too many links"):
        _shape("l00", *chain)


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_the_text_the_only_error_is_a_refusal(path: str, target: str) -> None:
    with contextlib.suppress(PathRefused):
        check_path(path)
    with contextlib.suppress(PathRefused):
        check_link("d/l", target)
    with contextlib.suppress(PathRefused):
        check_script_name(path)


def test_a_path_is_shown_without_control_characters_and_not_endlessly() -> None:
    shown = printable("\x1b[31m" + "x" * 9000)
    assert "\x1b" not in shown
    assert len(shown) < 200
