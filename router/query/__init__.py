"""What is asked, answered and shown; no torch."""
