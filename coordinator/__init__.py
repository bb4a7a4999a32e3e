"""The memory and the decisions: admits, registers, releases. The only home of rows."""
