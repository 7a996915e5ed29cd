"""A configuration is read whole or refused with a sentence that helps."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from archid.addresses import Address, parse_address
from archid.config import MAX_CONFIG_BYTES, load_config, parse_config
from archid.config_errors import ConfigError, line_of
from archid.config_view import EffectiveKey, effective_keys
from archid.errors import Denied, UsageError
from archid.quantities import format_duration, format_size, parse_duration, parse_size
from archid.rates import Rates

EXAMPLES = Path(__file__).parents[2] / "config"
ROLES = ("central", "repo", "ice")
ICE = 'version = 1\n[node]\nrole = "ice"\n'


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="a.toml")
    return caught.value


@pytest.mark.parametrize("role", ROLES)
def test_the_example_for_each_role_is_valid_and_is_for_that_role(role: str) -> None:
    assert load_config(EXAMPLES / f"{role}.toml").node.role == role


@pytest.mark.parametrize("role", ROLES)
def test_the_example_lists_every_key_and_its_commented_lines_are_the_defaults(role: str) -> None:
    text = (EXAMPLES / f"{role}.toml").read_text()
    everything = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text)
    listed = rows_of(everything)
    defaults = rows_of(_smallest(role))
    assert listed.keys() == defaults.keys()
    for place, row in listed.items():
        assert row.origin == "file", f"{role}.toml does not mention {place}"
        if rows_of(text)[place].origin == "default":
            assert row.value == defaults[place].value, f"{role}.toml shows a wrong default"


@pytest.mark.parametrize("role", ROLES)
def test_every_key_of_the_example_is_explained_and_has_its_default_in_words(role: str) -> None:
    text = (EXAMPLES / f"{role}.toml").read_text()
    for paragraph in text.split("\n\n")[1:]:
        keys = re.findall(r"(?m)^(?:# )?([a-z_]+) = ", paragraph)
        assert len(keys) == 1, f"{role}.toml has a paragraph about {keys}"
        assert "Default: " in paragraph, f"{role}.toml does not say the default of {keys[0]}"


def rows_of(text: str) -> dict[tuple[str, str], EffectiveKey]:
    keys = effective_keys(parse_config(text, source="a.toml"))
    return {(row.section, row.key): row for row in keys}


def _smallest(role: str) -> str:
    return f'version = 1\nnode.role = "{role}"\n'


def test_defaults_are_the_documented_ones() -> None:
    config = parse_config(ICE, source="a.toml")
    assert config.network.listen == (Address("::", 4777),)
    assert config.storage.state == Path("/var/lib/archid")
    assert config.storage.scripts == Path("/srv/archid")
    assert config.storage.keep_free_bytes == 2**30
    assert config.control.socket == Path("/run/archid/control.sock")
    assert config.central.head_lifetime == timedelta(days=7)


def test_slices_are_frozen() -> None:
    config = parse_config(ICE, source="a.toml")
    with pytest.raises(ValidationError):
        config.network.listen = ()


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() -> None:
    error = refused(ICE + '\n[network]\n# a comment\nlistn = ["[::]:4777"]\n')
    assert str(error) == "a.toml, line 7: 'listn' is not known in [network]; did you mean 'listen'?"
    assert error.exit_code == 2


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    assert "it belongs into [storage]" in str(refused(ICE + 'scripts = "/x"\n'))


def test_an_unknown_section_is_named() -> None:
    assert "did you mean 'network'?" in str(refused(ICE + "[netwrok]\n"))


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    error = refused(
        'version = 1\n[node]\nrole = "icee"\n[storage]\nstate = "x"\n[log]\nlevel = "loud"\n'
    )
    assert [re.search(r"line (\d+)", problem)[1] for problem in error.problems] == ["3", "5", "7"]  # type: ignore[index]
    assert all(problem in str(error) for problem in error.problems)


def test_the_line_of_a_list_over_several_lines_is_its_first() -> None:
    text = 'a = 1\n\n[x]\n# c\nb = [\n  1,\n  2,\n]\nc = """\nb = 3\n"""\n'
    assert line_of(text, ("x", "b")) == 5
    assert line_of(text, ("x", "c")) == 9
    assert line_of(text, ("y",)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "does not say which version"),
        ('version = "1"\n', "version is '1', but must be 1"),
        ("version = 0\n", "version is 0, but must be 1"),
        ("version = true\n", "version is True, but must be 1"),
        ("version = 1\n", "node is missing"),
        ("version = 1\nnode = 3\n", "node must be a section"),
        ("version = 1\n[node]\n", "[node] role is missing; it must be one of central, repo, ice"),
        ('version = 1\n[node]\nrole = "ICE"\n', "must be 'central', 'repo' or 'ice'"),
        (ICE + 'name = "a b"\n', "is not a node's name"),
        (ICE + "name = 7\n", "7 must be text in quotes"),
        (ICE + '[network]\nlisten = "x:1"\n', "must be a list in brackets"),
        (ICE + '[network]\nlisten = ["a:1", "a:1"]\n', "'a:1' is listed twice"),
        (ICE + '[network]\nadvertise = ["[::]:4777"]\n', "nobody could dial it"),
        (ICE + "[network]\nmax_peers = 0\n", "0 is not a number from 1 to 60000"),
        (ICE + '[network]\npeers = ["a:0"]\n', "is not a number from 1 to 65535"),
        (ICE + '[network]\npeers = ["2001:db8::1"]\n', "IPv6 needs brackets"),
        (ICE + '[storage]\nstate = "var/lib"\n', "is not an absolute path"),
        (ICE + '[storage]\nstate = "/a/../b"\n', "is not an absolute path"),
        (ICE + '[storage]\nstate = "/a"\nscripts = "/a/b"\n', "neither inside the other"),
        (ICE + '[storage]\nkeep_free = "1"\n', "is not a size"),
        (ICE + f'[control]\nsocket = "/{"a" * 107}"\n', "longer than the 107 bytes"),
        (ICE + '[control]\ngroup = "no such:group"\n', "is not the name of a Unix group"),
        (ICE + '[log]\nformat = "xml"\n', "must be 'auto', 'json' or 'console'"),
        (ICE + "[central]\n", "only the role 'central' reads it"),
        ('version = 1\nnode.role = "central"\ncentral.head_lifetime = "7"\n', "is not a duration"),
        ('version = 1\nnode.role = "central"\ncentral.head_refresh = "6d"\n', "at most half"),
        ('version = 1\nnode.role = "central"\ncentral.token_lifetime = "0s"\n', "longer than"),
        ('version = 1\nnode.role = "central"\ncentral.database = "mysql://a"\n', "is not a URL"),
        (ICE + "[network\n", "is not valid TOML"),
        (ICE + "network = " + "{a=" * 5000, "nested too deeply"),
        (ICE + 'role = "ice"\n', "is not valid TOML"),
    ],
)
def test_a_mistake_is_refused_with_a_sentence(text: str, expected: str) -> None:
    error = refused(text)
    assert expected in str(error)
    assert str(error).startswith("a.toml")
    assert "pydantic" not in str(error)


def test_a_newer_format_is_refused_before_anything_else_is_looked_at() -> None:
    error = refused("version = 2\n[unheard.of]\nx = 1\n")
    assert error.code == "config_newer"
    assert error.remedy is not None
    assert "Upgrade archid" in error.remedy
    assert len(error.problems) == 1


def test_a_password_in_the_database_url_is_neither_shown_nor_repeated() -> None:
    central = 'version = 1\nnode.role = "central"\n'
    config = parse_config(
        central + 'central.database = "postgresql://archid:hunter2@db/archid"\n', source="a.toml"
    )
    rows = {row.key: row.value for row in effective_keys(config)}
    assert rows["database"] == "postgresql://archid:***@db/archid"
    config = parse_config(
        central + 'central.database = "postgresql:///archid?host=db&password=hunter2&port=1"\n',
        source="a.toml",
    )
    rows = {row.key: row.value for row in effective_keys(config)}
    assert rows["database"] == "postgresql:///archid?host=db&password=***&port=1"
    assert "hunter2" not in str(refused(central + 'central.database = "mysql://a:hunter2@b"\n'))


def test_show_tells_what_the_file_set_and_what_is_a_default() -> None:
    config = parse_config(ICE + '[storage]\nkeep_free = "5GB"\n', source="a.toml")
    rows = {(row.section, row.key): row for row in effective_keys(config)}
    assert rows["storage", "keep_free"].to_json() == {
        "section": "storage",
        "key": "keep_free",
        "value": "5GB",
        "origin": "file",
    }
    assert rows["network", "listen"].value == ["[::]:4777"]
    assert rows["network", "listen"].origin == "default"
    assert not any(row.section == "central" for row in rows.values())
    central = parse_config(_smallest("central"), source="a.toml")
    shown = {row.key: row.value for row in effective_keys(central)}
    assert shown["head_lifetime"] == "7d"


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "none.toml")
    assert str(tmp_path / "none.toml") in caught.value.sentence
    assert "--config" in caught.value.sentence


def test_a_folder_or_something_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a file"):
        load_config(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'version = 1\n# caf\xe9\n[node]\nrole = "ice"\n')
    with pytest.raises(ConfigError, match="line 2: this is not UTF-8 text"):
        load_config(latin)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(large)


def test_a_file_that_may_not_be_read_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root reads everything, so the refusal of the system is put in its place
    def refuse(self: Path, _mode: str) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Denied, match="may not be read"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("central.example.org", Address("central.example.org", 4777)),
        ("central.example.org:1", Address("central.example.org", 1)),
        ("192.0.2.1:65535", Address("192.0.2.1", 65535)),
        ("[2001:DB8::0:1]", Address("2001:db8::1", 4777)),
        ("[::1]:4778", Address("::1", 4778)),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:b",
        "a:65536",
        "a:-1",
        "a:1:2",
        "[::1",
        "[::1]x",
        "[a]:1",
        "a b",
        "-a:1",
        "1.2.3:1",
        "256.1.1.1:1",
        "a..b:1",
        "[:::1]:1",
        "http://a:1",
        "a:٣",
        "a:" + "9" * 9999,
    ],
)
def test_what_is_no_address_is_refused_with_the_text_itself(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text)[:20])):
        parse_address(text)


def test_port_0_is_for_listening_only() -> None:
    assert parse_address("[::1]:0", any_port=True).port == 0
    with pytest.raises(ValueError, match="from 1 to 65535"):
        parse_address("[::1]:0")


@given(st.integers(0, 100 * 366 * 86_400))
def test_durations_survive_being_shown(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))).total_seconds() == seconds


@given(st.integers(0, 2**60) | st.integers(0, 1024).map(lambda n: n * 2**30))
def test_sizes_survive_being_shown(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 days", "9999999d", "1M"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "7", "GB", "-1GB", "1.5GB", "1 gigabyte", "9999999TiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_size(text)


LIMITS = ICE + "\n[limits]\n"


def test_limits_are_read_in_bits_or_bytes_and_by_the_hour_of_the_week() -> None:
    limits = parse_config(
        LIMITS
        + 'outside_down = "8Mbit/s"\nper_site_up = "2MB/s"\ntime_zone = "Europe/Paris"\n'
        + 'weekly = ["mon-fri 14:00-23:30 outside_down=2Mbit/s", "sat,sun up=unlimited"]\n',
        source="a.toml",
    ).limits
    assert limits.rates == Rates(outside_down=1_000_000, per_site_up=2_000_000)
    assert [str(line) for line in limits.weekly] == [
        "mon-fri 14:00-23:30 outside_down=2Mbit/s",
        "sat,sun up=unlimited",
    ]
    assert limits.upload_slots == 200


def test_limits_are_shown_as_they_can_be_written() -> None:
    rows = rows_of(LIMITS + 'up = "2.5MB/s"\nweekly = ["mon up=1MB/s"]\n')
    assert rows["limits", "up"].value == "20Mbit/s"
    assert rows["limits", "down"].value == "unlimited"
    assert rows["limits", "weekly"].value == ["mon up=1MB/s"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('up = "20Mb/s"', "[limits] up: '20Mb/s' may mean bits or bytes; write"),
        ("up = 20", "[limits] up: 20 must be text in quotes"),
        ('per_peer_up = "0kB/s"', "[limits] per_peer_up: '0kB/s' is less than 100kbit/s"),
        ('weekly = "mon up=1MB/s"', "[limits] weekly: 'mon up=1MB/s' must be a list in brackets"),
        ('weekly = ["mon 1-2 up=1MB/s"]', "[limits] weekly: '1-2' in 'mon 1-2 up=1MB/s' are no"),
        ('weekly = ["mon u=1MB/s"]', "[limits] weekly: there is no limit 'u'"),
        ('time_zone = "Lyon"', "[limits] time_zone: 'Lyon' is not a time zone"),
        ("upload_slots = 0", "[limits] upload_slots: 0 is not a number from 1 to 10000"),
        ('outside = "1MB/s"', "'outside' is not known in [limits]; did you mean 'outside_up'?"),
    ],
)
def test_a_mistake_in_the_limits_is_named_with_its_line(line: str, sentence: str) -> None:
    assert str(refused(LIMITS + line + "\n")).startswith(f"a.toml, line 6: {sentence}")


def test_a_grid_that_nobody_could_read_is_refused() -> None:
    lines = ", ".join(f'"mon {n // 60:02}:{n % 60:02}-23:59 up=1MB/s"' for n in range(65))
    assert "at most 64 are allowed" in str(refused(LIMITS + f"weekly = [{lines}]\n"))
