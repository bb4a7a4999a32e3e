"""What is asked, answered and shown, without torch; imports no other room."""
