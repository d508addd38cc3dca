"""What runs the stages of a tile batch; `base` says what a back end is, `choose` takes one."""
