"""The steps from one form of the journal to the next; Alembic runs them, `database.py` calls it."""
