"""How real checkouts of ACE-Step look, and what can be asked of each without its weights."""
