"""What the estimator says: its predictions, and what follows from its error."""
