"""What is sampled: NumPyro models and densities, with their data."""
