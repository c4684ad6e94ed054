"""A pose and the camera that sees it: pure functions and data."""
