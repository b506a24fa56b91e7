// The page's own behaviour: waveforms that seek, lyrics that follow, ranges that are drawn.
