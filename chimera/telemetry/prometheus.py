"""The little of Prometheus' text format that servers' `/metrics` need."""

from __future__ import annotations


def samples(text: str, prefix: str) -> dict[str, float]:
    """Values by name without the prefix, summed over all labels (models, engines).

    Buckets of histograms are left out: they are counts of their own, and means need only `_sum` and `_count`.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith(prefix):
            continue
        head, brace, rest = line.partition("{")
        name, figures = (head, rest.rpartition("}")[2]) if brace else line.partition(" ")[::2]
        name = name.removeprefix(prefix)
        if name.endswith("_bucket"):
            continue
        try:
            found[name] = found.get(name, 0.0) + float(figures.split()[0])
        except (ValueError, IndexError):
            continue
    return found
