"""From latents to audio and back."""
