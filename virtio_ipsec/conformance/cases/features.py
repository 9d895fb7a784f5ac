"""Feature bits: what is offered, which sets are accepted (virtio v1.4 2.2, 5.1.3)."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.requirements import closure, unmet
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, has, mask

WORD = (1 << 128) - 1
VERSION_1 = mask(Feature.F_VERSION_1)
IPSEC = mask(Feature.NET_F_IPSEC)


def names(word: int) -> str:
    """Feature names of a word, numbers for bits without one."""
    known = {feature.value: feature.name for feature in Feature}
    return ", ".join(known.get(bit, f"bit {bit}") for bit in range(word.bit_length()) if word >> bit & 1)


@case("feature-out-net-header", "NET-FEAT-01")
def out_net_header(bench: Bench) -> None:
    """A device that offers IPSEC (70) offers OUT_NET_HEADER (69) as well.

    Reads feature word 2.
    """
    offered = bench.target.device_features()
    if not has(offered, Feature.NET_F_IPSEC):
        raise Unsupported("the device does not offer VIRTIO_NET_F_IPSEC")
    bench.check(
        "NET-FEAT-01", has(offered, Feature.NET_F_OUT_NET_HEADER), "bit 69 next to bit 70", f"{offered:#x}"
    )


@case("feature-rfc-bits", "RFC-04")
def rfc_bits(bench: Bench) -> None:
    """The January-2025 dialect has IPSEC as bit 70 and none of the bits 65 to 69.

    Reads feature words 2 and 3.
    """
    offered = bench.target.device_features()
    later = offered & sum(1 << bit for bit in range(65, 70))
    bench.check("RFC-04", not later, "none of the features 65 to 69", names(later))
    if not has(offered, Feature.NET_F_IPSEC):
        raise Unsupported("the device does not offer VIRTIO_NET_F_IPSEC, bit 70")


@case("feature-requirements", "BAS-FEAT-07")
def requirements(bench: Bench) -> None:
    """No feature is offered without those that it requires.

    Reads all feature words and compares with the list of requirements of the network device.
    """
    broken = unmet(bench.target.device_features())
    bench.check(
        "BAS-FEAT-07", not broken, "requirements of offered features", ", ".join(f.name for f in broken)
    )


@case("feature-defined-bits", "BAS-FEAT-09")
def defined_bits(bench: Bench) -> None:
    """No offered bit is undefined, reserved, or foreign to the transport.

    Reads all feature words.
    """
    offered = bench.target.device_features()
    undefined = offered & ~bench.dialect.known_features & WORD
    # RFC-04 has the bits that only the later dialect defines.
    undefined &= ~mask(*Feature)
    bench.check("BAS-FEAT-09", not undefined, "only bits that the specification defines", names(undefined))
    foreign = offered & TRANSPORT_BITS & ~bench.target.transport_features()
    bench.check("BAS-FEAT-09", not foreign, "no bit that this transport does not support", names(foreign))


@case("feature-subsets", "BAS-FEAT-08")
def subsets(bench: Bench) -> None:
    """Every valid subset of the offer keeps FEATURES_OK set.

    Negotiates everything, VERSION_1 alone, each feature with what it requires, and everything but one feature
    and what rests on it; among them IPSEC without OUT_NET_HEADER and without ADMIN_VQ. A refusal is a warning,
    for the text has a SHOULD.
    """
    offered = bench.target.device_features()
    sets = {VERSION_1}
    for feature in (None, *Feature):
        if feature is not None:
            if not has(offered, feature):
                continue
            sets.add(closure(feature, offered) | VERSION_1)
        less = offered & WORD & ~(mask(feature) if feature is not None else 0)
        while broken := unmet(less):
            less &= ~mask(*broken)
        sets.add(less | VERSION_1)
    if has(offered, Feature.NET_F_IPSEC):
        sets.add(VERSION_1 | IPSEC)
    for word in sorted(sets):
        bench.check(
            "BAS-FEAT-08",
            bench.negotiate(word),
            f"FEATURES_OK for the valid set {word:#x}",
            f"clear for {names(word)}",
            advisory=True,
        )


@case("feature-foreign-bits", "BAS-FEAT-08", needs=("status",))
def foreign_bits(bench: Bench) -> None:
    """A set with a bit that was not offered does not get FEATURES_OK.

    Adds to the offer, one at a time: every defined feature that is missing from it, and bits 44, 71, 95, 96
    and 127, so that each 32-bit word is looked at.
    """
    offered = bench.target.device_features()
    for bit in sorted({*(feature.value for feature in Feature), 44, 71, 95, 96, 127}):
        if not offered >> bit & 1:
            accepted = bench.negotiate(offered & WORD | 1 << bit)
            bench.check(
                "BAS-FEAT-08", not accepted, f"FEATURES_OK stays clear for unoffered {names(1 << bit)}", "set"
            )


@case("feature-renegotiation", "BAS-FEAT-10")
def renegotiation(bench: Bench) -> None:
    """A set that was accepted once is accepted again after a reset.

    Negotiates the full offer, a smaller set, and the full offer again, three times, each after a reset.
    """
    offered = bench.target.device_features() & WORD
    for word in (offered, VERSION_1):
        if not bench.negotiate(word):
            raise Unsupported(f"the device does not accept {word:#x} in the first place")
    for _ in range(3):
        for word in (offered, VERSION_1):
            bench.check("BAS-FEAT-10", bench.negotiate(word), f"{word:#x} accepted again", "refused")


@case("config-before-features", "BAS-INIT-04")
def config_early(bench: Bench) -> None:
    """The configuration can be read before FEATURES_OK, conditional fields included.

    Reads it right after the reset, after DRIVER, and after DRIVER_OK: all fields but ``status``, which may
    change at any time, are the same.
    """
    offered = bench.target.device_features()
    size = 0
    for field, features in CONDITIONAL.items():
        if offered & mask(*features):
            at = next(f for f in NET_CONFIG.layout() if f.name == field)
            size = max(size, at.offset + (at.size or 0))
    if not size:
        raise Unsupported("the device offers no feature with a configuration field")

    def read() -> bytes:
        data = bench.target.read_config(0, size)
        return data[:6] + bytes(2) + data[8:]

    early = [read()]
    bench.target.write_status(1)
    bench.target.write_status(3)
    early.append(read())
    bench.start()
    late = read()
    for moment, data in zip(("after reset", "after DRIVER"), early, strict=True):
        bench.check(
            "BAS-INIT-04",
            data == late,
            f"configuration {moment} as with DRIVER_OK: {late.hex()}",
            data.hex(),
        )


#: Fields of the configuration and the features of which one has to be offered for them to be there.
CONDITIONAL = {
    "mac": (Feature.NET_F_MAC,),
    "status": (Feature.NET_F_STATUS,),
    "max_virtqueue_pairs": (Feature.NET_F_MQ, Feature.NET_F_RSS),
    "mtu": (Feature.NET_F_MTU,),
    "duplex": (Feature.NET_F_SPEED_DUPLEX,),
    "rss_max_indirection_table_length": (Feature.NET_F_RSS,),
    "supported_hash_types": (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
    "supported_tunnel_types": (Feature.NET_F_HASH_TUNNEL,),
}
