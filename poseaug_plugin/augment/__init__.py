"""What is done to a pose, and who chooses it."""
