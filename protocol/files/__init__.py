"""What is read and written on one machine: strict JSON, secrets, files that appear whole."""
