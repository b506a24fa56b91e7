"""How the heavy parts are computed: one folder an engine, behind `protocol.Engine`."""
