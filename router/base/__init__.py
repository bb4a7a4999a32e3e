"""The frozen base model: loading, fingerprint, its linear modules, tokens and batches; imports no other room."""
