"""Real language: a pre-trained base and real tasks, all of them read from installed or unpacked packages."""
