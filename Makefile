.PHONY: run test slow lint types lock screenshots

run:          ; uv run --extra embedded chimera --embedded
test:         ; uv run --all-extras pytest -n 3
slow:         ; uv run --all-extras pytest -m slow
lint:         ; uv run --all-extras ruff check && uv run --all-extras ruff format --check && uv run --all-extras lint-imports
types:        ; uv run --all-extras mypy
lock:         ; python3 scripts/lock.py
screenshots:  ; uv run --all-extras python scripts/screenshots.py
