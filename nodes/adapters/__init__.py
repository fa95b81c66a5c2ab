"""Helios behind ComfyUI's own types: MODEL, CLIP, VAE, SAMPLER, and a guider that samples chunks."""
