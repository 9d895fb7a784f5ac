"""Devices that offer less, or follow other admitted readings, are judged by what they offer.

The cases find nothing wrong with them, and say UNSUPPORTED where they cannot look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.runner import run, run_case
from virtio_ipsec.conformance.verdict import Unsupported, Verdict
from virtio_ipsec.device.config import DeviceConfig, full_sa_cap
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.flow_filter import FfActionCap, FfResourceCap, FfSelectorCap, Selector
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import CipherAlgo, Feature, FfAction, IpsecMode, MacAlgo, SelectorType, mask

CASES = load_cases()
MODES = full_sa_cap().modes
CBC = ModeCap(
    mode=IpsecMode.ESP_TUNNEL,
    max_replay_win_sz=32,
    cipher_algo=1 << CipherAlgo.AES_CBC,
    hmac_algo=1 << MacAlgo.HMAC_SHA_256,
    max_cipher_key_len=16,
    max_auth_key_len=32,
)
ETHERTYPE = Selector(SelectorType.ETH, 0, bytes(12) + b"\xff\xff")

LEAN: Mapping[str, Mapping[str, Any]] = {
    "one queue pair, no control queue": {
        "max_queue_pairs": 1,
        "features": mask(
            Feature.F_VERSION_1,
            Feature.F_ADMIN_VQ,
            Feature.NET_F_MAC,
            Feature.NET_F_OUT_NET_HEADER,
            Feature.NET_F_IPSEC,
        ),
    },
    "no IPsec": {"features": IMPLEMENTED & ~mask(Feature.NET_F_IPSEC)},
    "CBC in tunnels only, no options": {"sa_cap": IpsecSaCap((CBC,))},
    "transport mode only, no options": {"sa_cap": IpsecSaCap((replace(MODES[1], options=0),))},
    "AH only": {"sa_cap": IpsecSaCap(MODES[2:])},
    "rules can only drop": {"ff_actions": FfActionCap((FfAction.DROP,))},
    "rules on EtherTypes only": {"ff_selectors": FfSelectorCap((ETHERTYPE,))},
    "one object of each kind": {
        "ff_limits": FfResourceCap(1, 1, 1, 1, 1, 3),
        "ipsec_limits": IpsecResourceCap(1, 1),
    },
    "two inbound and three outbound SAs": {"ipsec_limits": IpsecResourceCap(2, 3)},
    "outbound SAs only": {"ipsec_limits": IpsecResourceCap(0, 8)},
    # What has nothing to do with each other stands together: a run takes seconds.
    "room for 50 SAs, virtual functions": {"sa_table_size": 50, "members": 2},
    "queues of 16 that cannot be reset, failed packets are dropped": {
        "queue_size": 16,
        "features": IMPLEMENTED & ~mask(Feature.F_RING_RESET),
        "drop_error_packets": True,
    },
    "no administration queue": {"features": IMPLEMENTED & ~mask(Feature.F_ADMIN_VQ)},
    "rules of one selector": {"ff_limits": FfResourceCap(8, 8, 8, 8, 8, 1)},
}


#: These show only in cases about capabilities, about SAs or flow filters, and about members.
CAPABILITIES = {"sa_cap", "ipsec_limits", "sa_table_size", "ff_limits", "ff_selectors", "ff_actions", "members"}
#: In the older dialect, where most cases are the same, what has to do with its own clauses.
LEAN_RFC = ("no IPsec", "AH only", "one object of each kind", "outbound SAs only", "rules can only drop")


def cases_for(dialect: Dialect, name: str) -> tuple[Case, ...]:
    """The cases that may see the difference; in the older dialect, of those with a clause that only it has."""
    own = {clause.id for clause in load_clauses() if V14.name not in clause.dialects}
    return tuple(
        case
        for case in CASES
        if case.clauses_in(dialect.name)
        and (dialect is V14 or own & set(case.clauses))
        and (
            not LEAN[name].keys() <= CAPABILITIES
            or case.needs & {"ipsec", "flow_filter", "members"}
            or case.id.startswith("capability-")
        )
    )


@pytest.mark.parametrize(
    ("dialect", "name"),
    [*((V14, name) for name in LEAN), *((RFC_2025_01, name) for name in LEAN_RFC)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_device_that_offers_less_is_not_at_fault(dialect: Dialect, name: str) -> None:
    settings = {"max_queue_pairs": 4, **LEAN[name]}
    members = settings.pop("members", 0)
    target = loopback(f"members={members}", dialect, config=DeviceConfig(dialect=dialect, **settings))
    results = run(target, cases_for(dialect, name), seed=3, thin=True).cases
    wrong = [
        (r.id, r.verdict.value, r.reason, [c for c in r.checks if c.verdict is not Verdict.PASS])
        for r in results
        if r.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED}
    ]
    assert wrong == []
    assert all(r.reason for r in results if r.verdict is Verdict.UNSUPPORTED)
    assert any(r.verdict is Verdict.PASS for r in results)


def test_dropped_errors_are_a_reading() -> None:
    target = loopback("", V14, config=DeviceConfig(drop_error_packets=True))
    cases = tuple(case for case in CASES if case.id == "ipsec-in-corrupted")
    (result,) = run(target, cases).cases
    assert ("E53", "dropped") in result.readings


def test_what_was_wrong_before_a_case_could_not_go_on_stands() -> None:
    def body(bench: Bench) -> None:
        bench.check("INF-28", bench.dialect is not V14, "another dialect")
        raise Unsupported("no way on")

    case = Case("stops", "stops", "stops", ("INF-28",), frozenset(), body)
    assert run_case(case, loopback("", V14), seed=0).verdict is Verdict.FAIL
    assert run_case(case, loopback("", RFC_2025_01), seed=0).verdict is Verdict.UNSUPPORTED
