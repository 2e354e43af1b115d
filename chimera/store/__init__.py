"""The journal of runs: the only channel between a worker and whoever watches it.

`from chimera.store.journal import Journal` loads SQLAlchemy; `home` and `lock` load nothing heavy.
"""
