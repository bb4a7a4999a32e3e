"""What crosses between machines: names, bytes, signatures. No tensors, no rows, no screens."""
