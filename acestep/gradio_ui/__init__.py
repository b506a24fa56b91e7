"""The web page: a studio for making music, served by gradio."""
