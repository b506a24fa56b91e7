"""What the scanner, the simulated device and the tripwire cost, measured."""
