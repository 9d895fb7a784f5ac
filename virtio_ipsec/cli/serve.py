"""Serve virtio-net devices with IPsec over vhost-user or vfio-user, until SIGTERM.

QEMU and DPDK attach to the socket as to any vhost-user-net backend; what is protected, and how, the operator's
configuration says, and the guest knows nothing of it. A port without a configuration, or with control = "guest", leaves
IPsec to the driver, which has to speak the binding in spec/vhost-user-binding.md.

With --vfio-user the device is a whole virtio PCI function, all feature bits and the administration queue included, for
QEMU 11.1 or later (vfio-user-pci) and our own driver. Its virtual functions, if it has any, are at PATH.vf1 and so on
while its driver has VF Enable set.

uplinks:
{uplinks}

examples:
  virtio-ipsec serve --config port.toml --socket /run/vm1.sock --uplink tap:tap0
  virtio-ipsec serve --config ports.toml --log-json
  virtio-ipsec serve --config port.toml --check
  virtio-ipsec serve --socket /tmp/driver.sock --uplink unix:/tmp/wire.sock
  virtio-ipsec serve --vfio-user /tmp/function.sock --vfs 2 --uplink unix:/tmp/wire.sock
"""

from __future__ import annotations

import argparse
from importlib.resources import files

from virtio_ipsec import policy
from virtio_ipsec.cli.arguments import between
from virtio_ipsec.cli.configs import read_ports
from virtio_ipsec.cli.exits import DONE
from virtio_ipsec.cli.logs import log_to_stderr
from virtio_ipsec.device.fast import ENGINES
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.port_config import MAX_VFS
from virtio_ipsec.transport.management import ManagementSettings
from virtio_ipsec.transport.service import Service, Settings
from virtio_ipsec.transport.service_plan import Overrides, PortPlan, plan_all, refuse_shared_files
from virtio_ipsec.transport.uplink import grammar

__doc__ = (__doc__ or "").format(uplinks=grammar())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--config", metavar="FILE", help="ports, SAs and flows (TOML); without it the driver controls"
    )
    front = parser.add_mutually_exclusive_group()
    front.add_argument("--socket", metavar="PATH", help="the vhost-user socket, of a single port")
    front.add_argument(
        "--vfio-user", metavar="PATH", help="the vfio-user socket of a single port: a virtio PCI function"
    )
    parser.add_argument(
        "--vfs",
        type=between(0, MAX_VFS),
        metavar="N",
        help=f"virtual functions of that one, up to {MAX_VFS}, at PATH.vf1 and so on",
    )
    parser.add_argument(
        "--vf-uplink",
        metavar="URI",
        help="their uplinks, with {} for the number (default: that of the function, unix:PATH with .vf1 and so on)",
    )
    parser.add_argument(
        "--owner-managed", action="store_true", help="let the function's driver reach the SAs of its virtual ones"
    )
    parser.add_argument(
        "--client", action="store_true", help="connect to vhost-user sockets instead of listening on them"
    )
    parser.add_argument(
        "--uplink", metavar="URI", help="where frames leave to and arrive from, of a single port"
    )
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="default: %(default)s")
    parser.add_argument(
        "--socket-mode",
        type=mode,
        default=0o600,
        metavar="OCTAL",
        help="who may connect, as of chmod (default: 600)",
    )
    parser.add_argument("--sample", action="store_true", help="print a configuration to begin with")
    parser.add_argument(
        "--state", metavar="DIR", help="keep the sequence numbers of configured keys there, over a crash"
    )
    parser.add_argument("--control", metavar="PATH", help="the socket for `virtio-ipsec ctl`")
    parser.add_argument(
        "--metrics",
        metavar="ADDR",
        help="Prometheus text at HOST:PORT of a loopback address, or at a socket's path",
    )
    parser.add_argument(
        "--await-handover", action="store_true", help="use no SA before `ctl handover` has brought them"
    )
    parser.add_argument("--check", action="store_true", help="look at the configuration and serve nothing")
    parser.add_argument("--log-json", action="store_true", help="log one JSON object per line")


def run(arguments: argparse.Namespace) -> int:
    """Serve, check, or show the sample."""
    if arguments.sample:
        print(files(policy).joinpath("sample.toml").read_text("utf-8"), end="")
        return DONE
    configs = read_ports(arguments.config) if arguments.config else None
    said = Overrides(
        arguments.socket,
        arguments.uplink,
        arguments.vfio_user,
        arguments.vfs,
        arguments.vf_uplink,
        owner_managed=arguments.owner_managed,
    )
    plans = plan_all(configs, said)
    if arguments.client and any(plan.is_pci for plan in plans):
        raise ConfigError("--client is for vhost-user: clients of vfio-user connect to us")
    refuse_shared_files(plans, control=arguments.control, metrics=arguments.metrics)
    if arguments.check:
        for plan in plans:
            print(_summary(plan))
        return DONE
    log_to_stderr(as_json=arguments.log_json)
    management = ManagementSettings(
        state=arguments.state,
        control=arguments.control,
        metrics=arguments.metrics,
        awaited=arguments.await_handover,
    )
    settings = Settings(
        arguments.engine,
        client=arguments.client,
        socket_mode=arguments.socket_mode,
        management=management,
    )
    with Service(plans, settings) as service:
        service.run()
    return DONE


def mode(text: str) -> int:
    """The mode of a socket."""
    try:
        value = int(text, 8)
    except ValueError:
        value = 0
    if not 0o600 <= value <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode from 600 to 777")
    return value


def _summary(plan: PortPlan) -> str:
    """What is right about a port."""
    parts = [f"port {plan.name}: {plan.spec.control} control"]
    if plan.by_operator:
        outbound = sum(spec.outbound for spec in plan.config.sas)
        parts.append(f"{outbound} outbound and {len(plan.config.sas) - outbound} inbound SAs")
        parts.append(f"{len(plan.config.flows)} flows, default {plan.spec.default}")
    parts += [f"{'vfio-user' if plan.is_pci else 'socket'} {plan.socket}", f"uplink {plan.uplink}"]
    if plan.vfs:
        parts.append(f"{len(plan.vfs)} virtual functions")
    return ", ".join(parts)
