"""The documented lines, put into the real code bases and run."""
