"""`vae-lab-eval` and the pictures: what is measured and drawn of a trained model."""
