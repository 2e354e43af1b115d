"""Sweeps and tuning that can be believed: what to run next, and what the sessions then say.

Everything here is pure: no clock, no file, no server. The worker runs the sessions and keeps the journal; the same
plan and the same finished sessions give the same next session and the same table, on any machine and after any crash.
"""
