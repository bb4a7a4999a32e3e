"""The only home of rows."""
