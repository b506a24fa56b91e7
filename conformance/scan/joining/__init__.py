"""The files of a project as one: who imports, calls and places what, and what that means."""
