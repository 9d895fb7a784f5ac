"""Look at a running `serve` and change it: SAs, flows, keys, counters, and where the SAs live.

Files hold [[sa]] or [[flow]] tables as the configuration does; `-` is standard input. A file with keys must be closed
to other users, or name key files that are. Keys are shown as xx unless --show-keys is given.

examples:
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl sa list
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl sa add sas.toml
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl sa remove inbound 7
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl flow add flows.toml
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl rekey 7 new-sas.toml
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl top
  virtio-ipsec ctl --control /run/virtio-ipsec.ctl handover --to /run/other.ctl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from virtio_ipsec.cli.arguments import add_action, positive
from virtio_ipsec.cli.configs import read_tables
from virtio_ipsec.cli.ctl_shown import flow_line, port_line, sa_line
from virtio_ipsec.cli.ctl_top import watch
from virtio_ipsec.cli.exits import DONE, FINDING
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.control_client import ControlClient, RequestRefused

#: Seconds: freezing, sending and taking over many SAs takes some, and finding out what became of it some more.
HANDOVER_PATIENCE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--control",
        metavar="PATH",
        default=os.environ.get("VIRTIO_IPSEC_CONTROL"),
        help="the control socket of `serve`; default: $VIRTIO_IPSEC_CONTROL",
    )
    parser.add_argument("--port", metavar="NAME", help="the port, where there are several")
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_action(actions, "ports", "the ports, and who owns their SAs", "ctl --control nic.ctl ports")
    sa = add_action(actions, "sa", "security associations", "ctl --control nic.ctl sa list")
    sas = sa.add_subparsers(dest="what", metavar="WHAT", required=True)
    listing = add_action(sas, "list", "all of them", "ctl --control nic.ctl sa list --show-keys")
    listing.add_argument("--show-keys", action="store_true", help="with their keys")
    adding = add_action(sas, "add", "from [[sa]] tables", "ctl --control nic.ctl sa add sas.toml")
    adding.add_argument("file", metavar="FILE")
    removal = add_action(sas, "remove", "one; its keys are wiped", "ctl --control nic.ctl sa remove inbound 7")
    removal.add_argument("direction", choices=("outbound", "inbound"))
    removal.add_argument("id", type=int)
    flow = add_action(actions, "flow", "flows", "ctl --control nic.ctl flow list")
    flows = flow.add_subparsers(dest="what", metavar="WHAT", required=True)
    add_action(flows, "list", "all of them, in their order", "ctl --control nic.ctl --json flow list")
    adding = add_action(flows, "add", "from [[flow]] tables", "ctl --control nic.ctl flow add flows.toml")
    adding.add_argument("file", metavar="FILE")
    removal = add_action(flows, "remove", "one", "ctl --control nic.ctl flow remove to-berlin")
    removal.add_argument("name", metavar="NAME")
    rekey = add_action(
        actions,
        "rekey",
        "another outbound SA for all flows of an old one, at once",
        "ctl --control nic.ctl rekey 7 new-sas.toml",
    )
    rekey.add_argument("old", type=int, metavar="ID", help="the outbound SA that goes")
    rekey.add_argument(
        "file", metavar="FILE", help="[[sa]]: the new outbound one, and an inbound one if wanted"
    )
    add_action(actions, "counters", "events of the port", "ctl --control nic.ctl --port vm1 counters")
    add_action(actions, "metrics", "everything, as Prometheus text", "ctl --control nic.ctl metrics")
    top = add_action(
        actions, "top", "packets and octets per second, as they go", "ctl --control nic.ctl top --interval 5"
    )
    top.add_argument(
        "--interval", type=positive(float), default=1.0, metavar="S", help="seconds; default: %(default)g"
    )
    top.add_argument("--count", type=positive(int), metavar="N", help="end after so many looks")
    handover = add_action(
        actions,
        "handover",
        "give the SAs to another back-end",
        "ctl --control nic.ctl handover --to /run/other.ctl",
    )
    handover.add_argument("--to", required=True, metavar="SOCKET", help="its control socket")
    handover.add_argument("--to-port", metavar="NAME", help="its port; default: the one of the same name")


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    if not arguments.control:
        raise ConfigError("--control PATH says which `serve` is meant")
    timeout = {"timeout": HANDOVER_PATIENCE} if arguments.action == "handover" else {}
    with ControlClient(arguments.control, port=arguments.port, **timeout) as client:
        name = arguments.action
        if name in ("sa", "flow"):
            name += f" {arguments.what}"
        return _ACTIONS[name](client, arguments)


# -- what is listed


def listed(client: ControlClient, what: str, **params: Any) -> Iterator[dict[str, Any]]:
    """All SAs or flows, however many requests it takes."""
    number, more = 0, True
    while more:
        found = client.call(f"{what}.list", **params)
        entries, more = found[f"{what}s"], found["more"]
        yield from entries
        number += len(entries)
        if entries:
            last = entries[-1].get("sa", {})
            params["after"] = number if what == "flow" else [last["direction"], last["id"]]


def _print_list(client: ControlClient, arguments: argparse.Namespace, what: str, **params: Any) -> int:
    entries = listed(client, what, **params)
    if arguments.json:
        json.dump(list(entries), sys.stdout, indent=1)
        print()
        return DONE
    for entry in entries:
        print(sa_line(entry) if what == "sa" else flow_line(entry))
    return DONE


def _sa_list(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _print_list(client, arguments, "sa", **({"show_keys": True} if arguments.show_keys else {}))


def _flow_list(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _print_list(client, arguments, "flow")


def _ports(client: ControlClient, arguments: argparse.Namespace) -> int:
    ports = client.call("ports")["ports"]
    if arguments.json:
        print(json.dumps(ports, indent=1))
    else:
        for port in ports:
            print(port_line(port))
    return DONE


def _counters(client: ControlClient, arguments: argparse.Namespace) -> int:
    counters = client.call("counters")["counters"]
    if arguments.json:
        print(json.dumps(counters, indent=1))
    else:
        for name, count in counters.items():
            print(f"{count:>12} {name}")
    return DONE


def _metrics(client: ControlClient, arguments: argparse.Namespace) -> int:
    print(client.call("metrics")["text"], end="")
    return DONE


# -- what is changed


def _add(client: ControlClient, arguments: argparse.Namespace, what: str) -> int:
    """All tables of a file; those that are refused are named, the others are there."""
    tables = read_tables(arguments.file, what)
    refused = added = 0
    results = client.call_many((f"{what}.add", {what: table}) for table in tables)
    for number, result in enumerate(results, 1):
        if isinstance(result, RequestRefused):
            print(f"virtio-ipsec: error: {arguments.file}: {what} {number}: {result}", file=sys.stderr)
            refused += 1
        else:
            added += 1
    print(
        json.dumps({"added": added, "refused": refused})
        if arguments.json
        else f"{added} added, {refused} refused"
    )
    return FINDING if refused else DONE


def _sa_add(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _add(client, arguments, "sa")


def _flow_add(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _add(client, arguments, "flow")


def _done(arguments: argparse.Namespace, result: dict[str, Any]) -> int:
    if arguments.json:
        print(json.dumps(result))
    else:
        print(", ".join(f"{name} {value}" for name, value in result.items()))
    return DONE


def _sa_remove(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _done(arguments, client.call("sa.remove", direction=arguments.direction, id=arguments.id))


def _flow_remove(client: ControlClient, arguments: argparse.Namespace) -> int:
    return _done(arguments, client.call("flow.remove", name=arguments.name))


def _rekey(client: ControlClient, arguments: argparse.Namespace) -> int:
    tables = read_tables(arguments.file, "sa")
    found = {str(table.get("direction")): table for table in tables}
    if len(found) != len(tables) or "outbound" not in found or not found.keys() <= {"outbound", "inbound"}:
        raise ConfigError(f"{arguments.file}: one outbound [[sa]], and at most one inbound one")
    return _done(arguments, client.call("rekey", old=arguments.old, **found))


def _handover(client: ControlClient, arguments: argparse.Namespace) -> int:
    params = {"to": os.path.abspath(arguments.to)}
    if arguments.to_port is not None:
        params["to_port"] = arguments.to_port
    return _done(arguments, client.call("handover", **params))


def _top(client: ControlClient, arguments: argparse.Namespace) -> int:
    return watch(client, lambda: listed(client, "sa"), arguments.interval, arguments.count)


_ACTIONS = {
    "ports": _ports,
    "sa list": _sa_list,
    "sa add": _sa_add,
    "sa remove": _sa_remove,
    "flow list": _flow_list,
    "flow add": _flow_add,
    "flow remove": _flow_remove,
    "rekey": _rekey,
    "counters": _counters,
    "metrics": _metrics,
    "top": _top,
    "handover": _handover,
}
