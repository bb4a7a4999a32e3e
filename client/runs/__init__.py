"""What was trained: its record, its losses, and what the owner agreed to tell."""
