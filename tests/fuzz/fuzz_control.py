"""The control socket of an operator's port: any octets, cut anywhere, by clients that hang up when they like.

Each line gets one answer, an object on one line; what was refused has changed nothing; no key is shown that was not
asked for, in an answer or in the log; and another client is served as before.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from harness import Target, fuzz

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "transport"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "policy"))

from managed import BackEnd

from virtio_ipsec.transport.control_client import ControlClient

KEY = "c0ffee00c0ffee11c0ffee22c0ffee33"
#: So much of it is a leak: names of unknown fields are quoted up to 20 characters.
LEAK = KEY[:24]
METHODS = (
    "ports", "metrics", "counters", "sa.list", "sa.add", "sa.remove", "rekey", "flow.list", "flow.add", "flow.remove",
    "handover", "handover.begin", "handover.part", "handover.commit", "handover.resolve", "sa.", "",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 1 << 32, 1 << 70, 1.5, 1e308, "", "1", "outbound", "inbound", "x" * 300,
    "\x1b[2J\n", [], {}, [["inbound", 1]], ["outbound", 1], ["outbound", None], {"sa": {}}, [[]], [{}],
)  # fmt: skip
NAMES = ("id", "direction", "sa", "flow", "name", "limit", "after", "old", "outbound", "inbound", "transfer", "sas",
         "flows", "instance", "to", "to_port", "key", "show")  # fmt: skip
CUTS = (1, 2, 3, 7, 16, 64, 256, 4096)
PATIENCE = 10.0
#: Inputs for which one back-end is used.
LIFE = 100


class Keyless(logging.Handler):
    """Fails when a record holds a key."""

    leaked = False

    def emit(self, record: logging.LogRecord) -> None:
        self.leaked |= LEAK in record.getMessage() or LEAK in str(record.exc_info)


class Stage:
    """A back-end whose control socket is served in this thread, and what is known of it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._log, self._seen = logging.getLogger("virtio_ipsec"), Keyless()
        self._log.addHandler(self._seen)
        self._before = self._log.propagate
        self._log.propagate = False
        self.runs = 0
        self._new()

    def _new(self) -> None:
        path = Path(self._folder.name, "ctl")
        #: One that owns its SAs, or sometimes one that awaits them.
        self.back_end = BackEnd(path, awaited=self.runs // LIFE % 4 == 1, engine="auto")
        gc.collect()  # what others have left
        self.threads, self.fds = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def close(self) -> None:
        self.back_end.stop()
        self._log.removeHandler(self._seen)
        self._log.propagate = self._before
        self._folder.cleanup()

    def turn(self) -> None:
        here = self.back_end
        here.server.step()
        while here._calls:
            here._calls.pop(0)()

    def until(self, what: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < limit, "did not happen in time"
            self.turn()

    def holds(self) -> tuple[Any, ...]:
        port = self.back_end.port
        sas = [(held.spec.outbound, held.spec.id, held.spec.params.spi) for held in port.held()]
        return sas, list(port.flows().items()), port.deed.ownership

    def quiet(self) -> bool:
        return threading.active_count() <= self.threads and not self.back_end._calls

    def left_none_open(self) -> bool:
        """No descriptor more than before; threads that have ended may be about to close theirs."""
        if len(os.listdir("/proc/self/fd")) <= self.fds:
            return True
        gc.collect()  # a refusal that is still being looked at holds what it was about
        return len(os.listdir("/proc/self/fd")) <= self.fds

    def check(self) -> None:
        """After an input, its client being gone."""
        self.until(self.quiet)
        assert not self._seen.leaked, "a key in the log"
        with ControlClient(self.back_end.path) as client:
            served = threading.Thread(target=client.call, args=("ports",))
            served.start()
            self.until(lambda: not served.is_alive())
        self.until(lambda: not self.back_end.server._clients)
        self.until(self.left_none_open)
        self.runs += 1
        if self.runs % LIFE == 0 or len(self.holds()[0]) > 200:
            self.back_end.stop()
            self._new()


@cache
def stage() -> Stage:
    return Stage()


def sa(rng: random.Random, direction: str, id: int) -> dict[str, Any]:
    mode = rng.choice(("esp-tunnel", "esp-transport", "ah-transport"))
    made: dict[str, Any] = {"id": id, "direction": direction, "mode": mode, "spi": 0x2000 + id}
    if mode.startswith("ah"):
        made |= {"algorithm": "hmac-sha2-256-128", "auth_key": KEY * 2}
    elif rng.random() < 0.6:
        made |= {"algorithm": "aes-gcm-16", "key": KEY, "salt": "a0a1a2a3"}
    else:
        made |= {"algorithm": "aes-cbc+hmac-sha2-256-128", "key": KEY, "auth_key": KEY * 2}
    if direction == "inbound":
        made |= {"selectors": [{}]}
    if mode == "esp-tunnel":
        ends = {"src": "192.0.2.1", "dst": "192.0.2.2"}
        made |= {"tunnel": ends} if direction == "outbound" else {"peer": "any"}
    return made


def parameters(rng: random.Random, method: str) -> dict[str, Any]:
    """Those that the method takes, with small ids, so that requests meet what others have made."""
    way, id = rng.choice(("outbound", "inbound")), rng.randrange(1, 6)
    name = rng.choice(("arp", "nd", "flow1", "flow2", "f"))
    transfer = rng.choice("ab")
    flow = {"name": name, "match": {"dst": "10.0.9.0/24"}, "action": "protect", "sa": id}
    state = {"sequence": 5, "packets": 4, "bytes": 300}
    found: dict[str, dict[str, Any]] = {
        "sa.list": {"limit": id, "after": [way, id]},
        "sa.add": {"sa": sa(rng, way, id)},
        "sa.remove": {"direction": way, "id": id},
        "rekey": {"old": id, "outbound": sa(rng, "outbound", id + 1), "inbound": sa(rng, "inbound", id + 1)},
        "flow.list": {"limit": id, "after": id},
        "flow.add": {"flow": flow},
        "flow.remove": {"name": name},
        "handover": {"to": f"/nonexistent/{name}"},
        "handover.begin": {"transfer": transfer, "sas": 1, "flows": 0},
        "handover.part": {"transfer": transfer, "sas": [{"sa": sa(rng, way, id), "state": state}]},
        "handover.commit": {"transfer": transfer},
        "handover.resolve": {"transfer": transfer, "instance": "x"},
    }
    return found.get(method, {})


def conversation(rng: random.Random) -> bytes:
    """How finely it is cut, then some requests."""
    said = [bytes([rng.randrange(256)])]
    for number in range(rng.randrange(2, 16)):
        method = rng.choice(METHODS)
        params = parameters(rng, method)
        for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
            table = rng.choice([params, *(each for each in params.values() if isinstance(each, dict))])
            table[rng.choice((*table, *NAMES))] = deepcopy(rng.choice(VALUES))
        request = {"id": number, "method": method, "params": params}
        if rng.random() < 0.2:
            request[rng.choice(("id", "method", "port", "params", "more"))] = rng.choice(VALUES)
        said.append(json.dumps(request).encode() + b"\n")
    return b"".join(said)


def talk(data: bytes) -> None:
    """Say it all, read all answers, hang up."""
    here = stage()
    how, said = data[:1].ljust(1, b"\0")[0], data[1:]
    before = here.holds()
    client = socket.socket(socket.AF_UNIX)
    with client:
        client.connect(here.back_end.path)
        client.setblocking(False)
        step = CUTS[how % len(CUTS)]
        heard = bytearray()
        answers = said.count(b"\n")

        def listen() -> bool:
            with suppress(BlockingIOError):
                heard.extend(client.recv(1 << 16))
            return heard.count(b"\n") >= answers

        for at in range(0, len(said), step):
            sent = 0
            while sent < len(piece := said[at : at + step]):
                with suppress(BlockingIOError):
                    sent += client.send(piece[sent:])
                    if not how & 8:
                        continue
                here.turn()
                listen()
        if how & 16:  # nobody waits for the answers
            here.turn()
        else:
            here.until(listen)
            judge(bytes(heard), said, changed=here.holds() != before)
    here.check()


def judge(heard: bytes, said: bytes, *, changed: bool) -> None:
    """What a client may count on."""
    *lines, rest = heard.split(b"\n")
    assert not rest
    assert len(lines) == said.count(b"\n")
    found = [json.loads(line) for line in lines]
    for answer in found:
        assert answer.keys() in ({"id", "result"}, {"id", "error"}), answer
        assert "\n" not in answer.get("error", "")
        assert "internal error" not in answer.get("error", ""), said
    assert not changed or any("result" in answer for answer in found), (
        "what was refused has changed something"
    )
    assert b"show_keys" in said or LEAK.encode() not in heard, "a key that nobody asked for"


TARGETS = (Target("control", conversation, talk, ()),)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
