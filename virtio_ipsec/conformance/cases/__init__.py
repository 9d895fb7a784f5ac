"""The cases, one file per subject; importing a module registers what it defines."""
