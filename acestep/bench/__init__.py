"""How long songs take and what memory they need, beside plain diffusers: `acestep bench`."""
