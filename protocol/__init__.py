"""What crosses between machines: names, bytes, signatures. No tensors, no rows, no screens.

Floors, from the top: fleet; compatibility, release; bundle, documents; adapter_config, tensors; spec; adapters;
settings; statement, signing; wire; files, programs; errors, printable.
"""
