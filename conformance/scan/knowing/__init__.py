"""From syntax to facts: what names stand for, what guards teach, where devices end up."""
