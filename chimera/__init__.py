"""Chimera watches a local LLM server and its GPU live, and tunes it."""
