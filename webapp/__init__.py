"""The floor that talks to people. `python -m webapp` runs it; start reading at `webapp.app`."""
