"""The configuration of a server process."""
