"""From conditions to latents."""
