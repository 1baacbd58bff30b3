"""The HTTP API, one file per thing asked for."""
