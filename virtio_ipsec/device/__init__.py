"""The device model, sans-IO: status, features, admin commands, objects, flow filter, transmit, receive."""
