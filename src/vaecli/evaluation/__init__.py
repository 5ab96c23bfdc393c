"""What a trained run is worth and what it can show: metrics on held-out images, and pictures."""
