"""The device: joins status, features, admin commands, control queue and the packet path. Sans-IO.

How the packet path is called::

    transmit.transmit(ctx: DataPlaneContext, buffer: bytes, queue: int) -> list[bytes]     # wire frames
    receive.receive(ctx: DataPlaneContext, frame: bytes) -> list[Received]

``rings.Rings(device)`` binds virtqueues to the byte level methods of this class: it calls ``device.admin``,
``device.control``, ``device.transmit`` and ``device.receive`` and nothing below them, and
``device.needs_reset()`` when a ring breaks its rules. ``Device.reset`` calls ``rings.reset()``.
"""
