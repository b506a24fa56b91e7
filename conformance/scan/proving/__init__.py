"""Tools that prove the scanner: made-up programs by the thousand, samples to judge by reading."""
