"""The parts of lyric alignment: time warping, attention maps, token text and their types."""
