"""What is measured: the catalogue of all metrics, and what computes them."""
