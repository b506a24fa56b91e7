"""Fine-tuning: flow-matching training of the diffusion transformer, whole or through LoRA."""
