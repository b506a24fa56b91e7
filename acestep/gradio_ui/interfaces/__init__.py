"""What is built of gradio's components; no other part of the package imports gradio."""
