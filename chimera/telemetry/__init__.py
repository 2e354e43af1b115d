"""What the GPUs, this host and the server do, read without disturbing them.

Nothing here imports a driver binding before it is used, so that the UI can paint first.
"""
