"""A slow-fast policy after Reactive Diffusion Policy (Xue et al. 2025): see README.md here."""
