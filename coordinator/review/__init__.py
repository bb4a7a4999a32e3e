"""What is judged by running the model."""
