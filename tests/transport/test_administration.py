"""The methods of the control socket on a live port, and its metrics."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from managed import BackEnd, config_of
from operator_ports import KEYS

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport import metrics, metrics_server
from virtio_ipsec.transport.administration import Administration
from virtio_ipsec.transport.control_client import ControlClient, RequestRefused
from virtio_ipsec.transport.managed_port import ManagedPort, Ownership
from virtio_ipsec.transport.metrics import metrics_text
from virtio_ipsec.transport.metrics_server import MetricsServer
from virtio_ipsec.wire.dialect import V14

KEY = "f0e0d0c0b0a0908070605040302010ff"


def outbound(id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": id, "direction": "outbound", "mode": "esp-tunnel", "spi": 0x5000 + id, "algorithm": "aes-gcm-16",
        "key": f"{id:032x}", "salt": "00000001", "tunnel": {"src": "192.0.2.1", "dst": "192.0.2.2"},
    } | changes  # fmt: skip


def inbound(id: int, **changes: Any) -> dict[str, Any]:
    own = {"direction": "inbound", "peer": "192.0.2.2", "selectors": [{"remote": "10.0.2.0/24"}]}
    table = outbound(id, **own)
    del table["tunnel"]
    return table | changes


@pytest.fixture
def end(tmp_path: Path) -> Iterator[BackEnd]:
    result = BackEnd(tmp_path / "ctl", state=tmp_path / "state").start()
    yield result
    result.stop()


def spi(frame: bytes) -> int:
    return int.from_bytes(frame[34:38])


# -- SAs


def test_sas_are_listed_with_what_they_have_done_and_keys_masked(end: BackEnd) -> None:
    end.send()
    one, two = end.ask("sa.list")["sas"]
    assert (one["sa"]["direction"], one["sequence"], one["packets"], one["flows"]) == (
        "outbound", 1, 1, ["to-peer", "to-peer6"],
    )  # fmt: skip
    assert (two["sa"]["direction"], two["frozen"], two["soft_expired"], two["refused"]) == ("inbound", False, False, {})
    assert one["sa"]["key"] == "x" * 32
    assert one["sa"]["salt"] == "x" * 8


def test_keys_are_shown_to_who_asks_for_them_and_that_is_logged(end: BackEnd, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = end.ask("sa.list", show_keys=True)["sas"]
    assert one["sa"]["key"] == KEYS[0]
    assert "keys of port port0 shown to uid" in caplog.text


def test_an_sa_is_added_used_and_removed(end: BackEnd) -> None:
    assert end.ask("sa.add", sa=outbound(9)) == {"added": "outbound sa 9"}
    flow = {"name": "first", "action": "protect", "sa": 9, "priority": 1, "match": {"remote": "10.0.2.0/24"}}
    end.ask("flow.add", flow=flow)
    (frame,) = end.send()
    assert spi(frame) == 0x5009
    assert end.ask("sa.remove", direction="outbound", id=9) == {"removed": "outbound sa 9"}
    assert end.send() == []  # the flow names an SA that is gone
    end.ask("flow.remove", name="first")
    (frame,) = end.send()
    assert spi(frame) == 0x1001


def test_a_thousand_sas(end: BackEnd) -> None:
    with ControlClient(end.path) as client:
        added = list(client.call_many(("sa.add", {"sa": outbound(id)}) for id in range(2, 1002)))
        assert [each["added"] for each in added] == [f"outbound sa {id}" for id in range(2, 1002)]
        found, more, params = [], True, {}
        while more:
            page = client.call("sa.list", **params)
            found += [each["sa"]["id"] for each in page["sas"]]
            more, last = page["more"], page["sas"][-1]["sa"]
            params = {"after": [last["direction"], last["id"]]}
    assert found == [*range(1, 1002), 1]
    assert (end.ask("ports")["ports"][0]["outbound_sas"]) == 1001


def test_what_cannot_be_added_is_refused_and_changes_nothing(end: BackEnd) -> None:
    before = end.ask("sa.list")
    for table, message in (
        (outbound(1), "id 1 is used twice"),
        (outbound(2, key=KEYS[0], salt="a0a1a2a3"), "key and salt of another SA"),
        (inbound(2, spi=0x1002), "spi 0x1002 is used twice"),
        (outbound(2, key="00"), "must be 16 or 24 or 32 octets"),
        (outbound(2, algorithm="rot13"), "must be one of"),
        (outbound(2, tunnel={"src": "192.0.2.9", "dst": "192.0.2.2"}), "not one of the underlay's addresses"),
        ({k: v for k, v in outbound(2).items() if k != "key"} | {"key_file": "/etc/shadow"}, "cannot be read here"),
        (outbound(2, comment="x"), "comment is not known"),
        (1, "must be the table of an SA"),
    ):
        with pytest.raises(RequestRefused, match=message) as refused:
            end.ask("sa.add", sa=table)
        assert KEYS[0] not in str(refused.value)
    assert end.ask("sa.list") == before


def test_a_removed_key_that_comes_back_goes_on_where_it_was(end: BackEnd) -> None:
    sa = end.ask("sa.list", show_keys=True)["sas"][0]["sa"]
    frames = end.send() + end.send()
    end.ask("sa.remove", direction="outbound", id=1)
    end.ask("sa.add", sa=sa)
    frames += end.send()
    assert [int.from_bytes(frame[38:42]) for frame in frames] == [1, 2, 3]
    ivs = [int.from_bytes(frame[42:50]) for frame in frames]
    assert ivs[2] - ivs[0] == 2


# -- rekeying


def test_rekeying_turns_all_flows_at_once_and_leaves_the_old_inbound_sa(tmp_path: Path, end: BackEnd) -> None:
    peer = BackEnd(tmp_path / "peer", side="b").start()
    mirror = {"direction": "inbound", "peer": "192.0.2.1", "selectors": [{"remote": "10.0.1.0/24"}], "id": 2}
    fresh = {key: value for key, value in outbound(2).items() if key != "tunnel"} | mirror
    peer.ask("sa.add", sa=fresh)
    old = peer.send()
    published = end.published
    result = end.ask("rekey", old=1, outbound=outbound(2), inbound=inbound(2, key=KEY))
    assert result == {"added": "outbound sa 2 and inbound sa 2", "removed": "outbound sa 1"}
    assert end.published > published
    (frame,) = end.send()
    assert spi(frame) == 0x5002
    assert peer.receive(frame)
    assert end.receive(old[0])  # with the old inbound SA
    ids = [(each["sa"]["direction"], each["sa"]["id"]) for each in end.ask("sa.list")["sas"]]
    assert ids == [("outbound", 2), ("inbound", 1), ("inbound", 2)]
    assert [flow["sa"] for flow in end.ask("flow.list")["flows"] if "sa" in flow] == [2, 2]
    peer.stop()


def test_a_rekeying_that_cannot_be_changes_nothing(end: BackEnd) -> None:
    before = end.ask("sa.list")
    for params, message in (
        ({"old": 3, "outbound": outbound(2)}, "has no outbound sa 3"),
        ({"old": 1, "outbound": outbound(1), "inbound": inbound(5)}, "id 1 is used twice"),
        ({"old": 1, "outbound": outbound(2), "inbound": inbound(1)}, "id 1 is used twice"),
        ({"old": 1, "outbound": inbound(2)}, "outbound must be an outbound SA"),
        ({"old": 1}, "outbound must be the table of an SA"),
    ):
        with pytest.raises(RequestRefused, match=message):
            end.ask("rekey", **params)
    assert end.ask("sa.list") == before
    end.ask("sa.add", sa=inbound(5))  # its key is free again


# -- flows, ports, counters


def test_flows_are_listed_in_order_page_by_page(end: BackEnd) -> None:
    names = [flow["name"] for flow in end.ask("flow.list")["flows"]]
    assert names == ["to-peer", "to-peer6", "arp", "nd", "dhcp", "ike"]
    page = end.ask("flow.list", limit=2, after=3)
    assert [flow["name"] for flow in page["flows"]] == ["nd", "dhcp"]
    assert page["more"]
    assert end.ask("flow.add", flow={"action": "drop"}) == {"added": "flow flow-7"}
    for params, message in (
        ({"flow": {"action": "drop", "name": "arp"}}, "the name is taken"),
        ({"flow": {"action": "protect", "sa": 77}}, "names no outbound SA"),
        ({"flow": 1}, "must be the table of a flow"),
    ):
        with pytest.raises(RequestRefused, match=message):
            end.ask("flow.add", **params)
    with pytest.raises(RequestRefused, match="no flow of that name"):
        end.ask("flow.remove", name="nobody")


def test_ports_and_counters(end: BackEnd) -> None:
    end.send()
    assert end.ask("ports") == {
        "ports": [
            {
                "name": "port0", "control": "operator", "outbound_sas": 1, "inbound_sas": 1, "flows": 6,
                "ownership": "here", "state": True,
            }
        ]
    }  # fmt: skip
    assert end.marks is not None
    end.marks.failure = "no room"
    assert end.ask("ports")["ports"][0]["state_failure"] == "no room"
    assert end.ask("counters")["counters"] == end.operator.counters()


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("sa.steal", {}, "there is no such method; known: counters, flow.add"),
        ("sa.list", {"limit": 0}, "limit must be a whole number from 1 to 256"),
        ("sa.list", {"after": ["up", 1]}, "after must be a direction and an id"),
        ("sa.list", {"after": ["inbound"]}, "after must be a direction and an id"),
        ("sa.list", {"after": 7}, "after must be a direction and an id"),
        ("sa.list", {"keys": True}, "keys is not known here"),
        ("sa.remove", {"direction": "inbound", "id": 8}, "port port0 has no inbound sa 8"),
        ("sa.remove", {"id": 8}, "direction is missing"),
        ("ports", {"x": 1}, "x is not known here"),
        ("metrics", {"x": 1}, "x is not known here"),
        ("counters", {"x": 1}, "x is not known here"),
    ],
)
def test_requests_that_make_no_sense(end: BackEnd, method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        end.ask(method, **params)


def test_ports_are_told_apart_by_name(end: BackEnd) -> None:
    guest = ManagedPort("guest0", V14, threading.RLock(), dict)
    end.administration.ports["guest0"] = guest
    with pytest.raises(RequestRefused, match="there are several ports; name one: port0, guest0"):
        end.ask("sa.list")
    with ControlClient(end.path, port="blue") as client, pytest.raises(RequestRefused, match="no such port"):
        client.call("sa.list")
    with ControlClient(end.path, port="guest0") as client:
        with pytest.raises(RequestRefused, match="the driver owns SAs and flows there"):
            client.call("sa.list")
        assert client.call("counters") == {"counters": {}}
        assert client.call("ports")["ports"][1] == {"name": "guest0", "control": "guest"}


def test_changes_are_logged_without_keys(end: BackEnd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    end.ask("sa.add", sa=outbound(2, key=KEY))
    end.ask("rekey", old=2, outbound=outbound(3, key=KEY[::-1]))
    with suppress(RequestRefused):
        end.ask("sa.add", sa=outbound(2, key=KEY[2:]))
    end.ask("sa.list")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" by ")[0] for line in lines] == ["sa.add on port port0", "rekey on port port0"]
    assert KEY not in caplog.text


def test_no_answer_holds_a_key_unless_it_was_asked_for(end: BackEnd) -> None:
    for method in ("sa.list", "flow.list", "ports", "counters", "metrics"):
        answer = json.dumps(end.ask(method))
        assert not any(key in answer for key in (*KEYS, "a0a1a2a3"))


# -- metrics


def test_every_counter_is_told_to_prometheus(end: BackEnd) -> None:
    end.send()
    text = end.ask("metrics")["text"]
    assert text == metrics_text([end.port])
    lines = text.splitlines()
    labels = 'port="port0",direction="outbound",id="1",spi="0x00001001"'
    for line in (
        "# TYPE virtio_ipsec_sa_packets_total counter",
        f"virtio_ipsec_sa_packets_total{{{labels}}} 1",
        f"virtio_ipsec_sa_sequence{{{labels}}} 1",
        'virtio_ipsec_port_events_total{port="port0",event="tx_protected"} 1',
        'virtio_ipsec_port_owns_sas{port="port0"} 1',
        'virtio_ipsec_port_state_failure{port="port0"} 0',
        'virtio_ipsec_port_sas{port="port0",direction="inbound"} 1',
    ):
        assert line in lines, text
    # Every family is described once, ahead of its samples.
    families = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert len(set(families)) == len(families)
    assert all(line.startswith("#") or line.split("{")[0] in families for line in lines)


def test_refused_packets_many_sas_and_strange_names(end: BackEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    end.port.freeze()
    end.send()
    end.port.name = 'a"b\\c\nd'
    end.port.deed = end.port.deed.__class__(Ownership.LEAVING)
    text = metrics_text([end.port])
    assert 'reason="held"} 1' in text
    assert 'virtio_ipsec_port_owns_sas{port="a\\"b\\\\c\\nd"} 0' in text
    monkeypatch.setattr(metrics, "MOST_SAS", 1)
    assert "sa_sequence" not in metrics_text([end.port])


class Fetching:
    """A metrics server and whoever asks it."""

    def __init__(self, address: str) -> None:
        self.texts = 0
        self.server = MetricsServer(address, self._text)

    def _text(self) -> str:
        self.texts += 1
        return "metric 1\n" * 30_000

    def connect(self) -> socket.socket:
        address = self.server.address
        if "/" in address:
            client = socket.socket(socket.AF_UNIX)
            client.connect(address)
        else:
            host, port = address.rsplit(":", 1)
            client = socket.create_connection((host.strip("[]"), int(port)))
        self.server.step(1)
        return client

    def fetch(self, request: bytes) -> bytes:
        client = self.connect()
        client.sendall(request)
        client.settimeout(0)
        found = b""
        for _ in range(10_000):
            self.server.step(0.001)
            try:
                data = client.recv(1 << 16)
            except BlockingIOError:
                continue
            if not data:
                break
            found += data
        client.close()
        return found


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "PATH"])
def test_prometheus_fetches_a_page(tmp_path: Path, address: str) -> None:
    fetching = Fetching(address.replace("PATH", f"{tmp_path}/metrics"))
    answer = fetching.fetch(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Type: text/plain; version=0.0.4" in head
    assert len(body) == 270_000
    assert fetching.fetch(b"HEAD / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n")
    fetching.server.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /secrets HTTP/1.1\r\n\r\n", b"404"), (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"what\r\n\r\n", b"400"), (b"GET /metrics SMTP\r\n\r\n", b"400"), (b"x" * 9000, b"400"),
    ],
)  # fmt: skip
def test_other_requests_are_refused(tmp_path: Path, request_: bytes, status: bytes) -> None:
    fetching = Fetching(f"{tmp_path}/metrics")
    assert fetching.fetch(request_).split(b" ")[1] == status
    assert fetching.texts == 0
    fetching.server.close()


def test_clients_that_say_nothing_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching = Fetching(f"{tmp_path}/metrics")
    silent = [fetching.connect() for _ in range(metrics_server.MAX_CLIENTS)]
    assert fetching.connect().recv(1) == b""
    monkeypatch.setattr(metrics_server, "PATIENCE", -1.0)
    assert fetching.fetch(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert silent[0].recv(1) == b""
    silent[1].close()
    fetching.server.step(0.1)
    fetching.server.close()
    assert silent[2].recv(1) == b""


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "192.0.2.1:1", "example.org:80", "127.0.0.1:x", "127.0.0.1:70000"])
def test_metrics_are_for_this_machine(address: str) -> None:
    with pytest.raises(ConfigError, match="loopback address"):
        MetricsServer(address, str)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    first = MetricsServer("127.0.0.1:0", str)
    with pytest.raises(TransportError, match="Address already in use"):
        MetricsServer(first.address, str)
    first.close()


def test_an_administration_that_ends_forgets_what_came(tmp_path: Path) -> None:
    target = BackEnd(tmp_path / "target", awaited=True, config=config_of("a"))
    target.start()
    with ControlClient(target.path) as client:
        client.call("handover.begin", transfer="t", sas=0, flows=0)
        target.administration.close()
        with pytest.raises(RequestRefused, match="no such handover"):
            client.call("handover.commit", transfer="t")
    assert isinstance(target.administration, Administration)
    target.stop()
