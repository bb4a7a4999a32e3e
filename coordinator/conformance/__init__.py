"""What a stranger's program may send to a coordinator, honest or hostile, and how a coordinator must answer it."""
