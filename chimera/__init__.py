"""Chimera watches a local LLM server and its GPU live, and tunes it."""

__version__ = "0.1.0"
