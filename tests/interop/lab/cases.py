"""The table of protections: each as our configuration file says it and as the Linux kernel's xfrm does.

Guest A is plain; our device protects for it. Guest B protects in its kernel. Every case has addresses of its own, so
that all of them stand side by side on one pair of guests. Keys come from the case's name: nobody keeps a secret here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

GUEST_MAC, PEER_MAC, UNDERLAY_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02", "02:00:00:00:01:01"
#: Our address under the tunnels, and guest B's.
UNDERLAY = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
PREFIX = {4: 24, 6: 64}
#: Cleartext that a rule lets pass.
PLAIN = ("10.99.0.1", "10.99.0.2")
SERVER_PORT = 5001


@dataclass(frozen=True)
class Algorithm:
    """``suite``: our name for it. ``kernel``: words of ``ip xfrm state``; {key} and {salted} are the cipher's and the
    authentication key with the salt behind, {auth} is the latter without."""

    suite: str
    kernel: str
    key: int = 16
    salt: int = 4
    auth: int = 0


GCM128 = Algorithm("aes-gcm-16", "aead rfc4106(gcm(aes)) {key} 128")
GCM192 = Algorithm("aes-gcm-16", "aead rfc4106(gcm(aes)) {key} 128", key=24)
GCM256 = Algorithm("aes-gcm-16", "aead rfc4106(gcm(aes)) {key} 128", key=32)
CHACHA = Algorithm("chacha20-poly1305", "aead rfc7539esp(chacha20,poly1305) {key} 128", key=32)
CCM = Algorithm("aes-ccm-16", "aead rfc4309(ccm(aes)) {key} 128", salt=3)
GMAC = Algorithm("aes-gmac", "aead rfc4543(gcm(aes)) {salted} 128", key=0, auth=16)
_SHA256 = "auth-trunc hmac(sha256) {auth} 128"
CBC = Algorithm("aes-cbc+hmac-sha2-256-128", f"enc cbc(aes) {{key}} {_SHA256}", salt=0, auth=32)
CTR = Algorithm("aes-ctr+hmac-sha2-256-128", f"enc rfc3686(ctr(aes)) {{key}} {_SHA256}", auth=32)
# By default Linux aligns AH to 8 octets, in IPv4 too; RFC 4302 2.2 wants 4 there.
AH_SHA256 = Algorithm("hmac-sha2-256-128", f"{_SHA256} flag align4", key=0, salt=0, auth=32)


@dataclass(frozen=True)
class Case:
    """One protection. ``inner`` and ``outer``: IP versions, equal in transport mode."""

    number: int
    name: str
    algorithm: Algorithm
    tunnel: bool = False
    inner: int = 4
    outer: int = 4
    esn: bool = False
    udp: bool = False

    @property
    def is_ah(self) -> bool:
        return not self.algorithm.suite.startswith(("aes", "chacha"))

    @property
    def addresses(self) -> tuple[str, str]:
        """Guest A's address and guest B's, of the packets that the case protects."""
        if self.inner == 4:
            net = f"10.{(99 if not self.tunnel else 98) + self.number // 250 * 2}.{self.number % 250}"
            return f"{net}.1", f"{net}.2"
        return f"fd{99 - self.tunnel}:{self.number}::1", f"fd{99 - self.tunnel}:{self.number}::2"

    @property
    def ends(self) -> tuple[str, str]:
        """Addresses of the IPsec packets."""
        return UNDERLAY[self.outer] if self.tunnel else self.addresses

    @property
    def host_bits(self) -> int:
        """Prefix length of one inner address."""
        return 32 if self.inner == 4 else 128

    @property
    def outbound_spi(self) -> int:
        return 0x10000 + self.number

    @property
    def inbound_spi(self) -> int:
        return 0x20000 + self.number

    def secrets(self, direction: str) -> tuple[bytes, bytes, bytes]:
        """(cipher key, authentication key, salt)."""
        data = b"".join(
            hashlib.sha256(f"{self.name} {direction} {part}".encode()).digest() for part in range(3)
        )
        algorithm = self.algorithm
        return data[: algorithm.key], data[32 : 32 + algorithm.auth], data[64 : 64 + algorithm.salt]


CASES = (
    Case(1, "transport GCM-128", GCM128),
    Case(2, "tunnel GCM-128", GCM128, tunnel=True),
    Case(3, "transport GCM-256", GCM256),
    Case(4, "tunnel GCM-256", GCM256, tunnel=True),
    Case(5, "transport GCM-256 ESN", GCM256, esn=True),
    Case(6, "tunnel GCM-128 ESN", GCM128, tunnel=True, esn=True),
    Case(7, "transport GCM-128 UDP-encap", GCM128, udp=True),
    Case(8, "tunnel GCM-256 UDP-encap", GCM256, tunnel=True, udp=True),
    Case(9, "IPv6 transport GCM-128", GCM128, inner=6, outer=6),
    Case(10, "IPv6 tunnel GCM-256", GCM256, tunnel=True, inner=6, outer=6),
    Case(11, "IPv4 in IPv6 tunnel GCM-128", GCM128, tunnel=True, outer=6),
    Case(12, "IPv6 in IPv4 tunnel GCM-128", GCM128, tunnel=True, inner=6),
    Case(13, "transport CBC+SHA-256", CBC),
    Case(14, "tunnel CBC+SHA-256", CBC, tunnel=True),
    Case(15, "transport ChaCha20-Poly1305", CHACHA),
    Case(16, "tunnel ChaCha20-Poly1305", CHACHA, tunnel=True),
    Case(17, "transport AH SHA-256", AH_SHA256),
    Case(18, "tunnel AH SHA-256", AH_SHA256, tunnel=True),
    Case(19, "tunnel GCM-192", GCM192, tunnel=True),
    Case(20, "tunnel CCM-128", CCM, tunnel=True),
    Case(21, "tunnel GMAC-128", GMAC, tunnel=True),
    Case(22, "tunnel CTR+SHA-256", CTR, tunnel=True),
    Case(23, "IPv6 tunnel CBC+SHA-256 ESN", CBC, tunnel=True, inner=6, outer=6, esn=True),
)

#: What no packet of may be seen in the clear.
PROTECTED: Sequence[IPv4Network | IPv6Network] = tuple(
    ip_network(f"{end}/{case.host_bits}") for case in CASES for end in case.addresses
)


def configuration(cases: Sequence[Case] = CASES, head: str = "") -> str:
    """Our file: one operator's port, everything protected or dropped but a few named services and PLAIN."""
    parts = [
        f"""
[port]
control = "operator"
default = "drop"
guest_mac = "{GUEST_MAC}"
{head}
[port.underlay]
mac = "{UNDERLAY_MAC}"
addresses = [{", ".join(f'"{UNDERLAY[version][0]}/{PREFIX[version]}"' for version in (4, 6))}]
""",
        *(
            f'[[flow]]\nservice = "{service}"\naction = "bypass"\npriority = 9\n'
            for service in ("arp", "nd", "mld")
        ),
        f'[[flow]]\nmatch = {{ src = "{PLAIN[0]}", dst = "{PLAIN[1]}" }}\naction = "bypass"\n',
    ]
    return "\n".join([*parts, *tables(cases, "sa"), *tables(cases, "flow")])


def tables(cases: Iterable[Case], kind: str) -> list[str]:
    """The ``[[sa]]`` or the ``[[flow]]`` tables of cases."""
    if kind == "flow":
        return [_flow(case) for case in cases]
    return [_sa(case, direction) for case in cases for direction in ("outbound", "inbound")]


def _sa(case: Case, direction: str) -> str:
    cipher, auth, salt = case.secrets(direction)
    outbound = direction == "outbound"
    lines = [
        "[[sa]]",
        f"id = {case.number}",
        f'direction = "{direction}"',
        f'mode = "{"ah" if case.is_ah else "esp"}-{"tunnel" if case.tunnel else "transport"}"',
        f"spi = {case.outbound_spi if outbound else case.inbound_spi:#x}",
        f'algorithm = "{case.algorithm.suite}"',
    ]
    if cipher:
        lines.append(f'key = "{cipher.hex()}"')
    if auth:
        lines.append(f'auth_key = "{auth.hex()}"')
    if salt:
        lines.append(f'salt = "{salt.ljust(4, bytes(1)).hex()}"')
    if case.esn:
        lines.append('options = ["esn"]')
    if case.udp:
        lines.append("udp = { sport = 4500, dport = 4500 }")
    if case.tunnel and outbound:
        lines.append(f'tunnel = {{ src = "{case.ends[0]}", dst = "{case.ends[1]}" }}')
    if not outbound:
        local, remote = case.addresses
        lines.append(f'selectors = [{{ local = "{local}", remote = "{remote}" }}]')
        if case.tunnel:
            lines.append(f'peer = "{case.ends[1]}"')
    return "\n".join(lines) + "\n"


def _flow(case: Case) -> str:
    local, remote = case.addresses
    return (
        f'[[flow]]\nmatch = {{ src = "{local}", dst = "{remote}" }}\naction = "protect"\nsa = {case.number}\n'
    )


def guest_script(cases: Iterable[Case] = CASES) -> str:
    """Guest A: addresses, and our underlay addresses as gateways to what lies behind the tunnels."""
    lines = [
        "link set eth0 up",
        f"addr add {PLAIN[0]}/24 dev eth0",
        f"route add {UNDERLAY[4][0]}/32 dev eth0",
        f"route add {UNDERLAY[6][0]}/128 dev eth0",
    ]
    for case in cases:
        local, remote = case.addresses
        lines.append(_address(case, local))
        if case.tunnel:
            via = UNDERLAY[case.inner][0]
            lines.append(f"route add {remote}/{case.host_bits} via {via} dev eth0 src {local}")
    return _script(lines)


def peer_script(cases: Iterable[Case] = CASES) -> str:
    """Guest B: addresses, states and policies."""
    lines = ["link set eth0 up", f"addr add {PLAIN[1]}/24 dev eth0"]
    for version, (_, address) in UNDERLAY.items():
        lines.append(f"addr add {address}/{PREFIX[version]} dev eth0{_NO_DETECTION[version]}")
    # Neighbour discovery comes before IPsec: what resolves an address cannot be protected with a key for it.
    lines += [
        f"xfrm policy add dir {direction} src ::/0 dst ::/0 proto 58 type {kind} priority 1"
        for kind in (135, 136)
        for direction in ("in", "out")
    ]
    for case in cases:
        remote, local = case.addresses
        lines.append(_address(case, local))
        if case.tunnel:
            lines.append(f"route add {remote}/{case.host_bits} dev eth0 src {local}")
        lines += _states(case) + _policies(case)
    return _script(lines, "udpencap 4500 >/tmp/udpencap.log 2>&1 &")


#: Duplicate address detection would make an address wait.
_NO_DETECTION = {4: "", 6: " nodad"}


def _address(case: Case, local: str) -> str:
    length = case.host_bits if case.tunnel else PREFIX[case.inner]
    return f"addr add {local}/{length} dev eth0{_NO_DETECTION[case.inner]}"


def _script(lines: Iterable[str], *more: str) -> str:
    # One process for all: starting a program takes the guest longer than what the program does.
    batch = "\n".join(lines)
    server = f"traffic serve {SERVER_PORT} >/tmp/serve.log 2>&1 &"
    return "\n".join([*more, server, f"ip -batch - <<'END'\n{batch}\nEND"])


def _states(case: Case) -> list[str]:
    remote, local = case.ends
    result = []
    for direction, src, dst, spi in (
        ("outbound", remote, local, case.outbound_spi),
        ("inbound", local, remote, case.inbound_spi),
    ):
        cipher, auth, salt = case.secrets(direction)
        words = [
            f"xfrm state add src {src} dst {dst} proto {'ah' if case.is_ah else 'esp'} spi {spi:#x}",
            f"reqid {case.number} mode {'tunnel' if case.tunnel else 'transport'} replay-window 64",
        ]
        if case.esn:
            words.append("flag esn")
        if case.tunnel and case.inner != case.outer:
            words.append("flag af-unspec")
        keys = {"key": cipher + salt, "auth": auth, "salted": auth + salt}
        words.append(case.algorithm.kernel.format(**{name: f"0x{key.hex()}" for name, key in keys.items()}))
        if case.udp:
            words.append("encap espinudp 4500 4500 0.0.0.0")
        result.append(" ".join(words))
    return result


def _policies(case: Case) -> list[str]:
    remote, local = case.addresses
    length = case.host_bits
    outer_remote, outer_local = case.ends
    result = []
    for direction, src, dst, outer_src, outer_dst in (
        ("out", local, remote, outer_local, outer_remote),
        ("in", remote, local, outer_remote, outer_local),
    ):
        ends = f"src {outer_src} dst {outer_dst} " if case.tunnel else ""
        result.append(
            f"xfrm policy add src {src}/{length} dst {dst}/{length} dir {direction} priority 2 tmpl {ends}"
            f"proto {'ah' if case.is_ah else 'esp'} reqid {case.number} "
            f"mode {'tunnel' if case.tunnel else 'transport'}"
        )
    return result
