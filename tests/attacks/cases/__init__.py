"""One attack a file: what it does, the defence that meets it, and the attack itself."""
