"""The judges, by what they look at. Importing a module registers its judges."""
