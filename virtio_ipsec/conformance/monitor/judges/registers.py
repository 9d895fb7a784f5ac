"""Status, features, configuration and the order of initialisation (virtio v1.4 2.1, 2.2, 2.5, 3.1, 6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Life, Run
from virtio_ipsec.conformance.requirements import unmet
from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.transport.monitor.events import (
    ConfigRead,
    ConfigWritten,
    FeaturesRead,
    FeaturesWritten,
    GenerationRead,
    Kicked,
    QueueEnabled,
    StatusRead,
    StatusWritten,
)
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, Status, has

#: The one field of more than 32 bits comes first.
_MAC_SIZE = 6
_STEPS = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)
_REGISTERS = "registers"
#: Field of the configuration space -> features of which one brings it (virtio v1.4 5.1.4).
_FIELDS: Mapping[str, tuple[Feature, ...]] = {
    "mac": (Feature.NET_F_MAC,),
    "status": (Feature.NET_F_STATUS,),
    "max_virtqueue_pairs": (Feature.NET_F_MQ, Feature.NET_F_RSS),
    "mtu": (Feature.NET_F_MTU,),
    "speed": (Feature.NET_F_SPEED_DUPLEX,),
    "duplex": (Feature.NET_F_SPEED_DUPLEX,),
    "rss_max_key_size": (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
    "rss_max_indirection_table_length": (Feature.NET_F_RSS,),
    "supported_hash_types": (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
    "supported_tunnel_types": (Feature.NET_F_HASH_TUNNEL,),
}


def _visible(run: Run) -> Iterator[Life]:
    """Lives whose registers are the driver's own."""
    return (life for life in run.lives if life.shows(_REGISTERS))


def _status_writes(life: Life) -> list[tuple[int, StatusWritten]]:
    return list(life.of(StatusWritten))


def _end(life: Life) -> int:
    return life.begin + len(life.events) - 1


def _names(word: int) -> str:
    found = [bit.name or "" for bit in Status if word & bit]
    return f"{word:#x} ({'|'.join(found) or '0'})"


def _bits(word: int) -> str:
    found = [feature.name for feature in Feature if has(word, feature)]
    known = sum(1 << feature for feature in Feature)
    found += [f"bit {bit}" for bit in range(word.bit_length()) if (word & ~known) >> bit & 1]
    return ", ".join(found) or "none"


# -- status -----------------------------------------------------------------------------------------------


@judge("BAS-STATUS-01", when="a status bit was set", shown=_REGISTERS)
def one_bit_at_a_time(run: Run) -> Iterator[Finding]:
    """Status bits are set one after the other: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK."""
    for life in _visible(run):
        before = 0
        for at, event in _status_writes(life):
            added = [bit for bit in _STEPS if event.value & bit & ~before]
            if added and event.value:
                early = [bit for bit in _STEPS[: _STEPS.index(added[0])] if not before & bit]
                holds = len(added) == 1 and (not early or bool(event.value & Status.FAILED))
                yield Finding(holds, "the next bit only", f"{_names(event.value)} after {_names(before)}", at)
            before = before | event.value if event.value else 0


@judge("BAS-STATUS-02", when="the status was written a second time", shown=_REGISTERS)
def no_bit_cleared(run: Run) -> Iterator[Finding]:
    """No status bit is cleared, but by writing 0."""
    for life in _visible(run):
        before = 0
        for at, event in _status_writes(life):
            if event.value and before:
                lost = before & ~event.value & ~Status.DEVICE_NEEDS_RESET
                yield Finding(not lost, f"{_names(before)} and more", _names(event.value), at)
            before = event.became if event.value else 0


@judge("BAS-STATUS-03", when="the driver had set FAILED and went on", shown=_REGISTERS)
def reset_after_failed(run: Run) -> Iterator[Finding]:
    """After FAILED the device is reset before anything else is tried."""
    for number, life in enumerate(run.lives):
        if not life.shows(_REGISTERS) or not life.status_reached & Status.FAILED:
            continue
        since = next(at for at, event in _status_writes(life) if event.value & Status.FAILED)
        for at, event in life.of(StatusWritten, FeaturesWritten, QueueEnabled):
            if at > since and not (isinstance(event, StatusWritten) and event.value & Status.FAILED):
                yield Finding(False, "a reset", type(event).__name__, at)
        following = run.lives[number + 1] if number + 1 < len(run.lives) else None
        if following is not None and not life.is_last:
            yield Finding(True, "a reset", "a reset", following.begin)


@judge("BAS-INIT-08", when="the device did not accept the features", shown=_REGISTERS)
def stops_when_refused(run: Run) -> Iterator[Finding]:
    """When initialisation fails the driver sets FAILED (or starts over), and goes no further."""
    for life in _visible(run):
        if not _was_refused(life):
            continue
        tried = [at for at, event in _status_writes(life) if event.value & Status.FEATURES_OK]
        for at, event in life.of(QueueEnabled, StatusWritten):
            if at <= tried[0]:
                continue
            if not isinstance(event, StatusWritten) or event.value & Status.DRIVER_OK:
                yield Finding(False, "no queue and no DRIVER_OK", type(event).__name__, at)
        gave_up = bool(life.status_reached & Status.FAILED) or not life.is_last
        yield Finding(gave_up, "FAILED, or another attempt", "neither", _end(life), advisory=True)
        yield Finding(True, "no queue and no DRIVER_OK", "none", tried[0])


@judge("BAS-RESET-03", when="the device was reset and used again", shown=_REGISTERS)
def waits_for_reset(run: Run) -> Iterator[Finding]:
    """A reset is complete for the driver when the status reads zero, and not before."""
    for life in _visible(run):
        writes = _status_writes(life)
        if not writes or writes[0][1].value:
            continue
        since = writes[0][0]
        for at, event in life.of(StatusRead, StatusWritten, FeaturesWritten, QueueEnabled):
            if at <= since:
                continue
            if isinstance(event, StatusRead):
                if event.value == 0:
                    yield Finding(True, "the status read as 0", "0", at)
                    break
            else:
                yield Finding(False, "the status read as 0 first", type(event).__name__, at)
                break


# -- features ---------------------------------------------------------------------------------------------


def _accepted(run: Run) -> Iterator[tuple[Life, int, int]]:
    for life in _visible(run):
        for at, event in life.of(FeaturesWritten):
            yield life, at, event.word


@judge("BAS-FEAT-01", when="features were accepted", shown=_REGISTERS)
def offered_only(run: Run) -> Iterator[Finding]:
    """No feature is accepted that is not offered."""
    for life, at, word in _accepted(run):
        beyond = word & ~life.offered
        yield Finding(not beyond, "offered features only", _bits(beyond), at)


@judge("BAS-FEAT-02", when="features were accepted", shown=_REGISTERS)
def closed_features(run: Run) -> Iterator[Finding]:
    """No feature is accepted without what it requires (virtio v1.4 5.1.3.1)."""
    for _, at, word in _accepted(run):
        lacking = unmet(word)
        yield Finding(not lacking, "prerequisites", ", ".join(f.name for f in lacking), at)


@judge("BAS-FEAT-03", when="features were accepted", shown=_REGISTERS)
def reads_features(run: Run) -> Iterator[Finding]:
    """The features that are offered are read before any are accepted."""
    for life in _visible(run):
        read = next((at for at, _ in life.of(FeaturesRead)), None)
        for at, _ in life.of(FeaturesWritten):
            yield Finding(read is not None and read < at, "the offered features read", "not read", at)
            break


def _strange(run: Run, life: Life) -> int:
    """Offered bits that the driver cannot know, or that the transport does not carry."""
    return life.offered & ~run.dialect.known_features | life.offered & TRANSPORT_BITS & ~life.began.carried


@judge("BAS-FEAT-04", when="bits were offered that nobody knows", shown=_REGISTERS)
def ignores_unknown_bits(run: Run) -> Iterator[Finding]:
    """Bits that are not described, or foreign to the transport, are not accepted."""
    for life, at, word in _accepted(run):
        if strange := _strange(run, life):
            yield Finding(not word & strange, f"not {_bits(strange)}", _bits(word & strange), at)


@judge("BAS-FEAT-05", when="a device without ADMIN_VQ or IPSEC was met", shown=_REGISTERS)
def falls_back(run: Run) -> Iterator[Finding]:
    """Without a feature that it needs the driver works in another way, or sets FAILED."""
    for life in _visible(run):
        lacks = not has(life.offered, Feature.F_ADMIN_VQ) or not has(life.offered, Feature.NET_F_IPSEC)
        if lacks and life.status_reached & Status.DRIVER:
            done = life.status_reached & (Status.DRIVER_OK | Status.FAILED)
            yield Finding(bool(done), "DRIVER_OK or FAILED", _names(life.status_reached), _end(life))


@judge("BAS-FEAT-06", when="bits were offered that nobody knows", shown=_REGISTERS)
def lives_with_unknown_bits(run: Run) -> Iterator[Finding]:
    """An offered feature that it does not know is no reason for the driver to fail."""
    refused = {life.began for life in run.lives if _was_refused(life)}
    for life in _visible(run):
        if _strange(run, life) and life.status_reached & Status.DRIVER and life.began not in refused:
            failed = life.status_reached & Status.FAILED and not life.status_reached & Status.DRIVER_OK
            if failed or life.is_operating:
                yield Finding(not failed, "DRIVER_OK", _names(life.status_reached), _end(life))


def _was_refused(life: Life) -> bool:
    """Whether the device did not accept the driver's features: a reason of its own to fail."""
    tried = any(event.value & Status.FEATURES_OK for _, event in _status_writes(life))
    return tried and not life.status_reached & Status.FEATURES_OK


def _accepts(clause: str, feature: Feature, *, advisory: bool) -> None:
    def body(run: Run) -> Iterator[Finding]:
        for life, at, word in _accepted(run):
            carried = not TRANSPORT_BITS >> feature & 1 or has(life.began.carried, feature)
            if has(life.offered, feature) and carried:
                holds = has(word, feature)
                yield Finding(holds, f"{feature.name} accepted", _bits(word), at, advisory=advisory)

    body.__doc__ = f"VIRTIO_{feature.name} is accepted when it is offered."
    judge(clause, when=f"VIRTIO_{feature.name} was offered", shown=_REGISTERS)(body)


for _clause, _feature, _advisory in (
    ("BAS-RSVD-01", Feature.F_VERSION_1, False),
    # SHOULD; the MUSTs of the two are about translation and barriers, which do not show.
    ("BAS-RSVD-02", Feature.F_ACCESS_PLATFORM, True),
    ("BAS-RSVD-03", Feature.F_RING_PACKED, False),
    ("BAS-RSVD-04", Feature.F_ORDER_PLATFORM, True),
    ("BAS-RSVD-06", Feature.F_NOTIF_CONFIG_DATA, False),
):
    _accepts(_clause, _feature, advisory=_advisory)


# -- configuration ----------------------------------------------------------------------------------------


@judge("BAS-INIT-01", when="the configuration was read", shown=_REGISTERS)
def generation(run: Run) -> Iterator[Finding]:
    """What is wider than 32 bits is read between two reads of the generation; when that changes, once more.

    A driver that reads the MAC address, or more than 4 bytes at a time, without a look at the generation is warned
    about; one that sees it change and goes on is wrong.
    """
    for life in _visible(run):
        events = list(life.of(GenerationRead, ConfigRead))
        before: GenerationRead | None = None
        reads: list[int] = []
        for place, (at, event) in enumerate(events):
            if isinstance(event, ConfigRead):
                reads.append(at)
                if len(event.data) > 4 or event.offset < _MAC_SIZE:
                    seen = before is not None
                    yield Finding(seen, "the generation read before", "not read", at, advisory=True)
            elif isinstance(event, GenerationRead):
                if reads and before is not None and before.value != event.value:
                    again = any(isinstance(later, ConfigRead) for _, later in events[place + 1 :])
                    no_read = f"generation {before.value}, then {event.value}, and no read"
                    yield Finding(again, "the fields read again", no_read, at)
                before, reads = event, []


@judge("BAS-INIT-02", when="the configuration was read", shown=_REGISTERS)
def offered_fields_only(run: Run) -> Iterator[Finding]:
    """A field of the configuration is read only when a feature that brings it is offered."""
    fields = [(f.name, f.offset, f.offset + (f.size or 0)) for f in NET_CONFIG.layout()]
    for life in _visible(run):
        for at, event in life.of(ConfigRead):
            end = event.offset + len(event.data)
            wrong = [
                name
                for name, first, last in fields
                if event.offset < last
                and first < end
                and not any(has(life.offered, f) for f in _FIELDS[name])
            ]
            yield Finding(not wrong, "fields that are there", f"bytes of {', '.join(wrong)}", at)


@judge("BAS-INIT-06", when="features were negotiated", shown=_REGISTERS)
def no_early_config_write(run: Run) -> Iterator[Finding]:
    """The configuration is not written before FEATURES_OK."""
    for life in _visible(run):
        done = _negotiated_at(life)
        for at, event in life.of(ConfigWritten):
            if done is None or at < done:
                yield Finding(False, "no write before FEATURES_OK", f"{len(event.data)} bytes", at)
        if done is not None:
            yield Finding(True, "no write before FEATURES_OK", "none", done)


def _negotiated_at(life: Life) -> int | None:
    return next((at for at, e in _status_writes(life) if e.became & Status.FEATURES_OK), None)


# -- order ------------------------------------------------------------------------------------------------


@judge("BAS-INIT-05", when="the driver came to DRIVER_OK", shown=_REGISTERS)
def eight_steps(run: Run) -> Iterator[Finding]:
    """The steps in their order: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK, a look at it, queues, DRIVER_OK."""
    for life in _visible(run):
        if not life.is_operating:
            continue
        writes = _status_writes(life)
        yield Finding(writes[0][1].value == 0, "a reset first", _names(writes[0][1].value), writes[0][0])
        agreed, driver = _negotiated_at(life), _first(life, Status.DRIVER)
        ready = _first(life, Status.DRIVER_OK)
        for at, _ in life.of(FeaturesWritten):
            yield Finding(driver is not None and driver < at, "DRIVER set before", "features written", at)
        looked = next((at for at, _ in life.of(StatusRead) if agreed is not None and at > agreed), None)
        for at, _ in life.of(QueueEnabled):
            holds = looked is not None and looked < at
            yield Finding(holds, "FEATURES_OK set and looked at before", "a queue set up", at)
            break
        first = next((at for at, _ in life.of(QueueEnabled)), None)
        seen = first is not None and ready is not None and first < ready
        yield Finding(
            seen, "queues set up before DRIVER_OK", "none", ready if ready is not None else _end(life)
        )


def _first(life: Life, bit: Status) -> int | None:
    return next((at for at, event in _status_writes(life) if event.value & bit), None)


@judge("BAS-INIT-07", when="features were negotiated", shown=_REGISTERS)
def no_late_features(run: Run) -> Iterator[Finding]:
    """No feature is accepted after FEATURES_OK."""
    for life in _visible(run):
        done = _negotiated_at(life)
        if done is None:
            continue
        late = [(at, event) for at, event in life.of(FeaturesWritten) if at > done]
        for at, event in late:
            yield Finding(False, "no features written after FEATURES_OK", _bits(event.word), at)
        if not late:
            yield Finding(True, "no features written after FEATURES_OK", "none", done)


@judge("BAS-INIT-09", when="the driver came to DRIVER_OK", shown="notifications")
def no_early_kick(run: Run) -> Iterator[Finding]:
    """No queue is notified before DRIVER_OK."""
    for life in run.lives:
        if not life.shows("notifications"):
            continue
        ready = next((at for at, e in _status_writes(life) if e.became & Status.DRIVER_OK), None)
        for at, event in life.of(Kicked):
            if ready is None or at < ready:
                yield Finding(False, "no notification before DRIVER_OK", f"queue {event.index}", at)
        if ready is not None:
            yield Finding(True, "no notification before DRIVER_OK", "none", ready)
