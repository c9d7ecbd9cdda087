"""Fewer blocks: which to take out, and how those that stay make up for it.

`fuse` is the verb and `methods` its methods. `criteria` rank blocks, `removal` takes them out, `fusion_layer` and
`distillation` let neighbours absorb them, `grafting` does so in rounds. `laco`, `mka` and `slicing` train nothing.
"""
