"""Messages of the control socket: limits, junk, and descriptors that are never lost."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.control import wire

JSON_OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def receive_all(connection: socket.socket, reader: wire.MessageReader) -> Iterator[wire.Message]:
    while True:
        data, ancillary, flags, _ = connection.recvmsg(
            reader.wanted_bytes, wire.ANCILLARY_BYTES, wire.RECEIVE_FLAGS
        )
        descriptors = wire.received_descriptors(ancillary, flags)
        if not data:
            return
        message = reader.receive(data, descriptors)
        if message is not None:
            yield message


@given(bodies=st.lists(JSON_OBJECTS, max_size=4), step=st.integers(1, 7))
def test_messages_survive_however_the_stream_is_cut(
    bodies: list[dict[str, object]], step: int
) -> None:
    data = b"".join(map(wire.encode_message, bodies))
    reader = wire.MessageReader()
    received = []
    at = 0
    while at < len(data):
        taken = data[at : at + min(step, reader.wanted_bytes)]
        at += len(taken)
        message = reader.receive(taken)
        if message is not None:
            received.append(message.body)
    assert received == bodies
    assert not reader.in_message


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_wire_error(data: bytes) -> None:
    reader = wire.MessageReader()
    at = 0
    try:
        while at < len(data):
            taken = data[at : at + reader.wanted_bytes]
            at += len(taken)
            message = reader.receive(taken)
            assert message is None or isinstance(message.body, dict)
    except wire.WireError:
        pass


def test_an_oversized_length_is_refused_before_anything_is_kept() -> None:
    reader = wire.MessageReader()
    with pytest.raises(wire.WireError, match="the limit is 1048576 bytes"):
        reader.receive((wire.MAX_REQUEST_BYTES + 1).to_bytes(4, "big"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b"\xff\xfe",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[" * 100_000,
        b'{"a": ["\\ud800"]}',
        b'{"\\uDFFF": 1}',
    ],
)
def test_a_payload_that_is_no_json_object_is_a_wire_error(payload: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(len(payload).to_bytes(4, "big") + payload)
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.WireError):
            list(receive_all(right, wire.MessageReader()))


def test_escapes_that_make_whole_characters_are_taken_and_odd_file_names_still_go_out() -> None:
    reader = wire.MessageReader()
    payload = b'{"a": "\\ud83c\\udfac \\\\ud800"}'
    reader.receive(len(payload).to_bytes(4, "big"))
    message = reader.receive(payload)
    assert message is not None
    assert message.body == {"a": "\U0001f3ac \\ud800"}
    sent = wire.encode_message({"path": os.fsdecode(b"/r\xe9sum\xe9")})
    assert sent[wire.HEADER.size :] == b'{"path":"/r?sum?"}'


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(wire.WireError):
        wire.encode_message({"text": "x" * wire.MAX_REQUEST_BYTES})


def test_a_thousand_files_arrive_each_with_its_own_message(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).write_text(str(number))
    before = open_descriptors()
    left, right = socket.socketpair()
    reader = wire.MessageReader()
    contents: list[str] = []
    with left, right:
        messages = receive_all(right, reader)
        for start in range(0, 1000, 125):
            opened = [os.open(tmp_path / str(n), os.O_RDONLY) for n in range(start, start + 125)]
            data = wire.encode_message({"from": start})
            assert left.sendmsg([data], wire.descriptors_to_send(opened)) == len(data)
            wire.close_descriptors(opened)
            message = next(messages)
            assert message.body == {"from": start}
            assert not any(os.get_inheritable(each) for each in message.descriptors)
            for descriptor in message.take_descriptors():
                with os.fdopen(descriptor) as stream:
                    contents.append(stream.read())
    assert contents == [str(number) for number in range(1000)]
    assert open_descriptors() == before


def test_descriptors_stay_with_their_message_when_several_are_queued(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, (tmp_path / "a").open("w") as one, (tmp_path / "b").open("w") as two:
        left.sendall(wire.encode_message({"n": 1}))
        left.sendmsg([wire.encode_message({"n": 2})], wire.descriptors_to_send([one.fileno()]))
        left.sendmsg([wire.encode_message({"n": 3})], wire.descriptors_to_send([two.fileno()]))
        left.sendall(wire.encode_message({"n": 4}))
        left.shutdown(socket.SHUT_WR)
        messages = list(receive_all(right, wire.MessageReader()))
        assert [(m.body["n"], len(m.descriptors)) for m in messages] == [
            (1, 0),
            (2, 1),
            (3, 1),
            (4, 0),
        ]
        for message, stream in zip(messages[1:3], (one, two), strict=True):
            (descriptor,) = message.descriptors
            assert os.path.samestat(os.fstat(descriptor), os.fstat(stream.fileno()))
            message.close()


def test_more_descriptors_than_fit_are_an_error_and_all_are_closed() -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    with left, right:
        many = [os.dup(0) for _ in range(252)]
        left.sendmsg(
            [b"\0"],
            [
                (
                    socket.SOL_SOCKET,
                    socket.SCM_RIGHTS,
                    b"".join(n.to_bytes(4, "little") for n in many),
                )
            ],
        )
        wire.close_descriptors(many)
        with pytest.raises(wire.WireError, match="lost"):
            list(receive_all(right, wire.MessageReader()))
    assert open_descriptors() == before


def test_descriptors_spread_over_one_message_are_counted_together() -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    reader = wire.MessageReader()
    with left, right:
        data = wire.encode_message({"a": "b" * 100})
        for part in (data[:4], data[4:50], data[50:]):
            many = [os.dup(0) for _ in range(100)]
            left.sendmsg([part], wire.descriptors_to_send(many))
            wire.close_descriptors(many)
        with pytest.raises(wire.WireError, match="250"):
            list(receive_all(right, reader))
        reader.close()
    assert open_descriptors() == before


def test_the_sender_refuses_three_hundred_descriptors() -> None:
    with pytest.raises(wire.WireError, match="300"):
        wire.descriptors_to_send(list(range(300)))


def test_the_encoding_is_plain_json_after_a_length() -> None:
    data = wire.encode_message({"id": 1, "method": "status", "params": {}})
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert json.loads(data[4:]) == {"id": 1, "method": "status", "params": {}}
