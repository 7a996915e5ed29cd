"""The control server on a real socket: who may, what is refused, and who is cancelled when."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import jsonschema
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from archid.control import connection as connection_module
from archid.control import wire
from archid.control.client import ControlClient
from archid.control.connection import Exchange
from archid.control.credentials import Caller, judge
from archid.control.schema import METHODS
from archid.control.server import ControlServer
from archid.errors import ArchidError, Conflict, Denied, NotFound, Unavailable, UsageError
from archid.events import EventHub
from tests.unit.control import samples
from tests.unit.control.conftest import Serving, settings_for
from tests.unit.control.test_wire import open_descriptors

Json = dict[str, Any]


async def status(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
    return samples.STATUS


async def stop(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
    return {"stopping": True}


async def call(path: Path, method: str, params: Json | None = None) -> Json:
    return await trio.to_thread.run_sync(ControlClient(path).call, method, params)


def raw(path: Path, *parts: bytes, descriptors: list[int] | None = None) -> list[Json]:
    """Send bytes as they are and collect what is answered until the server hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(os.fspath(path))
        for part in parts:
            connection.sendmsg([part], wire.descriptors_to_send(descriptors or []))
        reader = wire.MessageReader()
        answers = []
        with contextlib.suppress(ConnectionResetError):  # it left unread what came after the junk
            while data := connection.recv(reader.wanted_bytes):
                message = reader.receive(data)
                if message is not None:
                    answers.append(message.body)
        return answers


async def closed_down_to(count: int) -> None:
    """Wait until no more than `count` descriptors are open: connections close in their own time."""
    with trio.fail_after(10):
        while open_descriptors() > count:
            await trio.lowlevel.checkpoint()


async def test_a_request_is_answered_and_fits_its_schema(serving: Serving) -> None:
    async with serving({"status": status}) as path:
        result = await call(path, "status")
    jsonschema.validate(result, METHODS["status"].result)
    assert result == samples.STATUS


async def test_the_socket_is_there_only_while_the_server_runs(serving: Serving) -> None:
    async with serving({}) as path:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not path.exists()


async def test_a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not(
    serving: Serving, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with serving({"status": status}):
        assert (await call(path, "status"))["pid"] == 4711
        second = ControlServer(settings_for(path), {}, EventHub(), role="ice")
        with pytest.raises(Conflict, match="Another archid answers"):
            await second.serve()
        assert (await call(path, "status"))["pid"] == 4711


async def test_a_file_in_the_way_is_left_alone(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.RaisesGroup(Conflict, flatten_subgroups=True, allow_unwrapped=True):
        async with serving({}):
            pass
    assert path.read_text() == "precious"


async def test_a_path_that_linux_cannot_bind_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("d" * (106 - len(str(tmp_path)) - 2)) / "s"
    server = ControlServer(settings_for(long), {}, EventHub(), role="ice")
    with pytest.raises(UsageError, match="too long"):
        await server.serve()


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("weather", {}, "unknown_method"),
        ("status", {"verbose": True}, "invalid_params"),
        ("token.create", {"role": "central"}, "invalid_params"),
        ("release.list", {}, "wrong_role"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    serving: Serving, method: str, params: Json, code: str
) -> None:
    async with serving({"status": status}, role="ice") as path:
        with pytest.raises(UsageError) as caught:
            await call(path, method, params)
    assert caught.value.code == code
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "\\ud800", "method": "status", "params": {}}',
        b'{"id": 1, "method": "\\ud800", "params": {}}',
        b'{"id": 1, "method": "status", "params": {"\\udfff": 1}}',
        b'{"id": 1, "input": {"\\udfff": 1}}',
    ],
)
async def test_text_that_cannot_be_written_back_does_not_end_the_daemon(
    serving: Serving, body: bytes
) -> None:
    async with serving({"status": status}) as path:
        answers = await trio.to_thread.run_sync(raw, path, wire.HEADER.pack(len(body)) + body)
        assert answers[-1]["error"]["code"] == "malformed_request"
        assert (await call(path, "status"))["pid"] == 4711


async def test_an_error_keeps_its_class_code_and_remedy(serving: Serving) -> None:
    async def fail(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        async with trio.open_nursery():
            raise NotFound("There is no release 'x'", remedy="Look at release list", code="gone")

    async with serving({"release.show": fail}) as path:
        with pytest.raises(NotFound) as caught:
            await call(path, "release.show", {"release": "x"})
    assert caught.value.to_json() == {
        "code": "gone",
        "message": "There is no release 'x'",
        "remedy": "Look at release list",
        "exit_code": 3,
    }


async def test_a_bug_in_a_handler_is_logged_and_the_server_lives_on(serving: Serving) -> None:
    async def fail(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        raise KeyError("secret detail")

    async def unprintable(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        return {"peers": [object()]}

    with capture_logs() as logs:
        async with serving({"scripts": fail, "peers": unprintable, "status": status}) as path:
            for method in ("scripts", "peers"):
                with pytest.raises(ArchidError) as caught:
                    await call(path, method)
                assert caught.value.code == "internal"
                assert "secret detail" not in caught.value.sentence
            await call(path, "status")
    failures = [line for line in logs if line["log_level"] == "error"]
    assert "control_handler_failed" in {line["event"] for line in failures}


async def test_an_answer_off_its_schema_is_an_error_in_the_log(serving: Serving) -> None:
    async def half(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        return {"scripts": [{"name": "x"}]}

    with capture_logs() as logs:
        async with serving({"scripts": half}) as path:
            await call(path, "scripts")
    assert [line["event"] for line in logs] == ["control_answer_off_schema"]


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xff\xff\xff",
        (5).to_bytes(4, "big") + b"hello",
        b"GET / HTTP/1.1\r\n\r\n",
        wire.encode_message({"id": 1}),
        wire.encode_message({"id": 1, "method": 7}),
        wire.encode_message({"method": "status"}),
        wire.encode_message({"id": 1, "input": {}}),
        wire.encode_message({"id": None, "input": []}),
        wire.encode_message({"id": 1, "method": "stop"})
        + wire.encode_message({"id": 2, "method": "stop"}),
    ],
)
async def test_malformed_requests_get_a_typed_error_and_the_end(
    serving: Serving, junk: bytes
) -> None:
    async def wait(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        return await trio.sleep_forever()

    async with serving({"status": status, "stop": wait}) as path:
        answers = await trio.to_thread.run_sync(raw, path, junk)
        assert answers[-1]["error"]["code"] == "malformed_request"
        await call(path, "status")


async def test_descriptors_that_nobody_asked_for_are_closed(serving: Serving) -> None:
    async with serving({"status": status}) as path:
        before = open_descriptors()
        request = wire.encode_message({"id": 1, "method": "status"})
        answers = await trio.to_thread.run_sync(lambda: raw(path, request, descriptors=[0] * 200))
        assert answers[-1]["error"]["code"] == "malformed_request"
        await closed_down_to(before)


async def test_a_thousand_files_reach_the_handler(serving: Serving, tmp_path: Path) -> None:
    seen: list[str] = []

    async def publish(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        while "commit" not in (taken := await exchange.receive()).body:
            for entry, descriptor in zip(taken.body["entries"], taken.descriptors, strict=True):
                with os.fdopen(descriptor) as stream:
                    seen.append(f"{entry['path']}={stream.read()}")
            await exchange.event({"event": "publish.taken", "entries": len(taken.descriptors)})
        return {"n": len(seen)}

    def client(path: Path) -> tuple[list[Json], Json]:
        params = {"script": "s", "kind": "loop", "files": 1000, "size_bytes": 0, "listing": None}
        events: list[Json] = []
        with ControlClient(path).start("publish", params) as conversation:
            for start in range(0, 1000, 125):
                names = [str(number) for number in range(start, start + 125)]
                opened = [os.open(tmp_path / name, os.O_RDONLY) for name in names]
                conversation.send_input({"entries": [{"path": name} for name in names]}, opened)
                wire.close_descriptors(opened)
            conversation.send_input({"commit": True})
            return events, conversation.result(events.append)

    for number in range(1000):
        (tmp_path / str(number)).write_text(str(number * number))
    with capture_logs():  # the result is no publication, and that is logged
        async with serving({"publish": publish}) as path:
            before = open_descriptors()
            events, result = await trio.to_thread.run_sync(client, path)
            assert result == {"n": 1000}
            assert sum(event["entries"] for event in events) == 1000
            await closed_down_to(before)
    assert seen == [f"{number}={number * number}" for number in range(1000)]


async def test_a_client_that_leaves_cancels_its_request(serving: Serving) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def publish(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        started.set()
        try:
            return await trio.sleep_forever()
        finally:
            cancelled.set()

    params = {"script": "s", "kind": "loop", "files": 0, "size_bytes": 0, "listing": None}
    async with serving({"publish": publish}) as path:
        before = open_descriptors()
        conversation = ControlClient(path).start("publish", params)
        for _ in range(2):
            conversation.send_input({"entries": []}, [0, 0, 0])
        await started.wait()
        conversation.close()
        with trio.fail_after(10):
            await cancelled.wait()
            while open_descriptors() > before:
                await trio.lowlevel.checkpoint()


async def test_input_that_was_on_its_way_when_the_request_failed_does_no_harm(
    serving: Serving,
) -> None:
    async def publish(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        await exchange.receive()
        raise NotFound("There is no such script")

    def client(path: Path) -> None:
        params = {"script": "s", "kind": "loop", "files": 0, "size_bytes": 0, "listing": None}
        with ControlClient(path).start("publish", params) as conversation:
            for _ in range(50):
                conversation.send_input({"entries": []}, [0])
            conversation.result()

    async with serving({"publish": publish, "status": status}) as path:
        with pytest.raises(NotFound, match="no such script"):
            await trio.to_thread.run_sync(client, path)
        await call(path, "status")


async def test_events_stream_until_the_listener_leaves(serving: Serving) -> None:
    events = EventHub()

    def client(path: Path) -> list[Json]:
        stream = ControlClient(path).stream("events.subscribe", {"prefixes": ["head.", "tree."]})
        assert next(stream)["event"] == "events.subscribed"
        trio.from_thread.run_sync(lambda: events.publish("peer.lost", node="x"))
        trio.from_thread.run_sync(lambda: events.publish("head.accepted", epoch=0, serial=7))
        trio.from_thread.run_sync(lambda: events.publish("tree.placed", path="/x"))
        return [next(stream), next(stream)]

    async with serving({}, events=events) as path:
        first, second = await trio.to_thread.run_sync(client, path)
    assert first["event"] == "head.accepted"
    assert first["serial"] == 7
    assert second["event"] == "tree.placed"
    jsonschema.validate(first, METHODS["events.subscribe"].events)


async def test_a_listener_that_does_not_read_is_dropped_and_holds_up_nobody(
    serving: Serving,
) -> None:
    events = EventHub(queue_events=100)
    async with serving({"status": status}, events=events) as path:
        with ControlClient(path).start("events.subscribe", {"prefixes": []}) as conversation:
            await trio.to_thread.run_sync(conversation.next_event)
            for number in range(20_000):
                events.publish("head.accepted", serial=number, padding="x" * 100)
            await call(path, "status")  # others are served meanwhile

            def read_on() -> int:
                count = 0
                while conversation.next_event() is not None:
                    count += 1
                return count

            with pytest.raises(Unavailable) as caught:
                await trio.to_thread.run_sync(read_on)
            assert caught.value.code == "too_slow"


async def test_slow_clients_do_not_lock_out_the_operator(serving: Serving) -> None:
    async with serving({"status": status}, max_clients=8) as path:
        idle = []
        for _ in range(7):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(os.fspath(path))
            connection.send(b"\0")  # a message that never ends
            idle.append(connection)
        await call(path, "status")
        for connection in idle:
            connection.close()


async def test_half_a_message_is_not_waited_for(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MESSAGE_TIMEOUT_S", 0.02)
    async with serving({"status": status}) as path:
        answers = await trio.to_thread.run_sync(raw, path, b"\0\0")
    assert "did not arrive within" in answers[-1]["error"]["message"]


async def test_an_idle_client_is_hung_up_on_but_not_in_the_middle_of_a_request(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "IDLE_TIMEOUT_S", 0.02)

    started, go_on = trio.Event(), trio.Event()

    async def slow(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        started.set()
        await go_on.wait()
        return samples.STATUS

    async with serving({"status": slow}) as path, trio.open_nursery() as nursery:
        nursery.start_soon(call, path, "status")  # raises if it is hung up on
        await started.wait()
        # this one comes later, so when its time is up, the other's has been
        assert await trio.to_thread.run_sync(raw, path) == []
        go_on.set()


async def test_a_daemon_that_dies_in_the_middle_is_unavailable(serving: Serving) -> None:
    started = trio.Event()

    async def wait(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        started.set()
        return await trio.sleep_forever()

    outcome: list[ArchidError] = []

    async def ask(path: Path) -> None:
        with pytest.raises(Unavailable) as caught:
            await call(path, "status")
        outcome.append(caught.value)

    async with trio.open_nursery() as nursery, serving({"status": wait}) as path:
        nursery.start_soon(ask, path)
        await started.wait()
    assert outcome[0].code == "daemon_lost"


async def test_a_daemon_that_does_not_answer_is_given_up(serving: Serving) -> None:
    async def wait(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        return await trio.sleep_forever()

    async with serving({"status": wait}) as path:
        client = ControlClient(path)
        with pytest.raises(Unavailable) as caught:
            await trio.to_thread.run_sync(lambda: client.call("status", silence_s=0.02))
    assert caught.value.code == "daemon_silent"


async def test_one_client_too_many_is_told_so(serving: Serving) -> None:
    async with serving({"status": status}, max_clients=2) as path:
        held = [ControlClient(path).start("events.subscribe", {"prefixes": []}) for _ in range(2)]
        for conversation in held:
            await trio.to_thread.run_sync(conversation.next_event)
        with pytest.raises(Unavailable) as caught:
            await call(path, "status")
        assert caught.value.code == "busy"
        for conversation in held:
            conversation.close()


NOBODY_ASKS = """
import json, os, sys
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir
from archid.control.client import ControlClient
from archid.errors import ArchidError
groups = json.loads(sys.argv[2])
os.setgroups(groups); os.setgid(65534); os.setuid(65534)
out = {}
for method in ("status", "stop"):
    try:
        out[method] = sorted(ControlClient(Path(sys.argv[1])).call(method))[:1]
    except ArchidError as error:
        out[method] = error.to_json()
print(json.dumps(out))
"""


def as_nobody(path: Path, groups: list[int]) -> Json:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY_ASKS, os.fspath(path), json.dumps(groups)],
        capture_output=True,
        text=True,
        check=True,
    )
    answers: Json = json.loads(done.stdout)
    return answers


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_may_look_but_not_change(serving: Serving, tmp_path: Path) -> None:
    for folder in takewhile(lambda one: one != Path(gettempdir()), (tmp_path, *tmp_path.parents)):
        folder.chmod(0o755)
    async with serving({"status": status, "stop": stop}, admin_group="daemon") as path:
        refused = await trio.to_thread.run_sync(as_nobody, path, [])
        assert refused["status"]["code"] == "socket_denied"
        assert refused["status"]["exit_code"] == Denied.exit_code
        path.chmod(0o666)  # as if nobody were in the socket's group
        answers = await trio.to_thread.run_sync(as_nobody, path, [1])
    assert answers["status"] == ["advertise"]
    # claiming the group in the process is not enough: the user database decides
    assert answers["stop"]["code"] == "denied"
    assert answers["stop"]["exit_code"] == 4
    assert answers["stop"]["message"].startswith("The user nobody may look but not change")
    assert "'daemon'" in answers["stop"]["message"]


def test_who_may_change() -> None:
    def may(uid: int, gid: int, admin_group: str) -> bool:
        return judge(1, uid, gid, admin_group=admin_group, daemon_uid=777).may_change

    assert may(0, 0, "")
    assert may(777, 777, "")
    assert may(1, 1, "daemon")  # the user daemon, by its group in the user database
    assert may(65_534, 1, "daemon")  # nobody, after newgrp daemon
    assert not may(65_534, 65_534, "daemon")
    assert not may(65_534, 65_534, "")
    assert not may(65_534, 65_534, "no-such-group")
    assert not may(54_321, 54_321, "daemon")  # a user that is in no database


async def test_an_event_that_is_cancelled_before_a_byte_of_it_is_out_costs_nothing(
    serving: Serving,
) -> None:
    async def told_too_late(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.event, {"event": "verify.progress"})
            await trio.lowlevel.checkpoint()  # it has its turn now, and has sent nothing yet
            nursery.cancel_scope.cancel()
        return samples.STATUS

    for _ in range(20):  # which of two tasks runs first is trio's to choose
        async with serving({"status": told_too_late}) as path:
            assert await call(path, "status") == samples.STATUS


async def test_a_thread_that_fails_because_its_client_left_ends_no_server(
    serving: Serving,
) -> None:
    begun, gone = trio.Event(), trio.Event()

    async def interrupted(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            begun.set()
            with trio.CancelScope(shield=True):
                await gone.wait()
            raise Conflict("the work was stopped")

    async with serving({"status": interrupted, "stop": stop}) as path:
        conversation = ControlClient(path).start("status")
        await begun.wait()
        conversation.close()
        await trio.testing.wait_all_tasks_blocked()
        gone.set()
        assert await call(path, "stop") == {"stopping": True}
