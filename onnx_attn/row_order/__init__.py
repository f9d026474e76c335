"""The order of rows in which blocks around attention are computed: tokens first, windows (or the entries of a batch) last."""
