"""What the content of a bundle must pass before the model sees it, in a process with limits."""
