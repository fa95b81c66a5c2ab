"""The networks as modules: transformer, VAE, text encoder. They read no files."""
