"""The layers that a client trains and the passes it borrows; imports `layer` and below."""
