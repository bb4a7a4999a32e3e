"""The router's HTTP door, in the dialect of OpenAI's API, before any engine (docs/decisions/0032-http-door.md)."""
