"""A device that notes what its driver does, for the conformance of drivers. Nothing here runs unless asked for."""
