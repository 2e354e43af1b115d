"""What is known of a model before and after it is loaded: its file, its memory, its speed limit, its real settings."""
