"""Protected packets that must not be opened: changed, repeated, forged, authentic nonsense."""

from __future__ import annotations

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import DataPath, Sa
from virtio_ipsec.conformance.frames import ESP, Shape
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.crypto.reference import esp_transform
from virtio_ipsec.wire.numbers import Feature, HdrFlag, IpsecMode, has

CHECKSUM_FLAGS = HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID
FAILED = ("NET-RX-DEV-05", "NET-RX-DEV-31", "NET-RX-DEV-32", "INF-05", "RFC-16", "RFC-17")


def _fails(path: DataPath, packet: bytes, why: str, secret: bytes) -> None:
    """Inject a packet that must not be opened."""
    came = path.receive(packet)
    path.check_failed(came, packet, why)
    path.bench.check("INF-05", not any(secret in rx.frame for rx in came), f"no plaintext after {why}")
    if not has(path.bench.features, Feature.NET_F_GUEST_CSUM):
        sums = [f"flags {rx.header.flags:#x}" for rx in came if rx.header.flags & CHECKSUM_FLAGS]
        path.bench.check("NET-RX-DEV-05", not sums, f"nothing is said of checksums after {why}", sums)
    for rx in came:
        shown = f"flags {rx.header.flags:#x}"
        path.bench.check("RFC-17", not rx.header.flags & 0x60, "flags 32 and 64 are clear", shown)


def _still_opens(path: DataPath, sa: Sa, why: str) -> None:
    plain = frames.packet(path.bench.octets(40))
    clause = "RFC-16" if path.bench.dialect.has_initial_esn else "NET-RX-DEV-32"
    path.check_opened(
        (clause,), path.receive(sa.peer.seal(plain)), plain, f"the next good packet after {why}"
    )


@case("ipsec-in-corrupted", *FAILED, needs=("admin", "ipsec", "wire"))
def in_corrupted(bench: Bench) -> None:
    """A packet that was changed on the way is not opened, and none of its plaintext is delivered.

    One bit each of the IV, the ciphertext, the ICV and the sequence number is turned over; the packet is also
    cut short by its last four octets. Good packets go on being opened.
    """
    path = DataPath(bench)
    sa = path.inbound()
    secret = bench.octets(48)
    for name, at in (("the IV", 30), ("the ciphertext", 40), ("the ICV", -1), ("the sequence number", 27)):
        sealed = bytearray(sa.peer.seal(frames.packet(secret)))
        sealed[at] ^= 1
        _fails(path, bytes(sealed), f"a changed bit in {name}", secret[:16])
    sealed = bytearray(sa.peer.seal(frames.packet(secret)))[:-4]
    sealed[2:4], sealed[10:12] = len(sealed).to_bytes(2), bytes(2)
    sealed[10:12] = frames.checksum(bytes(sealed[:20])).to_bytes(2)
    _fails(path, bytes(sealed), "a tail cut off", secret[:16])
    _still_opens(path, sa, "corrupted ones")


@case("ipsec-in-replayed", *FAILED, needs=("admin", "ipsec", "wire"))
def in_replayed(bench: Bench) -> None:
    """A packet that comes twice fails the second time.

    The same sealed packet is injected twice: the second copy is not opened, and the next good packet is.
    """
    path = DataPath(bench)
    sa = path.inbound()
    secret = bench.octets(48)
    sealed = sa.peer.seal(frames.packet(secret))
    path.receive(sealed)
    _fails(path, sealed, "a replay", secret[:16])
    _still_opens(path, sa, "a replay")


@case("ipsec-in-wrong-key", *FAILED, needs=("admin", "ipsec", "wire"))
def in_wrong_key(bench: Bench) -> None:
    """A packet sealed with the key of another SA is not opened, whatever its SPI says.

    The SPI of a packet of one SA is overwritten by that of another; good packets of the latter still open.
    """
    path = DataPath(bench)
    sa, other = path.inbound(), path.inbound()
    secret = bench.octets(48)
    sealed = bytearray(other.peer.seal(frames.packet(secret)))
    sealed[20:24] = sa.spi.to_bytes(4)
    _fails(path, bytes(sealed), "another SA's key", secret[:16])
    _still_opens(path, sa, "a forged one")


@case("ipsec-in-bad-padding", *FAILED, needs=("admin", "ipsec", "wire"))
def in_bad_padding(bench: Bench) -> None:
    """An authentic packet with impossible padding or next header is an error, not a packet.

    AES-GCM packets whose trailer names more padding than there is, and one that names a protocol that no tunnel
    carries.
    """
    path = DataPath(bench)
    if path.suite(IpsecMode.ESP_TUNNEL) != "aes-gcm-16":
        raise Unsupported("the device does not offer AES-GCM in ESP_TUNNEL")
    sa = path.inbound()
    secret = bench.octets(48)
    plain = frames.packet(secret)
    transform = esp_transform(sa.suite, sa.value.cipher_key, b"", sa.value.salt)
    for sequence, (why, trailer) in enumerate(
        (("padding longer than the packet", bytes((255, 4))), ("a next header of UDP", bytes((0, 17)))), 1
    ):
        head = sa.spi.to_bytes(4) + sequence.to_bytes(4)
        iv = bench.octets(8)
        body = transform.seal(head, None, iv, plain + bytes(-(len(plain) + 2) % 4) + trailer)
        forged = frames.packet(head + iv + body, Shape(protocol=ESP))
        _fails(path, forged, why, secret[:16])
    sa.peer.at(10)
    _still_opens(path, sa, "authentic nonsense")
