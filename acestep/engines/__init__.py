"""How the heavy parts are computed."""
