"""The paper's model: distributions, the networks that parametrise them, the VAE, its objectives and estimators."""
