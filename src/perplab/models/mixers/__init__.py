"""Token mixers: what moves information between the positions of a sequence.

- A token mixer is built from `(config, layer_index)` and called with `(hidden_states, context)`; it returns a tensor
  shaped as `hidden_states`, (batch, length, hidden_size). What it may need beyond the hidden states is in the
  `SequenceContext`. A decoder chooses one a layer by name; a new mixer is a file here and a line in `registry.py`.
- Projections have Llama's names (`q_proj`, `k_proj`, `v_proj`) where a mixer has such, and `o_proj` writes to the
  residual stream in all of them, so that what changes weights finds them.
- Settings of one mixer are a frozen dataclass, its `options_class`, checked when the config is made.
- Parameters that are no projections are drawn by the module's `initialize`; what weight decay must leave alone is
  named in `undecayed`.
- `cache_layer` says what a layer keeps of the tokens it has seen: all keys and values, those of a window, or a state.
"""
