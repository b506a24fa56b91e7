"""What a library's modules do otherwise than the original model, mended by name."""
